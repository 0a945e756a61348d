"""Orders: several sizes in one run, the smallest file within a drop, accuracy before and after, refusals at once."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE

import pyquant
from pyquant.choose import Recipe, parse_rule
from pyquant.errors import ConfigError, InputError
from pyquant.file import read_model

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402

from pyquant import job, planning  # noqa: E402
from pyquant.accuracy import Comparison  # noqa: E402
from pyquant.cli import main  # noqa: E402
from pyquant.learn.calibration import Calibration  # noqa: E402
from pyquant.learn.kept import KeptInputs  # noqa: E402
from pyquant.order import Order  # noqa: E402
from pyquant.preprocessing import Preprocessing  # noqa: E402
from pyquant.settings import Settings  # noqa: E402
from pyquant.targets import Target, check_names, check_possible, targets_of  # noqa: E402

SHAPE = (3, SIDE, SIDE)
SETTINGS = Settings(
    method="abgd", input_shape=SHAPE, preprocessing=Preprocessing(resize=SIDE, crop=(SIDE, SIDE)), threads=1
)


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((24, *SHAPE), dtype=np.float32)


def counted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[str]:
    """Return a list that grows with each call of a function."""
    calls: list[str] = []
    real: Callable[..., Any] = getattr(module, name)

    def count(*arguments: Any, **options: Any) -> Any:
        calls.append(name)
        return real(*arguments, **options)

    monkeypatch.setattr(module, name, count)
    return calls


def test_several_sizes_share_what_is_measured(
    inputs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = counted(monkeypatch, planning, "measure_curves")
    captured = counted(monkeypatch, job, "capture")
    sizes = (15_000, 11_000)
    out = tmp_path / "net-{bytes}.pqmodel"
    outcome = pyquant.compress_sizes(tiny_networks.residual(), inputs, out=out, target_bytes=sizes, settings=SETTINGS)
    assert (len(measured), len(captured)) == (1, 1)
    assert [Path(made.report.file).name for made in outcome.files] == ["net-15000.pqmodel", "net-11000.pqmodel"]
    for made, size in zip(outcome.files, sizes, strict=True):
        assert 0.99 * size <= made.report.bytes <= size
        assert made.predicted_error is not None
        assert made.output_error is not None
        assert 0 < made.output_error < 1
    large, small = outcome.files
    assert large.output_error < small.output_error
    # Each is the file that a run of its own gives.
    alone = tmp_path / "alone.pqmodel"
    pyquant.compress(
        tiny_networks.residual(), inputs, out=alone, method="abgd", input_shape=SHAPE, threads=2, target_bytes=11_000,
        preprocessing=SETTINGS.preprocessing,
    )  # fmt: skip
    assert alone.read_bytes() == Path(small.report.file).read_bytes()


def test_measured_error_is_that_of_the_outputs(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "{ratio}.pqmodel"
    outcome = pyquant.compress_sizes(
        tiny_networks.residual(), inputs, out=out, target_ratios=[2, 3.5], settings=SETTINGS
    )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2.pqmodel", "3.5.pqmodel"]
    expected = tiny_networks.residual()(torch.from_numpy(inputs)).detach().numpy()
    for made in outcome.files:
        got = pyquant.load(made.report.file)(inputs)
        error = np.square(got - expected).sum() / np.square(expected).sum()
        assert made.output_error == pytest.approx(error, rel=1e-3)


def test_plans_of_several_sizes(inputs: np.ndarray) -> None:
    plans = pyquant.plan_sizes(tiny_networks.residual(), inputs, target_bytes=[11_000, 15_000], settings=SETTINGS)
    alone = pyquant.plan(
        tiny_networks.residual(), inputs, method="abgd", input_shape=SHAPE, target_bytes=15_000, threads=2,
        preprocessing=SETTINGS.preprocessing,
    )  # fmt: skip
    assert plans[1].to_json() == alone.to_json()
    assert plans[0].output_error > plans[1].output_error


def test_accuracy_before_and_after(pictures: Path, tmp_path: Path) -> None:
    outcome = pyquant.compress_sizes(
        tiny_networks.residual(), pictures, out=tmp_path / "x.pqmodel", labelled=pictures, settings=SETTINGS
    )
    accuracy = outcome.files[0].accuracy
    assert accuracy is not None
    assert accuracy.pictures == 12
    from pyquant.evaluate import evaluate

    assert accuracy.top1_after == evaluate(pyquant.load(tmp_path / "x.pqmodel"), pictures)["top1"]


def test_paired_difference() -> None:
    before, after = np.zeros((100, 2), bool), np.zeros((100, 2), bool)
    before[:50, 0], after[4:52, 0] = True, True  # four lost, two gained
    before[:, 1] = after[:90, 1] = True
    comparison = Comparison.of(before, after)
    assert (comparison.top1_before, comparison.top1_after) == (50, 48)
    assert (comparison.top5_before, comparison.top5_after) == (100, 90)
    changes = np.repeat([1.0, -1.0, 0.0], [4, 2, 94])
    assert comparison.standard_error == pytest.approx(100 * changes.std() / 10)
    assert comparison.to_json()["drop"] == pytest.approx(2)


def labelled_by(network: torch.nn.Module, folder: Path, rng: np.random.Generator) -> Path:
    """Return a folder of pictures in the classes that a network sees in them, so that it is right about all of them."""
    from PIL import Image

    from pyquant.pictures import find_pictures, load_batch

    flat = folder / "flat"
    flat.mkdir(parents=True)
    for index in range(60):
        coarse = Image.fromarray(rng.integers(256, size=(4, 4, 3), dtype=np.uint8))
        coarse.resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(flat / f"{index}.png")
    refs = find_pictures(flat)
    assert SETTINGS.preprocessing is not None
    with torch.no_grad():
        best = network(torch.from_numpy(load_batch(refs, SETTINGS.preprocessing))).argmax(1)
    for ref, label in zip(refs, best.tolist(), strict=True):
        (folder / "labelled" / f"class{label}").mkdir(parents=True, exist_ok=True)
        (flat / ref.name).rename(folder / "labelled" / f"class{label}" / ref.name)
    return folder / "labelled"


def test_the_smallest_file_within_a_drop(tmp_path: Path, rng: np.random.Generator) -> None:
    network = tiny_networks.residual()
    with torch.no_grad():  # so that no class wins everywhere
        network.fc.bias -= network(torch.randn(64, *SHAPE, generator=torch.Generator().manual_seed(0))).mean(0)
    from dataclasses import replace

    from pyquant.classes import ClassName

    settings = replace(SETTINGS, classes=tuple(ClassName(folder=f"class{i}", name=str(i)) for i in range(3)))
    labelled = labelled_by(network, tmp_path, rng)
    out = tmp_path / "x.pqmodel"
    outcome = pyquant.compress_within(network, labelled, out=out, max_drop=5.0, labelled=labelled, settings=settings)
    (made,) = outcome.files
    assert made.accuracy is not None
    assert made.accuracy.top1_before == 100
    assert made.accuracy.drop <= 5
    assert made.report.file == str(out)
    assert made.target_bytes is not None
    assert 0.99 * made.target_bytes <= made.report.bytes <= made.target_bytes
    assert made.report.bytes == out.stat().st_size == min(tried.bytes for tried in outcome.trials if tried.holds)
    assert all(tried.accuracy.drop > 5 for tried in outcome.trials if not tried.holds)
    assert outcome.to_json()["trials"][0]["bytes"] == outcome.trials[0].bytes
    assert sorted(path.name for path in tmp_path.iterdir()) == ["flat", "labelled", "x.pqmodel"]


def test_where_no_file_holds_none_is_written(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worse = Comparison(pictures=12, top1_before=90, top1_after=80, top5_before=100, top5_after=100, standard_error=1.0)
    monkeypatch.setattr("pyquant.accuracy.Labelled.compare", lambda *_: worse)
    out = tmp_path / "x.pqmodel"
    out.write_bytes(b"older")
    rules = tuple(parse_rule(f"{name}=dense") for name in ("block.*", "wide", "fc"))
    from dataclasses import replace

    with pytest.raises(ConfigError, match=r"no file falls by at most 5 points.*10.00 points down; nothing was written"):
        pyquant.compress_within(
            tiny_networks.residual(), pictures, out=out, max_drop=5, labelled=pictures,
            settings=replace(SETTINGS, recipe=Recipe(rules=rules)),
        )  # fmt: skip
    assert out.read_bytes() == b"older"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pqmodel"]


def test_a_trial_that_cannot_be_made_ends_the_search(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    near = Comparison(pictures=12, top1_before=90, top1_after=89, top5_before=100, top5_after=100, standard_error=1.0)
    monkeypatch.setattr("pyquant.accuracy.Labelled.compare", lambda *_: near)
    monkeypatch.setattr("pyquant.drop.FIRST_GUESS", 1e4)  # so that the first trial is not of the smallest size
    compress, sizes = job.Job.compress, []

    def once(made_by: job.Job, out: Path, size: int) -> Any:
        sizes.append(size)
        if len(sizes) > 1:
            raise ConfigError("the file would have too many bytes")
        return compress(made_by, out, size)

    monkeypatch.setattr(job.Job, "compress", once)
    out = tmp_path / "x.pqmodel"
    outcome = pyquant.compress_within(
        tiny_networks.residual(), pictures, out=out, max_drop=1.01, labelled=pictures, settings=SETTINGS
    )
    assert len(sizes) == 2
    assert [made.target_bytes for made in outcome.files] == sizes[:1]
    assert out.stat().st_size == outcome.files[0].report.bytes


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"max_drop": 1.0}, "give them with --labelled"),
        ({"max_drop": 101.0, "labelled": "x"}, "0 to 100 points"),
        ({"max_drop": 1.0, "labelled": "x", "sizes": (1,)}, "not both"),
        ({"max_drop": 1.0, "labelled": "x", "out": None}, "needs trials"),
        ({"out": None, "page": "x.html"}, "leave out --dry-run"),
        ({"sizes": (1,), "ratios": (2.0,)}, "not both"),
        ({"sizes": (1, 2)}, r"put \{bytes\} into the name, such as x-\{bytes\}.pqmodel"),
        ({"ratios": (1.0, 2.0)}, r"put \{bytes\} or \{ratio\} into the name"),
    ],
)
def test_contradictions_are_refused(order: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Order(**{"out": "x.pqmodel", **order})


def test_the_page_and_the_file_have_names_of_their_own(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="a page is asked for")
    out = tmp_path / "x"
    with pytest.raises(InputError, match="is the name of the file too"):
        Order(out=out, page=str(out)).check_files([pictures])
    with pytest.raises(InputError, match="there is no folder"):
        Order(out=out, page=tmp_path / "gone" / "x").check_files([pictures])


def test_command_with_a_page(pictures: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="a page is asked for")
    page = tmp_path / "x.html"
    assert main([*command(pictures), "--out", str(tmp_path / "{bytes}.pqmodel"), "--report", str(page)]) == 0
    text = page.read_text(encoding="utf-8")
    assert "What bytes buy" in text
    assert "11000.pqmodel" in text


def test_impossible_sizes_are_refused_together_before_the_work(
    inputs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planning, "measure_curves", lambda *_, **__: pytest.fail("the work has begun"))
    sizes = [1_000, 12_000, 90_000_000]
    with pytest.raises(ConfigError, match=r"a file of 1,000, 90,000,000 bytes is not possible.*the smallest has"):
        pyquant.compress_sizes(
            tiny_networks.residual(), inputs, out=tmp_path / "{bytes}", target_bytes=sizes, settings=SETTINGS
        )
    with pytest.raises(ConfigError, match="12,000 bytes is asked for more than once"):
        pyquant.plan_sizes(tiny_networks.residual(), inputs, target_bytes=[12_000, 12_000], settings=SETTINGS)
    assert not list(tmp_path.iterdir())


def test_labelled_pictures_are_looked_at_before_the_work(
    inputs: np.ndarray, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "learn", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(InputError, match="3 class folders do not fit 5 outputs"):
        pyquant.compress_sizes(
            tiny_networks.residual(5), inputs, out=tmp_path / "x", labelled=pictures, settings=SETTINGS
        )
    with pytest.raises(InputError, match="labelled pictures need a size"):
        pyquant.compress_sizes(tiny_networks.residual(), inputs, out=tmp_path / "x", labelled=pictures)


def test_names_of_files() -> None:
    assert Target(bytes=1500, ratio=None).named("a/net-{bytes}.pqmodel") == Path("a/net-1500.pqmodel")
    assert Target(bytes=1500, ratio=29.5).named("{ratio}-{bytes}") == Path("29.5-1500")
    assert Target(bytes=1500, ratio=29.0).named("{other}") == Path("{other}")
    check_names("{ratio}", True)
    with pytest.raises(ConfigError, match="several sizes need a file each"):
        check_names("{ratio}", False)


def test_targets_a_little_above_the_largest_file_are_met() -> None:
    check_possible([Target(bytes=1_005)], 100, 1_000)
    with pytest.raises(ConfigError, match="1,020 bytes is not possible"):
        check_possible([Target(bytes=1_020)], 100, 1_000)


def test_a_target_is_positive() -> None:
    from pyquant.capture import capture

    graph = capture(tiny_networks.residual(), SHAPE).graph
    with pytest.raises(ConfigError, match="ratio must be positive, got -1"):
        targets_of(graph, (), (-1.0,))


@pytest.mark.parametrize("memory_bytes", [0, 1 << 20])
def test_kept_inputs_are_read_once(memory_bytes: int, rng: np.random.Generator) -> None:
    array = rng.standard_normal((37, 1, 2, 2), dtype=np.float32)
    reads: list[slice] = []

    def read(rows: slice) -> np.ndarray:
        reads.append(rows)
        return array[rows]

    kept = KeptInputs(Calibration(count=37, shape=(1, 2, 2), read=read), memory_bytes)
    for _ in range(2):
        for rows in (slice(0, 16), slice(32, 37), slice(0, 36, 3), slice(5, 30, 7), slice(3, 3), slice(36, 40)):
            np.testing.assert_array_equal(kept.calibration.read(rows), array[rows])
        np.testing.assert_array_equal(kept.calibration.load(1), array[16:32])
    assert len([rows for rows in reads if rows.start < rows.stop]) == 3
    kept.close()


def command(pictures: Path) -> list[str]:
    return ["compress", "tiny_networks:residual", "--calibration", str(pictures), "--input-shape", f"3,{SIDE},{SIDE}",
            "--method", "abgd", "--threads", "1", "--target-size", "11kB", "--target-size", "15kB"]  # fmt: skip


def test_command_for_several_sizes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*command(pictures), "--out", str(tmp_path / "{bytes}.pqmodel"), "--labelled", str(pictures)]
    assert main([*arguments, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [entry["target_bytes"] for entry in files] == [11_000, 15_000]
    assert files[0]["accuracy"]["pictures"] == 12
    assert {"predicted_output_error", "output_error", "ratio", "layers"} <= set(files[0])
    assert read_model(files[1]["file"]).provenance["target_bytes"] == 15_000
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "measured" in printed
    assert "top-1 on 12 pictures" in printed


def test_dry_run_of_several_sizes(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*command(pictures), "--dry-run", "--out", str(tmp_path / "{bytes}.pqmodel")]
    assert main([*arguments, "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["plans"]) == 2
    assert main(arguments) == 0
    assert "predicted" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_command_for_a_permitted_drop(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "compress", "tiny_networks:residual", "--calibration", str(pictures), "--input-shape", f"3,{SIDE},{SIDE}",
        "--method", "abgd", "--threads", "1", "--max-drop", "100", "--labelled", str(pictures),
        "--out", str(tmp_path / "x.pqmodel"),
    ]  # fmt: skip
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "standard error" in printed
    assert "the smallest that is possible" in printed
