"""The comparison of methods: every kind of cell runs, is run once only, and is counted rightly."""

from __future__ import annotations

import json
import sys
from math import sqrt
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import REPOSITORY

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
for library in ("faiss", "sklearn", "torchvision"):
    pytest.importorskip(library, reason="the benchmarks need the dev extra")

from click.testing import CliRunner, Result  # noqa: E402

from pyquant.learn.methods import METHODS  # noqa: E402


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(REPOSITORY / "benchmarks"), *sys.path])


def compare(folder: Path, *arguments: str) -> Result:
    from compare import main

    return CliRunner().invoke(main, ["--smoke", "--folder", str(folder), *arguments], catch_exceptions=False)


def test_every_kind_of_cell_runs_and_runs_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import compare as script
    from cells import COMPARED, SMOKE

    patterns = [
        "curve",
        "grids",
        "rounding",
        "pruning",
        "*exactobs*",
        "*abgd*",
        "*on weights*",
        "*annealed*",
        "*error feedback*",
        "*int8 codebooks*",
    ]
    only = [argument for pattern in patterns for argument in ("--only", pattern)]
    text = compare(tmp_path, *only).stdout
    kept = json.loads((tmp_path / "compare.json").read_text())["cells"]
    assert set(kept) >= {cell.key for cell in script.chosen(SMOKE.parts(), patterns)}
    for key, cell in kept.items():
        assert 0 <= cell["top1"] <= 100
        assert cell["settings"]["samples"] == 32
        assert key.endswith("trained") == bool(cell.get("finetune"))
        assert "fast" not in cell or 50 < cell["fast"]["agreement"] <= 100
    dense, int8, int4 = (kept[f"digits / {name}"] for name in ("dense", "int8", "int4"))
    assert dense["top1"] - int8["top1"] <= 5
    assert dense["bytes"] > int8["bytes"] > int4["bytes"]
    largest, removed = (kept[f"digits / {name} / rule:sparse:0.25"] for name in ("largest weights", "exactobs"))
    assert removed["divergence"] < largest["divergence"]
    nearest, fed_back = (kept[f"digits / {name} / rule:scalar:3"] for name in ("nearest levels", "obq"))
    assert fed_back["divergence"] < nearest["divergence"]
    assert f"| scalar:3 | {nearest['top1']:.2f}" in text
    assert f"| sparse:0.25 | {largest['top1']:.2f}" in text
    int4_learnt, at_a_rate = (kept[f"digits / obq / {size}"] for size in ("preset:int4", "rate:1.5"))
    assert int4["bytes"] > int4_learnt["bytes"] > at_a_rate["bytes"]
    for name in ("k-means annealed", "error feedback", "int8 codebooks"):
        assert text.count(f"| {name} |") == 1
    assert (tmp_path / "curve.svg").read_text().count("<polyline") == 1 + len(COMPARED)
    missing = {cell.key for cells in SMOKE.parts().values() for cell in cells} - kept.keys()
    learnt = {unquote(path.name.removeprefix("learnt ")) for path in tmp_path.glob("learnt *")}
    assert not (tmp_path / "job").exists()
    assert learnt == {key for key in kept if f"{key} / trained" in missing}

    monkeypatch.setattr(script.Bench, "_other", lambda *_: pytest.fail("a cell was run again"))
    monkeypatch.setattr(script.Bench, "_compressed", lambda *_: pytest.fail("a cell was run again"))
    assert compare(tmp_path, *only).stdout == text
    listed = compare(tmp_path, "--list").stdout
    assert "  done digits / abgd / ratio:8 / trained\n" in listed
    assert "       digits / gram / ratio:8 / trained\n" in listed


def test_every_ingredient_is_a_piece_of_the_product_and_over_a_row() -> None:
    from ingredients import INGREDIENTS, PIECES, PRUNERS, ROUNDERS

    ways = INGREDIENTS | ROUNDERS | PRUNERS
    assert {piece for way in ways.values() for piece in way.without} == set(PIECES)
    for module, name, _ in PIECES.values():
        assert hasattr(module, name)
    for table in (INGREDIENTS, ROUNDERS, PRUNERS):
        first, *others = table.values()
        assert not first.over
        assert {ingredient.over for ingredient in others} <= set(table)
    for row, way in ways.items():
        with way.known(row):
            assert row in METHODS
    assert list(METHODS) == ["gram", "abgd", "pqf", "obq", "exactobs"]


def result(right: list[bool]) -> dict[str, Any]:
    from compare import accuracy

    return accuracy(np.array(right))


def test_differences_are_taken_picture_by_picture() -> None:
    from tables import answers, difference

    a, b = result([True, True, True, False, True]), result([True, False, True, True, True])
    assert answers(a).tolist() == [True, True, True, False, True]
    assert difference(a, a) == (0.0, 0.0)
    gain, error = difference(a, b)
    assert gain == pytest.approx(0)
    assert error == pytest.approx(100 * sqrt(2 / 5) / sqrt(5))


@pytest.mark.parametrize(
    ("ours", "other", "met"), [(4, 3, "yes"), (3, 3, "NO"), (9, 8, "yes"), (8, 8, "NO")]
)  # of ten pictures, of which the dense network has nine right; 15 points above are promised
def test_promise_beyond_the_dense_network_is_half_the_distance(ours: int, other: int, met: str) -> None:
    from tables import _margin_line

    def some(count: int) -> dict[str, Any]:
        return result([index < count for index in range(10)])

    least = 15 if other == 8 else 10
    assert _margin_line("", some(ours), some(other), some(9), least).split("|")[-2].strip() == met


def test_uniform_weights_are_whole_multiples_of_a_scale_of_least_squares(rng: np.random.Generator) -> None:
    from uniform import quantized

    weight = rng.standard_normal((6, 5, 3, 3)).astype(np.float32)
    weight[2] = 0
    weight[3] = 7
    for bits, most in ((4, 7), (8, 127)):
        rows, coded = weight.reshape(6, -1), quantized(weight, bits).reshape(6, -1)
        assert not coded[2].any()
        np.testing.assert_allclose(coded[3], 7, rtol=1e-3)
        for row, got in zip(rows[[0, 1, 4, 5]], coded[[0, 1, 4, 5]], strict=True):
            levels = np.unique(np.abs(got))
            step = np.diff(levels).min()
            assert len(np.unique(np.rint(got / step))) == len(np.unique(got)) <= 2 * most + 1
            naive = np.abs(row).max() / most
            assert np.square(row - got).sum() <= np.square(row - np.rint(row / naive) * naive).sum() * (1 + 1e-3)
