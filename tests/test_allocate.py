"""Size targets: the file has the size that was asked for, and its bytes are where they lower the error."""

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDE

from pyquant.choose import Choice, Recipe, parse_rule
from pyquant.classes import ClassName
from pyquant.codecs import DenseConfig, ProductConfig, SparseConfig
from pyquant.codecs.sparse import channels_last
from pyquant.errors import ConfigError, InputError
from pyquant.file import dumps, planned_tensors, read_model, read_storage

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402

from pyquant.allocate import allocate, drafted, predicted_errors  # noqa: E402
from pyquant.candidates import CANDIDATE_CENTROIDS, INT8_OVERHEAD, Candidates, candidate_blocks  # noqa: E402
from pyquant.capture import capture  # noqa: E402
from pyquant.cli import main  # noqa: E402
from pyquant.compression import compress, plan  # noqa: E402
from pyquant.graph import Network  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402
from pyquant.planning import LONGEST_ERROR  # noqa: E402
from pyquant.sensitivity import Curve, Curves, made_up_for, measure_curves  # noqa: E402

SHAPE = (3, SIDE, SIDE)


def network(channels: int = 32) -> nn.Module:
    """A residual network with the same weights each time, large enough for its weights to outweigh the header."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        result = tiny_networks.Residual(10, channels)
        for module in result.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 1.0
        with torch.no_grad():
            result(torch.randn(64, *SHAPE))  # batch norms learn the statistics of inputs like the tests'
        return result.eval()


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((24, *SHAPE), dtype=np.float32)


@cache
def captured() -> Network:
    """Return the tiny network as a graph."""
    return capture(network(), SHAPE)


@pytest.fixture(scope="module")
def measured() -> tuple[Network, Curves]:
    """The tiny network and the curves of all its candidates."""
    dense = captured()
    inputs = np.random.default_rng(0).standard_normal((24, *SHAPE), dtype=np.float32)
    blocks = candidate_blocks(Recipe(), dense.graph)
    with Workers(1) as workers:
        return dense, measure_curves(dense, inputs, blocks, seed=0, workers=workers, progress=lambda *_: None)


def without_header(choices: Mapping[str, Choice]) -> int:
    """Return the bytes of the weights in a file; what is kept with an int8 codebook counts."""
    tensors = drafted(captured(), choices).tensors
    size = sum(array.nbytes for name, array in tensors.items() if name.endswith(("codes", "codebook", "weight")))
    return size + INT8_OVERHEAD * sum(name.endswith("codebook_scale") for name in tensors)


def allocated(dense: Network, curves: Curves, size: int) -> dict[str, Choice]:
    """Return the choices for a size, the header not counted."""
    candidates = Candidates(codecs=(ProductConfig,), max_codebooks=4)
    return allocate(dense, Recipe(), curves, target_bytes=size, candidates=candidates, size_of=without_header)


@pytest.mark.parametrize(("method", "target"), [("abgd", 12_000), ("gram", 16_384), ("exactobs", 9_000)])
def test_the_file_has_the_size_that_was_asked_for(inputs: np.ndarray, tmp_path: Path, target: int, method: str) -> None:
    out = tmp_path / "x.pqmodel"
    report = compress(network(), inputs, out=out, method=method, target_bytes=target, threads=1)
    assert 0.99 * target <= report.bytes == out.stat().st_size <= target
    provenance = read_model(out).provenance
    assert provenance["target_bytes"] == target
    assert "preset" not in provenance
    assert (
        ("rans" in read_storage(out).features) == bool(planned_tensors(read_model(out).network)) == (method == "gram")
    )


def test_masks_are_coded_in_a_file_of_a_size(inputs: np.ndarray, tmp_path: Path) -> None:
    """How many weights are kept is known when codecs are chosen, and so what the mask takes at most."""
    out, target = tmp_path / "x.pqmodel", 60_000
    recipe = Recipe(rules=(parse_rule("block.*=sparse:0.1"),))
    report = compress(network(96), inputs, out=out, recipe=recipe, target_bytes=target, threads=1)
    assert 0.99 * target <= report.bytes <= target
    taken = read_storage(out).tensor_bytes
    masks = {name: most for name, most in planned_tensors(read_model(out).network).items() if name.endswith(".mask")}
    assert len(masks) >= 2
    assert all(taken[name] <= most for name, most in masks.items())
    weight = read_model(out).network.graph.node("block.conv1").weight
    assert weight is not None
    assert isinstance(weight.codec, SparseConfig)
    assert taken["block.conv1.mask"] < 0.6 * weight.codec.packed_bytes(weight.shape)["mask"]


def test_the_size_includes_ranges(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    recipe = Recipe(rules=(parse_rule("*=dense"),))  # leaves nothing to predict but ranges
    planned = plan(network(), inputs, recipe=recipe).bytes
    compress(network(), inputs, out=out, recipe=recipe)
    file = read_model(out)
    assert file.network.activation_ranges is not None
    longest = {node.name: LONGEST_ERROR for node, _ in file.network.graph.weighted()}
    noted = replace(file, provenance={**file.provenance, "errors": longest})
    assert planned == len(dumps(noted, fixed_length=True))


def test_the_size_includes_what_is_kept_besides_the_network(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    classes = [ClassName(folder=f"n{index:08d}", name="a long name" * 9) for index in range(10)]
    compress(network(), inputs, out=out, classes=classes, target_bytes=20_000, finetune_steps=1, threads=1)
    assert 0.985 * 20_000 <= out.stat().st_size <= 20_000
    assert "finetune" in read_model(out).provenance


def test_a_ratio_is_a_size(inputs: np.ndarray, tmp_path: Path) -> None:
    report = compress(network(), inputs, out=tmp_path / "x.pqmodel", target_ratio=9, threads=1)
    assert 9 <= report.ratio <= 9.1
    with pytest.raises(ConfigError, match="not both"):
        compress(network(), inputs, out=tmp_path / "x.pqmodel", target_ratio=9, target_bytes=20_000)
    with pytest.raises(ConfigError, match="target size must be positive, got 0"):
        plan(network(), inputs, target_bytes=0)


def test_without_calibration(tmp_path: Path) -> None:
    report = compress(network(), None, out=tmp_path / "x.pqmodel", input_shape=SHAPE, target_bytes=20_000)
    assert 0.99 * 20_000 <= report.bytes <= 20_000


def test_threads_do_not_change_the_plan(inputs: np.ndarray) -> None:
    plans = [plan(network(), inputs, target_bytes=20_000, threads=threads).to_json() for threads in (1, 2, 3)]
    assert plans[0] == plans[1] == plans[2]


def test_more_bytes_less_error(measured: tuple[Network, Curves]) -> None:
    dense, curves = measured
    sizes = (5_000, 6_000, 8_000, 12_000, 20_000, 50_000)
    choices = [allocated(dense, curves, size) for size in sizes]
    for size, choice in zip(sizes, choices, strict=True):
        assert 0.99 * size <= without_header(choice) <= size
    errors = [sum(predicted_errors(choice, curves).values()) for choice in choices]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0] / 10


def test_predicted_error_is_near_the_real_one(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    predicted = plan(network(), inputs, method="abgd", target_bytes=12_000).output_error
    compress(network(), inputs, out=out, method="abgd", target_bytes=12_000)
    import pyquant

    expected = network()(torch.from_numpy(inputs)).detach().numpy()
    real = np.square(pyquant.load(out)(inputs) - expected).sum() / np.square(expected).sum()
    assert real / 5 < predicted < real * 5, (real, predicted)


def test_rules_win(inputs: np.ndarray) -> None:
    rules = tuple(parse_rule(text) for text in ("block.conv1=dense", "*conv2=block:2,3,3;centroids:20"))
    choices = plan(network(), inputs, recipe=Recipe(rules=rules), target_bytes=60_000).choices
    assert choices["block.conv1"] == Choice(codec=DenseConfig(), reason="rule 'block.conv1=dense'")
    assert choices["block.conv2"].codec == ProductConfig(block=(2, 3, 3), centroids=20)


def test_without_a_target_the_recipe_counts(inputs: np.ndarray, tmp_path: Path) -> None:
    recipe = Recipe(preset="large-blocks")
    planned = plan(network(), inputs, recipe=recipe)
    assert planned.choices == recipe.choose(capture(network(), SHAPE).graph)
    report = compress(network(), inputs, out=tmp_path / "x.pqmodel", recipe=recipe, method="abgd")
    assert "rans" in read_storage(report.file).features
    fixed_length = len(dumps(read_model(report.file), fixed_length=True))
    assert report.bytes < fixed_length <= planned.bytes <= 1.01 * fixed_length
    assert planned.output_error > 0


def test_sizes_that_are_out_of_reach_are_named(measured: tuple[Network, Curves]) -> None:
    dense, curves = measured

    def size_at(target: int) -> int:
        return without_header(allocated(dense, curves, target))

    named = r"the smallest has (?P<least>[0-9,]+) bytes, the largest (?P<most>[0-9,]+)"
    for target in (500, 10_000_000):
        with pytest.raises(ConfigError, match=f"file of {target:,} bytes is not possible.*{named}") as caught:
            size_at(target)
        found = re.search(named, str(caught.value))
        assert found is not None
        least, most = (int(found[key].replace(",", "")) for key in ("least", "most"))
        assert size_at(least) == least
        assert size_at(most) == most


def test_bytes_go_where_they_lower_the_error(measured: tuple[Network, Curves]) -> None:
    dense, _ = measured
    blocks = candidate_blocks(Recipe(), dense.graph)
    usual = {"log_centroids": (0.0, 5.0), "log_errors": (0.0, -3.0)}

    def bits(sensitive: str) -> float:
        curves = {
            (name, block): Curve(num_blocks=2000, factor=10.0 if name == sensitive else 0.1, **usual)
            for name in blocks
            for block in blocks[name]
        }
        choices = allocated(dense, curves, 6_000)
        assert sum(predicted_errors(choices, curves).values()) > 0
        return choices["block.conv1"].codec.weight_bits

    assert bits("block.conv1") > 1.5 * bits("block.conv2")


def test_measured_errors_fall_with_centroids_and_rise_with_blocks(measured: tuple[Network, Curves]) -> None:
    _, curves = measured
    for (_, block), curve in curves.items():
        errors = [curve.error(ProductConfig(block=block, centroids=count)) for count in CANDIDATE_CENTROIDS]
        assert errors == sorted(errors, reverse=True)
    small, large = (
        curves["block.conv1", block].error(ProductConfig(block=block, centroids=16)) for block in ((1, 1, 3), (2, 3, 3))
    )
    assert small < large


def test_of_sparse_weights_what_is_dropped_is_predicted(measured: tuple[Network, Curves]) -> None:
    dense, curves = measured
    weight = dense.graph.node("block.conv1").weight
    assert weight is not None
    curve = curves["block.conv1", (1, 1, 1)]
    units = channels_last(dense.weight(weight)).reshape(-1, 4).astype(np.float64) ** 2

    def dropped(sums: np.ndarray, share: float) -> float:
        return np.sort(sums.reshape(-1))[: round((1 - share) * sums.size)].sum() / units.sum()

    for kept in (0.05, 0.1, 0.27, 0.5, 0.8):
        anywhere, runs = (curve.weight_error(SparseConfig(kept=kept, run=run)) for run in (1, 4))
        assert anywhere == pytest.approx(dropped(units, kept), rel=0.1, abs=0.01)
        assert runs == pytest.approx(dropped(units.sum(axis=1), kept), rel=0.1, abs=0.01)
        assert anywhere < runs
    for count in (1, 2, 3):
        error = curve.weight_error(SparseConfig(kept=count / 4, of=4))
        assert error == pytest.approx(
            np.sort(units)[:, : 4 - count].sum() / units.sum(), rel=0.3
        )  # its numbers are uniform
    coarse, fine = (curve.weight_error(SparseConfig(kept=0.5, bits=bits)) for bits in (2, 4))
    assert fine < coarse


def test_what_is_kept_makes_up_for_half_of_what_is_dropped(measured: tuple[Network, Curves]) -> None:
    curve = made_up_for(measured[1])["block.conv1", (1, 1, 1)]
    for kept, least, most in ((0.001, 0.9, 1.0), (0.05, 0.5, 1.0), (0.5, 0.5, 0.7), (0.9, 0.45, 0.6)):
        config = SparseConfig(kept=kept)
        assert least < curve.error(config) / (curve.factor * curve.weight_error(config)) < most


def test_drafts_of_sparse_weights_have_their_size() -> None:
    texts = ("*=sparse:0.3;bits:3", "block.*=sparse:2:4;bits:5", "wide=sparse:0.5;run:4;bits:4")
    choices = Recipe(rules=tuple(map(parse_rule, texts))).choose(captured().graph)
    draft = drafted(captured(), choices)
    for _, weight in draft.graph.weighted():
        assert isinstance(weight.codec, SparseConfig)
        taken = sum(tensor.nbytes for tensor in draft.tensors_of(weight).values())
        assert taken == weight.codec.coded_bytes(weight.shape)


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_constant_weights_and_dead_channels(inputs: np.ndarray, value: float) -> None:
    module = network()
    with torch.no_grad():
        module.block.conv1.weight.fill_(value)
        module.wide.weight[:50] = 0
    assert np.isfinite(plan(module, inputs, target_bytes=20_000).output_error)


def test_outputs_that_are_not_finite_are_refused(inputs: np.ndarray) -> None:
    module = network()
    with torch.no_grad():
        module.conv.weight.fill_(1e30)
        module.wide.weight.fill_(1e30)
    with pytest.raises(InputError, match="not finite"):
        plan(module, inputs, target_bytes=20_000)


def test_weights_that_fp16_cannot_hold(inputs: np.ndarray, tmp_path: Path) -> None:
    module = network()
    with torch.no_grad():
        module.block.conv1.weight *= 1e8
        module.block.bn1.running_mean *= 1e8
        module.block.bn1.running_var *= 1e16
    report = compress(module, inputs, out=tmp_path / "x.pqmodel", target_bytes=25_000)
    assert 0.99 * 25_000 <= report.bytes <= 25_000


def test_grouped_depthwise_and_shared_weights(rng: np.random.Generator, tmp_path: Path) -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(1, 32, 5, padding=2)
            self.grouped = nn.Conv2d(32, 32, 3, padding=1, groups=4)
            self.depthwise = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32)
            self.twice = nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.grouped(torch.relu(self.first(x))))
            return self.twice(torch.relu(self.twice(torch.relu(self.depthwise(x)))))

    inputs = rng.standard_normal((8, 1, 16, 16), dtype=np.float32)
    report = compress(Odd().eval(), inputs, out=tmp_path / "x.pqmodel", target_bytes=16_000)
    assert 0.99 * 16_000 <= report.bytes <= 16_000


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.pqmodel"
    arguments = ["compress", "tiny_networks:residual", "--calibration", str(pictures), "--input-shape", "3,32,32"]
    assert main([*arguments, "--target-size", "10kB", "--dry-run", "--json", "--out", str(out)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert 9_900 <= result["bytes"] <= 10_000
    assert sum(layer["predicted_error"] for layer in result["layers"]) == pytest.approx(
        result["predicted_output_error"]
    )
    assert not any(tmp_path.iterdir())
    assert main([*arguments, "--dry-run"]) == 0
    assert "predicted: " in capsys.readouterr().out
    assert main(arguments) == 2  # neither --out nor --dry-run


@pytest.mark.parametrize(
    ("text", "size"),
    [("963000", 963_000), ("12B", 12), ("1.5kB", 1_500), ("2MB", 2_000_000), ("3 KiB", 3_072), ("1.5MiB", 1_572_864)],
)
def test_units(text: str, size: int) -> None:
    from pyquant.cli.options import byte_size

    assert byte_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "kB", "1.5", "1.5.5MB", "-3kB", "0MB", "2GB", "2mb", "1e3B", "nanB", "٣kB", "0.9B"]
)
def test_sizes_that_are_none(text: str) -> None:
    import click

    from pyquant.cli.options import byte_size

    if text == "1.5":
        assert byte_size(text) == 1
        return
    with pytest.raises(click.BadParameter, match=r"such as 1\.5MiB"):
        byte_size(text)


def test_progress_counts_the_work_of_each_trial(measured: tuple[Network, Curves]) -> None:
    dense, _ = measured
    names = list(dict.fromkeys(weight.name for _, weight in dense.graph.weighted()))
    seen: list[tuple[str, int, int]] = []
    inputs = np.zeros((4, *SHAPE), np.float32)
    with Workers(1) as workers:
        measure_curves(
            dense, inputs, {names[0]: [(1, 1, 1)]}, seed=0, workers=workers, progress=lambda *now: seen.append(now)
        )
    assert seen[0][1] == 0
    assert seen[-1][1] == seen[-1][2] > sum(dense.graph.macs([inputs.shape]).values())
    assert {what for what, _, _ in seen} == {"measuring sensitivities"}
