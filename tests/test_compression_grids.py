"""Networks compressed to grids: presets, rules, rates and sizes, alone and beside codebooks."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")

import tiny_networks  # noqa: E402

import pyquant  # noqa: E402
from pyquant.choose import Recipe, parse_rule  # noqa: E402
from pyquant.codecs import DenseConfig, ProductConfig, ScalarConfig  # noqa: E402
from pyquant.errors import ConfigError  # noqa: E402
from pyquant.file import dumps, read_model, read_storage  # noqa: E402
from pyquant.learn import methods  # noqa: E402


@pytest.fixture(scope="module")
def inputs() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((64, 3, SIDE, SIDE), dtype=np.float32)


def compressed(inputs: np.ndarray | None, out: Path, *rules: str, preset: str = "int4", **options: Any) -> Any:
    recipe = Recipe(preset=preset, rules=tuple(map(parse_rule, rules)))
    options = {"input_shape": (3, SIDE, SIDE), "threads": 1, **options}
    return pyquant.compress(tiny_networks.residual(), inputs, out=out, recipe=recipe, **options)


def codecs_of(path: Path) -> dict[str, Any]:
    return {node.name: weight.codec for node, weight in read_model(path).network.graph.weighted()}


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_presets(bits: int, calibrated: bool, inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    report = compressed(inputs if calibrated else None, out, preset=f"int{bits}")
    codecs = codecs_of(out)
    assert codecs.pop("conv") == DenseConfig()
    assert set(codecs.values()) == {ScalarConfig(bits=bits)}
    rows = {row.name: row for row in report.layers}
    assert rows["block.conv1"].levels == 2**bits
    assert rows["conv"].reason == "the first convolution"
    assert rows["wide"].bits_per_weight < bits + 3  # a step and a zero for 16 weights
    if calibrated:
        assert rows["block.conv1"].relative_output_error < {2: 0.3, 3: 0.05, 4: 0.02, 8: 1e-4}[bits]


def test_the_method_is_the_one_of_the_codec(inputs: np.ndarray, tmp_path: Path) -> None:
    """`obq` brings its own preset; and grids are learnt by it, whatever the method is called."""
    files = []
    for options in ({"method": "obq"}, {"recipe": Recipe(preset="int4")}):
        out = tmp_path / "x.pqmodel"
        pyquant.compress(tiny_networks.residual(), inputs, out=out, threads=1, **options)
        files.append(read_model(out).network)
    assert files[0].graph == files[1].graph
    for name, tensor in files[0].tensors.items():
        np.testing.assert_array_equal(tensor, files[1].tensors[name])


def test_grids_and_codebooks_in_one_network(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    compressed(inputs, out, "block.*=scalar:3", "fc=dense", preset="small-blocks", method="abgd")
    codecs = codecs_of(out)
    assert codecs["block.conv1"] == codecs["block.conv2"] == ScalarConfig(bits=3)
    assert isinstance(codecs["wide"], ProductConfig)
    assert codecs["fc"] == DenseConfig()


def test_a_rate_makes_the_file_smaller(inputs: np.ndarray, tmp_path: Path) -> None:
    sizes, errors = [], []
    for rule in ("block.conv1=scalar:6", "block.conv1=scalar:6;rate:3", "block.conv1=scalar:6;rate:1.5"):
        out = tmp_path / "x.pqmodel"
        report = compressed(inputs, out, rule)
        row = next(row for row in report.layers if row.name == "block.conv1")
        sizes.append(report.bytes)
        errors.append(row.relative_output_error)
        assert parse_rule(rule).codec == codecs_of(out)["block.conv1"]
    assert sizes == sorted(sizes, reverse=True)
    assert errors == sorted(errors)
    assert read_model(out).network.graph.node("block.conv1").weight.codec.weight_bits == 1.5


@pytest.mark.parametrize("calibrated", [True, False])
def test_layers_of_one_rule_share_its_rate(calibrated: bool, inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    compressed(inputs if calibrated else None, out, "*=scalar:4;rate:1.5", "conv=scalar:8", "fc=scalar:4;rate:2")
    codecs = codecs_of(out)
    assert codecs.pop("conv") == ScalarConfig(bits=8)
    assert codecs.pop("fc") == ScalarConfig(bits=4, rate=2)
    rates = {name: codec.rate for name, codec in codecs.items()}
    assert len(set(rates.values())) > 1
    sizes = {name: 2304 if "block" in name else 1024 for name in rates}
    assert sum(rates[name] * sizes[name] for name in rates) == pytest.approx(1.5 * sum(sizes.values()), rel=1e-3)
    assert all(codec.bits >= codec.rate + 1 for codec in codecs.values())


@pytest.mark.parametrize(
    "options",
    [
        {"recipe": Recipe(rules=(parse_rule("*=scalar:4;rate:1.5"),))},
        {"recipe": Recipe(preset="small-blocks", rules=(parse_rule("block.*=scalar:2"),)), "method": "abgd"},
        {"target_bytes": 13_000},
    ],
)
def test_fine_tuning_keeps_to_rates_and_sizes(options: dict[str, Any], inputs: np.ndarray, tmp_path: Path) -> None:
    """The outputs come no further away, and no weight takes more bytes than it may."""
    errors = []
    for steps in (0, 20):
        out = tmp_path / f"{steps}.pqmodel"
        module = tiny_networks.residual()
        report = pyquant.compress(module, inputs, out=out, threads=1, finetune_steps=steps, **options)
        assert report.bytes <= options.get("target_bytes", report.bytes)
        model, stored = read_model(out), read_storage(out).tensor_bytes
        for _, weight in model.network.graph.weighted():
            if isinstance(weight.codec, ScalarConfig) and weight.codec.rate:
                taken = sum(stored[weight.tensor(role)] for role in ("codes", "step", "zero"))
                assert taken <= weight.codec.coded_bytes(weight.shape)
        expected = module(torch.from_numpy(inputs)).detach().numpy()
        errors.append(np.square(pyquant.load(out)(inputs) - expected).sum())
    # On pictures held back they come no further away. Bytes of a target are shared out anew, without those.
    assert errors[1] <= 1.2 * errors[0] or "target_bytes" in options


def test_a_stopped_job_goes_on(inputs: np.ndarray, tmp_path: Path) -> None:
    files = []
    for out in ("a", "b", "a"):
        compressed(inputs, tmp_path / out, "[wb]*=scalar:5;rate:2", checkpoint=tmp_path / f"{out} job")
        files.append((tmp_path / out).read_bytes())
    assert files[0] == files[1] == files[2]


def test_plans_and_sizes(inputs: np.ndarray, tmp_path: Path) -> None:
    module, recipe = tiny_networks.residual(), Recipe(rules=(parse_rule("block.*=scalar:4"),))
    plan = pyquant.plan(module, inputs, recipe=recipe, threads=1)
    out = tmp_path / "x.pqmodel"
    report = pyquant.compress(module, inputs, out=out, recipe=recipe, threads=1)
    assert report.bytes <= plan.bytes
    assert 0 < plan.errors["block.conv1"] < 0.1
    assert plan.errors["block.conv1"] > pyquant.plan(
        module, inputs, recipe=Recipe(rules=(parse_rule("block.*=scalar:6"),)), threads=1
    ).errors["block.conv1"]  # fmt: skip
    size = len(dumps(read_model(out), fixed_length=True)) + 500
    report = pyquant.compress(module, inputs, out=out, recipe=recipe, threads=1, target_bytes=size)
    assert 0.99 * size <= report.bytes <= size
    assert codecs_of(out)["block.conv1"] == ScalarConfig(bits=4)


@pytest.mark.parametrize("size", [11_000, 13_000, 14_500])
@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({"recipe": Recipe(codecs=("product",))}, {"product"}),
        ({"recipe": Recipe(codecs=("scalar",))}, {"scalar"}),
        ({"recipe": Recipe(codecs=("scalar", "product")), "method": "abgd"}, {"product", "scalar"}),
        ({"method": "abgd"}, {"product"}),
        ({"method": "obq"}, {"scalar"}),
        ({}, {"product", "scalar"}),
    ],
)
def test_sizes_choose_from_codecs(
    size: int, options: dict[str, Any], found: set[str], inputs: np.ndarray, tmp_path: Path
) -> None:
    module, out = tiny_networks.residual(), tmp_path / "x.pqmodel"
    planned = pyquant.plan(module, inputs, target_bytes=size, threads=1, **options)
    report = pyquant.compress(module, inputs, out=out, target_bytes=size, threads=1, **options)
    assert 0.99 * size <= report.bytes == out.stat().st_size <= planned.bytes <= size
    codecs = {node.name: weight.codec_name for node, weight in read_model(out).network.graph.weighted()}
    assert set(codecs.values()) - {"dense"} <= found
    at_rates = {name for name, codec in codecs_of(out).items() if isinstance(codec, ScalarConfig) and codec.rate}
    assert bool(at_rates) == ("rans" in read_storage(out).features)
    assert dumps(read_model(out)) == out.read_bytes()


def test_a_rule_at_a_rate_goes_with_a_size(inputs: np.ndarray, tmp_path: Path) -> None:
    recipe = Recipe(rules=(parse_rule("block.*=scalar:4;rate:1.5"),))
    out = tmp_path / "x.pqmodel"
    report = pyquant.compress(
        tiny_networks.residual(), inputs, out=out, recipe=recipe, threads=1, target_bytes=9_000
    )  # fmt: skip
    assert 0.99 * 9_000 <= report.bytes <= 9_000
    first, second = (codecs_of(out)[f"block.conv{i}"].rate for i in (1, 2))
    assert first != second
    assert first + second == pytest.approx(3, rel=1e-3)


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize(
    "setting",
    [
        *(f"scalar:4;rate:{rate}" for rate in (1.0, 1.5, 2.2, 3.9)),
        *(f"block:1,1,1;centroids:16;rate:{rate}" for rate in (0.5, 2.5, 4)),
        "block:1,1,3;centroids:32;codebook:int8;rate:1.2",
        "block:2,1,1;centroids:8;codebooks:2;rate:2",
    ],
)
def test_codes_take_no_more_than_their_rate(setting: str, calibrated: bool, inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    compressed(inputs if calibrated else None, out, f"block.conv1={setting}")
    codec = codecs_of(out)["block.conv1"]
    assert codec == parse_rule(f"x={setting}").codec
    stored = read_storage(out).tensor_bytes
    planned = codec.planned_bytes((16, 16, 3, 3))
    most = sum(planned.values())
    assert 0.97 * most <= sum(stored[f"block.conv1.{role}"] for role in planned) <= most


def test_codebooks_at_a_rate(inputs: np.ndarray, tmp_path: Path) -> None:
    """Fewer bits, more error; and the plan knows both."""
    errors, predicted, sizes = [], [], []
    for rate in ("", ";rate:1.3", ";rate:0.8"):
        rule = f"block.conv1=block:1,1,3;centroids:32{rate}"
        out = tmp_path / "x.pqmodel"
        report = compressed(inputs, out, rule, preset="small-blocks")
        errors.append(next(row for row in report.layers if row.name == "block.conv1").relative_output_error)
        recipe = Recipe(preset="small-blocks", rules=(parse_rule(rule),))
        plan = pyquant.plan(tiny_networks.residual(), inputs, recipe=recipe, threads=1)
        predicted.append(plan.errors["block.conv1"])
        sizes.append(plan.bytes)
        assert dumps(read_model(out)) == out.read_bytes()
    assert errors == sorted(errors)
    assert predicted == sorted(predicted)
    assert sizes == sorted(sizes, reverse=True)


def test_codebooks_of_one_rule_share_its_rate(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    compressed(inputs, out, "[bw]*=block:2,1,1;centroids:16;rate:1.5", preset="small-blocks")
    codecs = {name: codec for name, codec in codecs_of(out).items() if isinstance(codec, ProductConfig) and codec.rate}
    rates = {name: codec.rate for name, codec in codecs.items()}
    assert set(rates) == {"block.conv1", "block.conv2", "wide"}
    assert len(set(rates.values())) > 1
    sizes = {"block.conv1": 2304, "block.conv2": 2304, "wide": 1024}
    assert sum(rates[name] * sizes[name] for name in rates) == pytest.approx(1.5 * sum(sizes.values()), rel=1e-3)


def test_unknown_codecs_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown codec 'grid'; a size target chooses from: product, scalar"):
        Recipe(codecs=("grid",))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"method": "abgd", "preset": "small-blocks", "rules": ("wide=block:4,1,1;centroids:16;rate:0.5",)},
            "layer 'wide': codes of 0.5 bits per weight; method 'abgd' cannot aim at a rate, use 'gram'",
        ),
        (
            {"method": "obq", "preset": "small-blocks"},
            "method 'obq' codes layers in the codec 'scalar', and there is none",
        ),
        (
            {"method": "pqf"},
            "method 'pqf' codes layers in the codec 'product', and there is none; give the preset 'small",
        ),
    ],
)
def test_what_does_not_go_together(options: dict[str, Any], message: str, inputs: np.ndarray, tmp_path: Path) -> None:
    rules = options.pop("rules", ())
    with pytest.raises(ConfigError, match=message):
        compressed(inputs, tmp_path / "x.pqmodel", *rules, **options)
    assert not list(tmp_path.iterdir())


def test_a_codec_that_no_method_learns_is_refused_before_any_work(
    inputs: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(methods, "USUAL", ("gram", "obq"))
    with pytest.raises(ConfigError, match="no method codes layers in the codec 'sparse', as 'sparse:2:4;bits:8' wants"):
        compressed(inputs, tmp_path / "x.pqmodel", "wide=sparse:2:4", preset="small-blocks")
    assert not list(tmp_path.iterdir())
