"""The reference operations against PyTorch's, at awkward sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyquant import layers, reference
from pyquant.errors import InputError
from pyquant.graph import Graph, GraphInput, Network, Node, Weight

torch = pytest.importorskip("torch", reason="PyTorch is what the reference is compared with")
F = torch.nn.functional

ArrayF32 = NDArray[np.float32]
# Sums of at most 400 products of numbers of size 1: fp32 rounding in PyTorch stays far below this.
TOLERANCE = 2e-5


def one_node(
    op: str,
    *inputs: ArrayF32,
    weight: ArrayF32 | None = None,
    own: dict[str, ArrayF32] | None = None,
    **attributes: Any,
) -> ArrayF32:
    """Run a network of a single layer."""
    own = own or {}
    tensors = {f"layer.{role}": array for role, array in own.items()}
    if weight is not None:
        tensors["layer.weight"] = weight
    names = tuple(f"x{i}" for i in range(len(inputs)))
    node = Node(
        op=op,
        name="layer",
        inputs=names,
        outputs=("y",),
        attributes=attributes,
        weight=None if weight is None else Weight(name="layer", shape=weight.shape),
        tensors=tuple(own),
    )
    declared = tuple(
        GraphInput(name=name, shape=(None,) * x.ndim, default=x.shape[1:])
        for name, x in zip(names, inputs, strict=True)
    )
    network = Network(graph=Graph(inputs=declared, nodes=(node,), outputs=("y",)), tensors=tensors)
    return reference.run(network, *inputs)["y"]


def normal(*shape: int, seed: int = 0) -> ArrayF32:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_same(got: ArrayF32, expected: Any) -> None:
    assert got.dtype == np.float32
    assert got.shape == tuple(expected.shape)
    np.testing.assert_allclose(got, expected.numpy(), rtol=TOLERANCE, atol=TOLERANCE)


def test_every_operation_has_a_reference() -> None:
    assert set(reference.OPS) == set(layers.OPS)


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.integers(0, 3)] * 4),
    dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    groups=st.sampled_from([1, 2, 3]),
    channels=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    own=st.sets(st.sampled_from(["scale", "bias"])),
)
def test_conv2d(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    padding: tuple[int, int, int, int],
    dilation: tuple[int, int],
    groups: int,
    channels: tuple[int, int],
    own: set[str],
) -> None:
    top, bottom, left, right = padding
    assume(size[0] + top + bottom > dilation[0] * (kernel[0] - 1))
    assume(size[1] + left + right > dilation[1] * (kernel[1] - 1))
    c, o = channels
    x, weight = normal(2, groups * c, *size), normal(groups * o, c, *kernel, seed=1)
    vectors = {role: normal(groups * o, seed=len(role)) for role in sorted(own)}
    got = one_node(
        "conv2d", x, weight=weight, own=vectors, stride=stride, padding=padding, dilation=dilation, groups=groups
    )
    padded = F.pad(torch.from_numpy(x), (left, right, top, bottom))
    expected = F.conv2d(padded, torch.from_numpy(weight), None, stride, 0, dilation, groups)
    if "scale" in vectors:
        expected = expected * torch.from_numpy(vectors["scale"]).view(-1, 1, 1)
    if "bias" in vectors:
        expected = expected + torch.from_numpy(vectors["bias"]).view(-1, 1, 1)
    assert_same(got, expected)


@pytest.mark.parametrize(("n", "c", "o"), [(1, 1, 1), (3, 7, 5), (2, 65, 33)])
def test_linear(n: int, c: int, o: int) -> None:
    x, weight, bias = normal(n, c), normal(o, c, seed=1), normal(o, seed=2)
    expected = F.linear(torch.from_numpy(x), torch.from_numpy(weight), torch.from_numpy(bias))
    assert_same(one_node("linear", x, weight=weight, own={"bias": bias}), expected)


@pytest.mark.parametrize("shape", [(2, 5), (2, 5, 3, 7)])
def test_affine_is_a_batch_norm(shape: tuple[int, ...]) -> None:
    x, mean, gamma, beta = normal(*shape), normal(5, seed=1), normal(5, seed=2), normal(5, seed=3)
    var = np.square(normal(5, seed=4)) + np.float32(0.1)
    expected = F.batch_norm(*(torch.from_numpy(a) for a in (x, mean, var, gamma, beta)), eps=1e-5)
    scale = (gamma / np.sqrt(var + 1e-5)).astype(np.float32)
    assert_same(one_node("affine", x, own={"scale": scale, "bias": beta - mean * scale}), expected)


ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "sigmoid": torch.sigmoid,
}


@pytest.mark.parametrize("op", ACTIVATIONS)
def test_activation(op: str) -> None:
    x = np.concatenate([normal(2, 3, 5, 7).ravel() * 4, [-100, -6, -3, -0.0, 0, 3, 6, 100]]).astype(np.float32)[None]
    assert_same(one_node(op, x), ACTIVATIONS[op](torch.from_numpy(x)))


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (1, 3, 5, 7), (2, 3, 1, 1), (2, 1, 5, 7), (1, 1, 1, 7)])
@pytest.mark.parametrize(("op", "function"), [("add", torch.add), ("mul", torch.mul)])
def test_broadcasting(op: str, function: Callable[[Any, Any], Any], shape: tuple[int, ...]) -> None:
    a, b = normal(2, 3, 5, 7), normal(*shape, seed=1)
    assert_same(one_node(op, a, b), function(torch.from_numpy(a), torch.from_numpy(b)))
    assert_same(one_node(op, b, a), function(torch.from_numpy(b), torch.from_numpy(a)))


@pytest.mark.parametrize("axis", [1, 2, 3])
def test_concat(axis: int) -> None:
    shapes = [[2, 3, 5, 7] for _ in range(3)]
    for i, shape in enumerate(shapes):
        shape[axis] = i + 1
    arrays = [normal(*shape, seed=i) for i, shape in enumerate(shapes)]
    assert_same(one_node("concat", *arrays, axis=axis), torch.cat([torch.from_numpy(a) for a in arrays], axis))


@pytest.mark.parametrize("start_axis", [1, 2, 3])
def test_flatten(start_axis: int) -> None:
    x = normal(2, 3, 5, 7)
    assert_same(one_node("flatten", x, start_axis=start_axis), torch.flatten(torch.from_numpy(x), start_axis))


WINDOW = {
    "size": st.tuples(st.integers(1, 12), st.integers(1, 12)),
    "kernel": st.tuples(st.integers(1, 5), st.integers(1, 5)),
    "stride": st.tuples(st.integers(1, 6), st.integers(1, 6)),
    "share": st.tuples(st.floats(0, 1), st.floats(0, 1)),  # of the padding that PyTorch allows: half the kernel
    "ceil_mode": st.booleans(),
}


@settings(max_examples=80, deadline=None)
@given(**WINDOW, dilation=st.tuples(st.integers(1, 3), st.integers(1, 3)))
def test_max_pool2d(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    share: tuple[float, float],
    ceil_mode: bool,
    dilation: tuple[int, int],
) -> None:
    padding = tuple(int(s * (k // 2)) for s, k in zip(share, kernel, strict=True))
    assume(all(s + 2 * p > d * (k - 1) for s, p, d, k in zip(size, padding, dilation, kernel, strict=True)))
    x = normal(2, 3, *size)
    got = one_node(
        "max_pool2d", x, kernel=kernel, stride=stride, padding=padding, dilation=dilation, ceil_mode=ceil_mode
    )
    assert_same(got, F.max_pool2d(torch.from_numpy(x), kernel, stride, padding, dilation, ceil_mode))


@settings(max_examples=80, deadline=None)
@given(**WINDOW, count_include_pad=st.booleans(), divisor=st.sampled_from([0, 0, 3]))
def test_avg_pool2d(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: tuple[int, int],
    share: tuple[float, float],
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: int,
) -> None:
    padding = tuple(int(s * (k // 2)) for s, k in zip(share, kernel, strict=True))
    assume(all(s + 2 * p >= k for s, p, k in zip(size, padding, kernel, strict=True)))
    x = normal(2, 3, *size)
    got = one_node(
        "avg_pool2d",
        x,
        kernel=kernel,
        stride=stride,
        padding=padding,
        ceil_mode=ceil_mode,
        count_include_pad=count_include_pad,
        divisor=divisor,
    )
    expected = F.avg_pool2d(torch.from_numpy(x), kernel, stride, padding, ceil_mode, count_include_pad, divisor or None)
    assert_same(got, expected)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (7, 7), (13, 8)])
@pytest.mark.parametrize("output_size", [(1, 1), (2, 3), (7, 7)])
def test_adaptive_avg_pool2d(size: tuple[int, int], output_size: tuple[int, int]) -> None:
    x = normal(2, 3, *size)
    expected = F.adaptive_avg_pool2d(torch.from_numpy(x), output_size)
    assert_same(one_node("adaptive_avg_pool2d", x, output_size=output_size), expected)


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    target=st.tuples(st.integers(1, 20), st.integers(1, 20)),
    bilinear=st.booleans(),
    align_corners=st.booleans(),
)
def test_upsample_to_a_size(
    size: tuple[int, int], target: tuple[int, int], bilinear: bool, align_corners: bool
) -> None:
    x, mode = normal(2, 3, *size), "bilinear" if bilinear else "nearest"
    corners = align_corners if bilinear else None
    got = one_node("upsample", x, mode=mode, size=target, align_corners=bool(corners))
    assert_same(got, F.interpolate(torch.from_numpy(x), size=target, mode=mode, align_corners=corners))


@settings(max_examples=80, deadline=None)
@given(
    size=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    factor=st.tuples(*[st.sampled_from([0.5, 0.7, 1.0, 1.1, 1.5, 2.0, 2.1, 2.5, 3.0, 3.3])] * 2),
    bilinear=st.booleans(),
    align_corners=st.booleans(),
)
def test_upsample_by_a_factor(
    size: tuple[int, int], factor: tuple[float, float], bilinear: bool, align_corners: bool
) -> None:
    assume(all(int(s * f) > 0 for s, f in zip(size, factor, strict=True)))
    x, mode = normal(2, 3, *size), "bilinear" if bilinear else "nearest"
    corners = align_corners if bilinear else None
    got = one_node("upsample", x, mode=mode, factor=factor, align_corners=bool(corners))
    assert_same(got, F.interpolate(torch.from_numpy(x), scale_factor=factor, mode=mode, align_corners=corners))


@pytest.mark.parametrize(("mode", "corners"), [("nearest", False), ("bilinear", False), ("bilinear", True)])
def test_upsample_like(mode: str, corners: bool) -> None:
    x, like = normal(2, 3, 5, 4), normal(2, 1, 11, 3)
    got = one_node("upsample_like", x, like, mode=mode, align_corners=corners)
    align = corners if mode == "bilinear" else None
    assert_same(got, F.interpolate(torch.from_numpy(x), size=(11, 3), mode=mode, align_corners=align))


def test_pixel_shuffle() -> None:
    x = normal(2, 12, 3, 5)
    assert_same(one_node("pixel_shuffle", x, factor=(2, 2)), F.pixel_shuffle(torch.from_numpy(x), 2))
    tall = one_node("pixel_shuffle", x, factor=(4, 1))
    assert tall.shape == (2, 3, 12, 5)
    np.testing.assert_array_equal(tall[:, 1, 4 + 3], x[:, 1 * 4 + 3, 1])


def test_wrong_dtype_is_refused() -> None:
    with pytest.raises(InputError, match=r"input 'x0': expected float32, got float64; use .astype"):
        one_node("relu", np.zeros((1, 2)))


def test_too_small_an_input_is_refused() -> None:
    with pytest.raises(InputError, match=r"layer 'layer' \(conv2d\): an input of \[1, 1, 2, 2\] leaves it an output"):
        one_node("conv2d", normal(1, 1, 2, 2), weight=normal(1, 1, 3, 3))
