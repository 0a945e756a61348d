"""Every operation in readable NumPy: slow, obviously right, and the oracle for all the faster ones.

Dimensions: N images · C input channels · O output channels · G groups · H, W rows and columns of an input · P output
pixels · kh, kw kernel rows and columns. Arrays go in and come out as float32; sums are taken in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from math import floor

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import InputError
from pyquant.graph import Network, Node
from pyquant.reference_detection import anchor_detections, detections, proposals, roi_align, select_masks

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Operation = Callable[[Network, Node, list[F64]], F64]


def run(network: Network, *inputs: F32) -> dict[str, F32]:
    """Return the outputs of `network`, by name, for one float32 array per input of its graph.

    Raises:
        InputError: an array is not float32, does not fit, or is too small for a layer.
    """
    values = all_values(network, *inputs)
    return {name: values[name] for name in network.graph.outputs}


def all_values(network: Network, *inputs: F32) -> dict[str, F32]:
    """Return every value of `network`, inputs and intermediate ones included, by name.

    Raises:
        InputError: an array is not float32, does not fit, or is too small for a layer.
    """
    graph = network.graph
    if len(inputs) != len(graph.inputs):
        raise InputError(f"expected {len(graph.inputs)} input arrays, got {len(inputs)}")
    for declared, array in zip(graph.inputs, inputs, strict=True):
        if array.dtype != np.float32:
            raise InputError(
                f"input '{declared.name}': expected float32, got {array.dtype}; use .astype(numpy.float32)"
            )
    shapes = graph.infer_shapes([array.shape for array in inputs])
    values = {declared.name: array for declared, array in zip(graph.inputs, inputs, strict=True)}
    for node in graph.nodes:
        result = OPS[node.op](network, node, [values[name].astype(np.float64) for name in node.inputs])
        assert result.shape == shapes[node.output], f"{node.name}: {result.shape} is not {shapes[node.output]}"
        values[node.output] = result.astype(np.float32)
    return values


def _epilogue(network: Network, node: Node, x: F64) -> F64:
    """Return `x * scale + bias`, per channel, where the layer has them."""
    per_channel = (1, -1) + (1,) * (x.ndim - 2)
    if (scale := network.own(node, "scale")) is not None:
        x = x * scale.astype(np.float64).reshape(per_channel)
    if (bias := network.own(node, "bias")) is not None:
        x = x + bias.astype(np.float64).reshape(per_channel)
    return x


def _conv2d(network: Network, node: Node, inputs: list[F64]) -> F64:
    assert node.weight is not None
    weight = network.weight(node.weight).astype(np.float64)
    o, c, kh, kw = weight.shape
    groups = node.attributes["groups"]
    (sy, sx), (dy, dx) = node.attributes["stride"], node.attributes["dilation"]
    top, bottom, left, right = node.attributes["padding"]
    x = np.pad(inputs[0], [(0, 0), (0, 0), (top, bottom), (left, right)])
    n, _, h, w = x.shape
    rows, columns = (h - dy * (kh - 1) - 1) // sy + 1, (w - dx * (kw - 1) - 1) // sx + 1
    out = np.zeros((n, groups, o // groups, rows * columns))
    for ky in range(kh):
        for kx in range(kw):
            tap = x[:, :, ky * dy :, kx * dx :][:, :, ::sy, ::sx][:, :, :rows, :columns]
            out += weight[:, :, ky, kx].reshape(groups, o // groups, c) @ tap.reshape(n, groups, c, rows * columns)
    return _epilogue(network, node, out.reshape(n, o, rows, columns))


def _linear(network: Network, node: Node, inputs: list[F64]) -> F64:
    assert node.weight is not None
    return _epilogue(network, node, inputs[0] @ network.weight(node.weight).astype(np.float64).T)


def _affine(network: Network, node: Node, inputs: list[F64]) -> F64:
    return _epilogue(network, node, inputs[0])


def _relu(network: Network, node: Node, inputs: list[F64]) -> F64:
    return np.maximum(inputs[0], 0)


def _relu6(network: Network, node: Node, inputs: list[F64]) -> F64:
    return np.clip(inputs[0], 0, 6)


def _silu(network: Network, node: Node, inputs: list[F64]) -> F64:
    return inputs[0] * _sigmoid(network, node, inputs)


def _hardswish(network: Network, node: Node, inputs: list[F64]) -> F64:
    return inputs[0] * np.clip(inputs[0] + 3, 0, 6) / 6


def _hardsigmoid(network: Network, node: Node, inputs: list[F64]) -> F64:
    return np.clip(inputs[0] + 3, 0, 6) / 6


def _sigmoid(network: Network, node: Node, inputs: list[F64]) -> F64:
    return np.exp(-np.logaddexp(0, -inputs[0]))  # 1 / (1 + exp(-x)) without its overflow


def _add(network: Network, node: Node, inputs: list[F64]) -> F64:
    return inputs[0] + inputs[1]


def _mul(network: Network, node: Node, inputs: list[F64]) -> F64:
    return inputs[0] * inputs[1]


def _concat(network: Network, node: Node, inputs: list[F64]) -> F64:
    return np.concatenate(inputs, axis=node.attributes["axis"])


def _flatten(network: Network, node: Node, inputs: list[F64]) -> F64:
    return inputs[0].reshape(*inputs[0].shape[: node.attributes["start_axis"]], -1)


def pooled_pixels(node: Node, axis: int, size: int) -> int:
    """Return how many windows a pooling layer has along `axis` (0: rows, 1: columns) of an input of `size` pixels."""
    a = node.attributes
    pad, stride = int(a["padding"][axis]), int(a["stride"][axis])
    span: int = size + 2 * pad - a.get("dilation", (1, 1))[axis] * (a["kernel"][axis] - 1) - 1
    if not a["ceil_mode"]:
        return span // stride + 1
    pixels = -(-span // stride) + 1
    # PyTorch: the last window must start inside the input or its left padding.
    return pixels - 1 if (pixels - 1) * stride >= size + pad else pixels


def _windows(node: Node, x: F64) -> Iterator[tuple[int, int, slice, slice, int]]:
    """Yield each window: its output row and column, its rows and columns in `x`, and its pixels with padding counted.

    Padding beyond the declared one, which `ceil_mode` adds at the end, is in no window.
    """
    a = node.attributes
    spans: list[list[tuple[slice, int]]] = []
    for axis in (0, 1):
        size, pad, kernel = x.shape[2 + axis], a["padding"][axis], a["kernel"][axis]
        step = a.get("dilation", (1, 1))[axis]
        spans.append([])
        for pixel in range(pooled_pixels(node, axis, size)):
            start = pixel * a["stride"][axis] - pad
            end = min(start + step * (kernel - 1) + 1, size + pad)
            first = start if start >= 0 else start + -(start // step) * step
            spans[axis].append((slice(first, max(min(end, size), first), step), end - start))
    for i, (rows, height) in enumerate(spans[0]):
        for j, (columns, width) in enumerate(spans[1]):
            yield i, j, rows, columns, height * width


def _pool(node: Node, x: F64, reduce: Callable[[F64, int], F64]) -> F64:
    out = np.zeros((*x.shape[:2], pooled_pixels(node, 0, x.shape[2]), pooled_pixels(node, 1, x.shape[3])))
    for i, j, rows, columns, pixels in _windows(node, x):
        out[:, :, i, j] = reduce(x[:, :, rows, columns], pixels)
    return out


def _max_pool2d(network: Network, node: Node, inputs: list[F64]) -> F64:
    def largest(window: F64, padded_pixels: int) -> F64:
        return np.asarray(window.max(axis=(2, 3), initial=-np.inf))

    return _pool(node, inputs[0], largest)


def _avg_pool2d(network: Network, node: Node, inputs: list[F64]) -> F64:
    a = node.attributes

    def mean(window: F64, padded_pixels: int) -> F64:
        inside = max(window.shape[2] * window.shape[3], 1)
        total: F64 = window.sum(axis=(2, 3))
        return total / (a["divisor"] or (padded_pixels if a["count_include_pad"] else inside))

    return _pool(node, inputs[0], mean)


def _adaptive_avg_pool2d(network: Network, node: Node, inputs: list[F64]) -> F64:
    x = inputs[0]
    (rows, columns), (h, w) = node.attributes["output_size"], x.shape[2:]
    out = np.zeros((*x.shape[:2], rows, columns))
    for i in range(rows):
        for j in range(columns):
            top, bottom = i * h // rows, -(-(i + 1) * h // rows)
            left, right = j * w // columns, -(-(j + 1) * w // columns)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean(axis=(2, 3))
    return out


def source_step(node: Node, axis: int, size: int, out_size: int) -> np.float32:
    """Return how many input pixels one output pixel of an `upsample` layer stands for, in float32 as PyTorch has it.

    A given factor counts as it is, even where the output size it leads to was rounded down.
    """
    if node.attributes["align_corners"]:
        return np.float32((size - 1) / (out_size - 1) if out_size > 1 else 0)
    factor = node.attributes.get("factor", (0, 0))[axis]
    return np.float32(1 / factor if factor else size / out_size)


def nearest_pixels(node: Node, axis: int, size: int, out_size: int) -> NDArray[np.int64]:
    """Return the input pixel that each output pixel of a nearest `upsample` layer copies, along `axis`."""
    pixels = np.arange(out_size)
    if out_size == 2 * size:  # PyTorch treats this size by itself, whatever the factor that led to it
        return pixels // 2
    source = np.floor(pixels.astype(np.float32) * source_step(node, axis, size, out_size))
    return np.asarray(np.minimum(source.astype(np.int64), size - 1))


def _interpolate_axis(node: Node, x: F64, axis: int, out_size: int) -> F64:
    """Return `x` with `out_size` rows (axis 0) or columns (axis 1)."""
    size = x.shape[2 + axis]
    if out_size == size:  # PyTorch copies, whatever the factor that led to this size
        return x
    if node.attributes["mode"] == "nearest":
        return x.take(nearest_pixels(node, axis, size, out_size), axis=2 + axis)
    step = source_step(node, axis, size, out_size)
    pixels = np.arange(out_size, dtype=np.float32)
    if node.attributes["align_corners"]:
        source = pixels * step
    else:
        source = np.maximum((pixels + np.float32(0.5)) * step - np.float32(0.5), np.float32(0))
    low = np.minimum(source.astype(np.int64), size - 1)
    high = np.minimum(low + 1, size - 1)
    share = np.clip(source - low, 0, 1).astype(np.float64)  # of the pixel at `high`
    share = share[:, None] if axis == 0 else share
    result: F64 = x.take(low, axis=2 + axis) * (1 - share) + x.take(high, axis=2 + axis) * share
    return result


def _upsample(network: Network, node: Node, inputs: list[F64]) -> F64:
    size, factor = node.attributes["size"], node.attributes["factor"]
    rows, columns = (size[axis] or floor(inputs[0].shape[2 + axis] * factor[axis]) for axis in (0, 1))
    return _interpolate_axis(node, _interpolate_axis(node, inputs[0], 0, rows), 1, columns)


def _upsample_like(network: Network, node: Node, inputs: list[F64]) -> F64:
    x, like = inputs
    return _interpolate_axis(node, _interpolate_axis(node, x, 0, like.shape[2]), 1, like.shape[3])


def _pixel_shuffle(network: Network, node: Node, inputs: list[F64]) -> F64:
    fy, fx = node.attributes["factor"]
    n, c, h, w = inputs[0].shape
    blocks = inputs[0].reshape(n, c // (fy * fx), fy, fx, h, w)
    return blocks.transpose(0, 1, 4, 2, 5, 3).reshape(n, c // (fy * fx), h * fy, w * fx)


OPS: dict[str, Operation] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _affine,
    "relu": _relu,
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "add": _add,
    "mul": _mul,
    "concat": _concat,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "upsample": _upsample,
    "upsample_like": _upsample_like,
    "pixel_shuffle": _pixel_shuffle,
    "proposals": proposals,
    "roi_align": roi_align,
    "anchor_detections": anchor_detections,
    "detections": detections,
    "select_masks": select_masks,
}
