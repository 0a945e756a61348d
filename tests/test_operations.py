"""Bounds on bit operations: what is planned keeps to them, alone and beside a size, and they go where they help."""

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDE

from pyquant.choose import Recipe, parse_rule
from pyquant.errors import ConfigError
from pyquant.file import read_model
from pyquant.graph import Graph
from pyquant.report import bit_operations

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import click  # noqa: E402
import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.cli import main  # noqa: E402
from pyquant.cli.options import operations  # noqa: E402
from pyquant.compression import compress, plan  # noqa: E402

SHAPE = (3, SIDE, SIDE)


def network() -> nn.Module:
    return tiny_networks.residual()


def dense_operations() -> int:
    return bit_operations(capture(network(), SHAPE).graph)


def planned_graph(path: Path) -> Graph:
    return read_model(path).network.graph


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((24, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("codecs", [("product",), ("scalar",), ("sparse",), ("product", "scalar", "sparse")])
@pytest.mark.parametrize("most", [0.08, 0.2])
def test_the_file_has_few_enough(inputs: np.ndarray, tmp_path: Path, codecs: tuple[str, ...], most: float) -> None:
    out = tmp_path / "x.pqmodel"
    report = compress(network(), inputs, out=out, recipe=Recipe(codecs=codecs), max_bit_operations=most, threads=1)
    assert 0.8 * most < report.bit_operations / dense_operations() <= most
    assert report.bit_operations == bit_operations(planned_graph(out))
    provenance = read_model(out).provenance
    assert provenance["max_bit_operations"] == most
    assert "preset" not in provenance


def test_numbers_and_shares_are_the_same(inputs: np.ndarray) -> None:
    dense = dense_operations()
    by_share = plan(network(), inputs, max_bit_operations=0.1, threads=1)
    by_number = plan(network(), inputs, max_bit_operations=int(0.1 * dense), threads=1)
    assert by_share.choices == by_number.choices
    assert by_share.bit_operations <= 0.1 * dense
    assert by_share.to_json()["bit_operations"] == by_share.bit_operations


def test_fewer_cost_more(inputs: np.ndarray) -> None:
    shares = (0.03, 0.05, 0.1, 0.2, 0.99)
    errors = [plan(network(), inputs, max_bit_operations=share, threads=1).output_error for share in shares]
    assert all(more < less for less, more in pairwise(errors))


def test_beside_a_size(inputs: np.ndarray) -> None:
    """A bound that the size alone would not keep to takes effect, and costs something; one that it would is free."""
    size = 20_000
    free = plan(network(), inputs, target_bytes=size, threads=1)
    loose = plan(network(), inputs, target_bytes=size, max_bit_operations=1.01 * free.bit_operations, threads=1)
    assert loose.output_error < 1.2 * free.output_error
    most = int(0.9 * free.bit_operations)
    tight = plan(network(), inputs, target_bytes=size, max_bit_operations=most, threads=1)
    assert tight.bit_operations <= most
    assert 0.99 * size <= tight.bytes <= size
    assert tight.output_error > free.output_error


def test_what_is_impossible_is_refused(inputs: np.ndarray) -> None:
    with pytest.raises(
        ConfigError, match=r"1,000 bit operations for one input are not possible.*the least are [0-9,]+"
    ):
        plan(network(), inputs, max_bit_operations=1000)
    rules = tuple(parse_rule(text) for text in ("*=dense", "block.conv1=scalar:4"))
    with pytest.raises(ConfigError, match="not possible for this network with these rules"):
        plan(network(), inputs, recipe=Recipe(rules=rules), max_bit_operations=0.5)
    with pytest.raises(ConfigError, match=r"file of this size with at most [0-9,]+ bit operations; .* the fewest have"):
        plan(network(), inputs, target_bytes=24_000, max_bit_operations=0.1)
    for wrong in (0, -1, float("inf"), float("nan")):
        with pytest.raises(ConfigError, match="max_bit_operations must be a positive number"):
            plan(network(), inputs, max_bit_operations=wrong)


@pytest.mark.parametrize(
    ("text", "expected"), [("20G", 20e9), ("1.5T", 1.5e12), ("300 M", 3e8), ("5%", 0.05), ("0.5%", 0.005), ("12", 12)]
)
def test_texts(text: str, expected: float) -> None:
    assert operations(text) == pytest.approx(expected)


@pytest.mark.parametrize("text", ["", "G", "0%", "100%", "-3G", "1e9", "0.5", "3Gi"])
def test_texts_that_say_nothing(text: str) -> None:
    with pytest.raises(click.BadParameter, match="expected a number of bit operations such as 20G"):
        operations(text)


def test_command(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["compress", "tiny_networks:residual", "--input-shape", f"3,{SIDE},{SIDE}", "--max-bops", "10%"]
    assert main([*arguments, "--dry-run"]) == 0
    assert "bit operations per input" in capsys.readouterr().out
    assert main([*arguments, "--dry-run", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["bit_operations"] <= 0.1 * dense_operations()


@pytest.mark.parametrize(("method", "codec"), [("obq", "scalar"), ("exactobs", "sparse"), ("pqf", "product")])
def test_where_a_target_decides_the_preset_need_not_suit_the_method(
    inputs: np.ndarray, method: str, codec: str
) -> None:
    preset = "int4" if codec == "product" else "small-blocks"
    for target in ({"target_bytes": 14_500}, {"max_bit_operations": 0.2}):
        found = plan(network(), inputs, recipe=Recipe(preset=preset), method=method, threads=1, **target)
        assert {layer.codec for layer in found.layers} <= {codec, "dense"}
    with pytest.raises(ConfigError, match=f"method '{method}' codes layers in the codec '{codec}', and there is none"):
        plan(network(), inputs, recipe=Recipe(preset=preset), method=method, threads=1)
