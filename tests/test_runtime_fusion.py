"""Which layers become one step, and that the result stays the same where they may not."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer, with_ranges
from tolerance import assert_close

from pyquant import _core, reference
from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.graph import Node
from pyquant.runtime import Model

CODEC = ProductConfig(block=(2, 1, 1), centroids=9)


def node(op: str, name: str, *inputs: str) -> Node:
    return Node(op=op, name=name, inputs=inputs, outputs=(f"{name}_out",))


def run(nodes: list[Node], tensors: dict[str, np.ndarray], x: np.ndarray) -> list[str]:
    """Compare the network with the reference; return the operations of its steps."""
    file = model_file(nodes, tensors, x.shape)
    model = Model(file, threads=2)
    got = model(x)
    (expected,) = reference.run(file.network, x).values()
    assert isinstance(got, np.ndarray)
    assert_close(got, expected, terms=64)
    return [step["op"] for step in model.profile(x)["steps"]]


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((2, 6, 5, 9)).astype(np.float32)


def test_convolution_takes_residual_and_activation(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    steps = run([conv, node("add", "sum", "x", "y"), node("relu", "act", "sum_out")], tensors, x)
    assert steps == ["conv2d+add+relu"]


def test_the_later_of_two_convolutions_takes_the_sum(x: np.ndarray, rng: np.random.Generator) -> None:
    first, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC, name="first", output="a")
    second, more = weighted_layer(rng, (6, 6, 1, 1), DenseConfig(), name="second", output="b")
    for order in (("a", "b"), ("b", "a")):
        steps = run([first, second, node("add", "sum", *order), node("silu", "act", "sum_out")], {**tensors, **more}, x)
        assert steps == ["conv2d", "conv2d+add+silu"]


def test_value_with_two_readers_is_not_fused(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    steps = run([conv, node("relu", "act", "y"), node("add", "sum", "act_out", "y")], tensors, x)
    assert steps == ["conv2d", "relu", "add"]


def test_activation_before_the_sum_stays_before_it(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    steps = run([conv, node("relu", "act", "y"), node("add", "sum", "act_out", "x")], tensors, x)
    assert steps == ["conv2d+relu", "add"]


def test_two_sums_do_not_fit_one_step(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    steps = run([conv, node("add", "one", "y", "x"), node("add", "two", "one_out", "x")], tensors, x)
    assert steps == ["conv2d+add", "add"]


def test_doubled_value_is_not_its_own_residual(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    assert run([conv, node("add", "twice", "y", "y")], tensors, x) == ["conv2d", "add"]


def test_broadcast_sum_is_not_fused(x: np.ndarray, rng: np.random.Generator) -> None:
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    pool = Node(
        op="adaptive_avg_pool2d", name="pool", inputs=("x",), outputs=("p",), attributes={"output_size": (1, 1)}
    )
    assert run([pool, conv, node("add", "sum", "y", "p")], tensors, x) == ["adaptive_avg_pool2d", "conv2d", "add"]


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_a_value_of_which_only_the_shape_is_needed_may_be_fused(
    mode: str, x: np.ndarray, rng: np.random.Generator
) -> None:
    """As in a feature pyramid, where a level is enlarged to the size of the next one and added to it."""
    conv, tensors = weighted_layer(rng, (6, 6, 1, 1), CODEC)
    pool = Node(
        op="max_pool2d", name="pool", inputs=("x",), outputs=("p",), attributes={"kernel": (2, 2), "stride": (2, 2)}
    )
    like = Node(op="upsample_like", name="up", inputs=("p", "y"), outputs=("up_out",), attributes={"mode": mode})
    steps = run([conv, pool, like, node("add", "sum", "y", "up_out")], tensors, x)
    assert steps == ["max_pool2d", "upsample_like", "conv2d+add"]


@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_activation_moves_before_a_shuffle(activation: str, x: np.ndarray, rng: np.random.Generator) -> None:
    """As in a mask head, whose transposed convolution is a convolution and a shuffle."""
    conv, tensors = weighted_layer(rng, (8, 6, 1, 1), CODEC)
    shuffle = Node(op="pixel_shuffle", name="pixels", inputs=("y",), outputs=("p",), attributes={"factor": (2, 2)})
    assert run([conv, shuffle, node(activation, "act", "p")], tensors, x) == [f"conv2d+{activation}", "pixel_shuffle"]
    both = [conv, shuffle, node(activation, "act", "p"), node("add", "sum", "act_out", "p")]
    assert run(both, tensors, x) == ["conv2d", "pixel_shuffle", activation, "add"]


@pytest.mark.parametrize("kernel", _core.kernel_names(True))
@pytest.mark.parametrize("plane", [(5, 9), (14, 14), (56, 56)], ids=str)
def test_a_sum_may_take_the_place_of_its_residual(
    kernel: str, plane: tuple[int, int], rng: np.random.Generator
) -> None:
    """Whether the residual is read once more decides where the sum is written, and nothing else."""
    codec = ProductConfig(block=(2, 3, 3), centroids=9)
    padded: dict[str, Any] = {"padding": (1, 1, 1, 1)}
    before, tensors = weighted_layer(rng, (10, 6, 3, 3), codec, name="before", output="a", **padded)
    conv, more = weighted_layer(rng, (10, 10, 3, 3), codec, name="conv", inputs=("a",), output="b", **padded)
    last, others = weighted_layer(rng, (10, 10, 3, 3), codec, name="last", inputs=("b",), output="c", **padded)
    tensors = {**tensors, **more, **others}
    nodes = [before, conv, last, node("add", "sum", "c", "a"), node("relu", "act", "sum_out")]
    x = rng.standard_normal((2, 6, *plane), dtype=np.float32)
    file = model_file(nodes, tensors, x.shape)

    def run_for(names: tuple[str, ...], steps: int = len(nodes), **options: Any) -> dict[str, np.ndarray]:
        graph = replace(file.network.graph, nodes=file.network.graph.nodes[:steps], outputs=names)
        model = Model(replace(file, network=replace(file.network, graph=graph)), **options)
        got = model(x)
        return got if isinstance(got, dict) else {names[0]: got}

    values = run_for(tuple(file.network.graph.values()))
    file = with_ranges(file, values)
    for precision, threads in product(("exact", "fast"), (1, 3)):
        if kernel not in _core.kernel_names(precision == "fast"):
            continue
        options: dict[str, Any] = {"precision": precision, "kernel": kernel, "threads": threads}
        assert "conv2d+add+relu" in [step["op"] for step in Model(file, **options).profile(x)["steps"]]
        both = run_for(("act_out", "a"), **options)
        np.testing.assert_array_equal(run_for(("act_out",), **options)["act_out"], both["act_out"])
        if precision == "exact":  # in bytes, values that leave the network are not rounded
            np.testing.assert_array_equal(run_for(("a",), steps=1, **options)["a"], both["a"])


def test_an_input_that_is_also_the_residual_is_not_overwritten(rng: np.random.Generator) -> None:
    """Every output of a convolution reads it."""
    conv, tensors = weighted_layer(rng, (90, 90, 1, 1), CODEC)
    for plane in ((1, 1), (14, 14), (40, 40)):
        x = rng.standard_normal((1, 90, *plane), dtype=np.float32)
        assert run([conv, node("add", "sum", "x", "y")], tensors, x) == ["conv2d+add"]
