"""Values in bytes between the layers of a network: which layers hand them on, and what networks compute so."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, values_of, weighted_layer, with_ranges
from numpy.typing import NDArray
from test_runtime_fast import ISAS, candidates, run

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.graph import Graph, Node
from pyquant.runtime import Model

Floats = NDArray[np.float32]


def scaled_layer(
    rng: np.random.Generator, name: str, source: str, shape: tuple[int, ...], config: Any, **attributes: Any
) -> tuple[Node, dict[str, np.ndarray]]:
    """Return a layer whose outputs are about as large as its inputs."""
    node, own = weighted_layer(rng, shape, config, name=name, inputs=(source,), output=name, **attributes)
    return node, own | {f"{name}.scale": np.full(shape[0], np.prod(shape[1:]) ** -0.5, np.float32)}


def chain(rng: np.random.Generator) -> tuple[list[Node], dict[str, np.ndarray]]:
    """Return layers of every way to hand bytes on: pooled, added, clamped, curved, and read by layers in fp32."""
    codec = ProductConfig(block=(4, 1, 1), centroids=32)
    spatial = ProductConfig(block=(1, 3, 3), centroids=32)
    tensors: dict[str, np.ndarray] = {}

    def layer(name: str, source: str, shape: tuple[int, ...], config: Any, **attributes: Any) -> Node:
        node, own = scaled_layer(rng, name, source, shape, config, **attributes)
        tensors.update(own)
        return node

    def plain(op: str, name: str, *inputs: str, **attributes: Any) -> Node:
        return Node(op=op, name=name, inputs=inputs, outputs=(name,), attributes=attributes)

    padded = {"padding": (1, 1, 1, 1)}
    nodes = [
        layer("stem", "x", (10, 3, 3, 3), DenseConfig(), **padded),
        plain("relu", "r0", "stem"),
        plain("max_pool2d", "pool", "r0", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
        layer("a", "pool", (10, 10, 1, 1), codec),
        plain("relu6", "r1", "a"),
        layer("b", "r1", (10, 10, 3, 3), spatial, **padded),
        plain("add", "sum", "b", "pool"),
        plain("relu", "r2", "sum"),
        layer("c", "r2", (12, 10, 1, 1), codec),
        plain("silu", "curve", "c"),
        layer("d", "curve", (12, 12, 1, 1), codec),
        plain("add", "sum2", "d", "curve"),
        plain("avg_pool2d", "mean", "sum2", kernel=(2, 2), stride=(2, 2), padding=(0, 0)),
        layer("depthwise", "mean", (12, 1, 3, 3), spatial, groups=12, **padded),
        plain("adaptive_avg_pool2d", "pooled", "depthwise", output_size=(1, 1)),
        plain("flatten", "flat", "pooled"),
        layer("fc", "flat", (7, 12), codec),
    ]
    return nodes, tensors


@pytest.mark.parametrize("calibrated", [False, True])
def test_network(calibrated: bool, rng: np.random.Generator) -> None:
    nodes, tensors = chain(rng)
    x = rng.standard_normal((2, 3, 21, 18)).astype(np.float32)
    file = model_file(nodes, tensors, x.shape)
    exact = Model(file)(x)
    if calibrated:
        file = with_ranges(file, values_of(file, x))
    steps = Model(file, precision="fast").profile(x)["steps"]
    assert sum(step["kernel"] in ("direct8", "matrix8", "table8") for step in steps) >= 4
    first = run(file, x, isa="reference", threads=1)
    assert np.abs(first - exact).max() <= 0.1 * np.abs(exact).max()
    kernels = ("direct8", "matrix8", "winograd8", "table8", "shuffle8", "direct")
    steps = Model(file, precision="fast", isa="reference", kernel="winograd8").profile(x)["steps"]
    assert "winograd8" in [step["kernel"] for step in steps]
    for kernel, isa, threads in product(kernels, ISAS, (1, 2)):
        got = run(file, x, isa=isa, kernel=kernel, threads=threads)
        assert np.abs(got - exact).max() <= 0.1 * np.abs(exact).max(), (kernel, isa, threads)
    # A run does not change the next one.
    model = Model(file, precision="fast")
    once = model(x)
    model(2 * x)
    np.testing.assert_array_equal(model(x), once)


def check_steps_in_bytes(nodes: list[Node], tensors: dict[str, np.ndarray], x: Floats, steps: list[str]) -> None:
    """Compare a network with itself in fp32 and on each instruction set, and its steps with those expected."""
    file = model_file(nodes, tensors, x.shape)
    exact = Model(file)(x)
    measured = run(file, x)
    file = with_ranges(file, values_of(file, x))
    first = run(file, x, isa="reference", kernel="direct8")
    for isa, threads in product(ISAS, (1, 3)):
        got = run(file, x, isa=isa, kernel="direct8", threads=threads)
        assert np.abs(got - first).max() <= 1e-5 * np.abs(exact).max()
    for got in (first, measured):
        assert np.abs(got - exact).max() <= 0.1 * np.abs(exact).max()
    profile = Model(file, precision="fast", kernel="direct8").profile(x)
    assert [step["op"] for step in profile["steps"]] == steps


def test_pyramid_stays_in_bytes(rng: np.random.Generator) -> None:
    """A level is pooled, enlarged again, added to the one before and read: none of it needs floats."""
    codec = ProductConfig(block=(4, 1, 1), centroids=32)
    stem, a = scaled_layer(rng, "stem", "x", (10, 8, 1, 1), codec)
    top, b = scaled_layer(rng, "top", "pool", (10, 10, 1, 1), codec)
    lateral, c = scaled_layer(rng, "lateral", "stem", (10, 10, 1, 1), codec)
    out, d = scaled_layer(rng, "out", "sum", (7, 10, 3, 3), codec, padding=(1, 1, 1, 1))
    window = {"kernel": (2, 2), "stride": (2, 2)}
    nodes = [
        stem,
        Node(op="max_pool2d", name="pool", inputs=("stem",), outputs=("pool",), attributes=window),
        top,
        lateral,
        Node(op="upsample_like", name="up", inputs=("top", "lateral"), outputs=("up",), attributes={"mode": "nearest"}),
        Node(op="add", name="sum", inputs=("lateral", "up"), outputs=("sum",)),
        out,
    ]
    x = rng.standard_normal((2, 8, 21, 18)).astype(np.float32)
    steps = ["quantize", "conv2d", "max_pool2d", "conv2d", "upsample_like", "conv2d+add", "conv2d"]
    check_steps_in_bytes(nodes, {**a, **b, **c, **d}, x, steps)


@pytest.mark.parametrize(("outputs", "between"), [(("y",), ["dequantize"]), (("pool", "y"), [])])
def test_floats_are_picked_from_bytes_where_they_are_fewer(
    outputs: tuple[str, ...], between: list[str], rng: np.random.Generator
) -> None:
    """Behind a first layer in integers, whose next one is in floats; values that leave the network are not rounded."""
    stem, a = scaled_layer(rng, "stem", "x", (8, 3, 7, 7), DenseConfig(), padding=(3, 3, 3, 3), stride=(2, 2))
    window = {"kernel": (3, 3), "stride": (2, 2), "padding": (1, 1)}
    pool = Node(op="max_pool2d", name="pool", inputs=("stem",), outputs=("pool",), attributes=window)
    conv, b = scaled_layer(rng, "y", "pool", (9, 8, 3, 3), DenseConfig(), padding=(1, 1, 1, 1))
    x = rng.standard_normal((1, 3, 40, 41), dtype=np.float32)
    file = model_file([stem, pool, conv], {**a, **b}, x.shape)
    values = values_of(file, x)
    graph = replace(file.network.graph, outputs=outputs)
    file = with_ranges(replace(file, network=replace(file.network, graph=graph)), values)
    model = Model(file, kernel="winograd2", precision="fast")
    steps = model.profile(x)["steps"]
    assert [step["op"] for step in steps] == ["quantize", "conv2d", "max_pool2d", *between, "conv2d"]
    got = model(x)
    for name, value in (got if isinstance(got, dict) else {"y": got}).items():
        assert np.abs(value - values[name]).max() < 0.05 * np.abs(values[name]).max()


@pytest.mark.parametrize("activation", ["relu", "relu6"])
@pytest.mark.parametrize("centroids", [16, 32])
def test_residuals_of_shuffled_tables(activation: str, centroids: int, rng: np.random.Generator) -> None:
    """Outputs are finished by the kernel that adds them up: tiles end within an image, rows within a register."""
    codec = ProductConfig(block=(4, 1, 1), centroids=centroids)
    stem, a = scaled_layer(rng, "stem", "x", (70, 12, 1, 1), codec)
    inner, b = scaled_layer(rng, "inner", "stem", (70, 70, 1, 1), codec)
    total = Node(op="add", name="sum", inputs=("inner", "stem"), outputs=("sum",))
    clamp = Node(op=activation, name="clamp", inputs=("sum",), outputs=("clamp",))
    last, c = scaled_layer(rng, "last", "clamp", (5, 70, 1, 1), codec)
    x = 4 * rng.standard_normal((3, 12, 9, 7)).astype(np.float32)
    file = model_file([stem, inner, total, clamp, last], {**a, **b, **c}, x.shape)
    file = with_ranges(file, values_of(file, x))
    first = run(file, x, isa="reference", kernel="shuffle8")
    exact = Model(file)(x)
    assert np.abs(first - exact).max() <= 0.05 * np.abs(exact).max()
    for isa, threads in product((isa for isa in ISAS if "shuffle8" in candidates(file, x, isa=isa)), (1, 3)):
        got = run(file, x, isa=isa, kernel="shuffle8", threads=threads)
        np.testing.assert_allclose(got, first, rtol=0, atol=1e-6 * np.abs(first).max(), err_msg=isa)


@pytest.mark.parametrize("channels", [8, 6, 1])
@pytest.mark.parametrize("factor", [(2, 2), (4, 1)])
def test_transposed_convolution_stays_in_bytes(
    channels: int, factor: tuple[int, int], rng: np.random.Generator
) -> None:
    first, a = scaled_layer(rng, "first", "x", (4 * channels, 8, 1, 1), DenseConfig())
    last, b = scaled_layer(rng, "last", "relu", (5, channels, 1, 1), DenseConfig())
    attributes = {"factor": factor}
    shuffle = Node(op="pixel_shuffle", name="pixels", inputs=("first",), outputs=("pixels",), attributes=attributes)
    relu = Node(op="relu", name="relu", inputs=("pixels",), outputs=("relu",))
    x = rng.standard_normal((3, 8, 5, 7)).astype(np.float32)
    steps = ["quantize", "conv2d+relu", "pixel_shuffle", "conv2d"]
    check_steps_in_bytes([first, shuffle, relu, last], {**a, **b}, x, steps)


def test_value_that_is_an_output_too(rng: np.random.Generator) -> None:
    nodes, tensors = chain(rng)
    x = rng.standard_normal((1, 3, 9, 9)).astype(np.float32)
    file = model_file(nodes, tensors, x.shape)
    ranges = np.array([(-8, 8)] * len(file.network.graph.infer_shapes()), np.float32)
    outputs = ("pool", "r1", "r2", "x", "fc")
    graph: Graph = replace(file.network.graph, outputs=outputs)
    network = replace(file.network, graph=graph).with_activation_ranges(ranges)
    got = Model(replace(file, network=network), precision="fast")(x)
    expected = Model(replace(file, network=network))(x)
    assert isinstance(got, dict)
    assert isinstance(expected, dict)
    np.testing.assert_array_equal(got["x"], x)
    for name in outputs:
        assert np.abs(got[name] - expected[name]).max() < 0.5, name
