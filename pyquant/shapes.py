"""How the shape of each operation's output follows from the shapes of its inputs."""

from __future__ import annotations

from collections.abc import Callable
from math import floor, prod
from typing import TYPE_CHECKING

import numpy as np

from pyquant.errors import InputError

if TYPE_CHECKING:
    from pyquant.graph import Node

Shape = tuple[int, ...]


def _fail(node: Node, shape: Shape, expected: str) -> InputError:
    return InputError(f"layer '{node.name}' ({node.op}): expected {expected}, got an input of {list(shape)}")


def _conv2d(node: Node, inputs: list[Shape]) -> Shape:
    assert node.weight is not None
    o, c, kh, kw = node.weight.shape
    groups = node.attributes["groups"]
    if len(inputs[0]) != 4 or inputs[0][1] != c * groups or o % groups:
        raise _fail(node, inputs[0], f"[N, {c * groups}, H, W]")
    n, _, h, w = inputs[0]
    (sy, sx), (dy, dx) = node.attributes["stride"], node.attributes["dilation"]
    top, bottom, left, right = node.attributes["padding"]
    return n, o, (h + top + bottom - dy * (kh - 1) - 1) // sy + 1, (w + left + right - dx * (kw - 1) - 1) // sx + 1


def _linear(node: Node, inputs: list[Shape]) -> Shape:
    assert node.weight is not None
    o, c = node.weight.shape
    if len(inputs[0]) != 2 or inputs[0][1] != c:
        raise _fail(node, inputs[0], f"[N, {c}]")
    return inputs[0][0], o


def _same(node: Node, inputs: list[Shape]) -> Shape:
    return inputs[0]


def _affine(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) < 2:
        raise _fail(node, inputs[0], "[N, C, ..]")
    return inputs[0]


def _broadcast(node: Node, inputs: list[Shape]) -> Shape:
    try:
        return tuple(int(size) for size in np.broadcast_shapes(*inputs))
    except ValueError:
        raise _fail(node, inputs[1], f"a shape that broadcasts with {list(inputs[0])}") from None


def _concat(node: Node, inputs: list[Shape]) -> Shape:
    axis = node.attributes["axis"]
    first = inputs[0]
    for shape in inputs:
        if len(shape) <= axis or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise _fail(node, shape, f"the shape of {list(first)} in all dimensions but {axis}")
    return *first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :]


def _pool2d(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    a = node.attributes
    result = list(inputs[0][:2])
    for axis in (0, 1):
        size, pad, stride = inputs[0][2 + axis], a["padding"][axis], a["stride"][axis]
        reach = a.get("dilation", (1, 1))[axis] * (a["kernel"][axis] - 1) + 1
        if 2 * pad > reach:  # PyTorch forbids it too: a window could lie in the padding alone
            raise InputError(f"layer '{node.name}' ({node.op}): padding {pad} is more than half of a window of {reach}")
        span = size + 2 * pad - reach
        pixels = (-(-span // stride) if a["ceil_mode"] else span // stride) + 1
        if a["ceil_mode"] and (pixels - 1) * stride >= size + pad:
            pixels -= 1  # PyTorch: the last window must start inside the input or its left padding
        result.append(pixels)
    return tuple(result)


def _adaptive_avg_pool2d(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    return *inputs[0][:2], *node.attributes["output_size"]


def _flatten(node: Node, inputs: list[Shape]) -> Shape:
    start = node.attributes["start_axis"]
    if len(inputs[0]) <= start:
        raise _fail(node, inputs[0], f"more than {start} dimensions")
    return *inputs[0][:start], prod(inputs[0][start:])


def _upsample(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    n, c, h, w = inputs[0]
    if any(node.attributes["size"]) and any(node.attributes["factor"]):
        raise InputError(f"layer '{node.name}' (upsample): expected a size or a factor, got both")
    if any(node.attributes["size"]):
        return n, c, *node.attributes["size"]
    fy, fx = node.attributes["factor"]
    return n, c, floor(h * fy), floor(w * fx)


def _upsample_like(node: Node, inputs: list[Shape]) -> Shape:
    for shape in inputs:
        if len(shape) != 4:
            raise _fail(node, shape, "[N, C, H, W]")
    return *inputs[0][:2], *inputs[1][2:]


def _pixel_shuffle(node: Node, inputs: list[Shape]) -> Shape:
    fy, fx = node.attributes["factor"]
    if len(inputs[0]) != 4 or inputs[0][1] % (fy * fx):
        raise _fail(node, inputs[0], f"[N, a multiple of {fy * fx}, H, W]")
    n, c, h, w = inputs[0]
    return n, c // (fy * fx), h * fy, w * fx


ROW_COLUMNS = 5  # of a box: image, left, top, right, bottom
DETECTION_COLUMNS = 7  # and score, label


def _check_levels(node: Node, inputs: list[Shape], scores: str) -> None:
    """Check the images and sizes, and that there are scores and numbers for each level."""
    if len(inputs) < 4 or len(inputs) % 2 or len(inputs[0]) != 4 or inputs[1] != (inputs[0][0], 2):
        raise _fail(node, inputs[0], f"images [N, C, H, W], sizes [N, 2], and for each level {scores} and numbers")


def _proposals(node: Node, inputs: list[Shape]) -> Shape:
    _check_levels(node, inputs, "objectness")
    (n, _, height, width), _, *heads = inputs
    levels, corners = len(heads) // 2, len(node.attributes["anchors"])
    for objectness, numbers in zip(heads[:levels], heads[levels:], strict=True):
        if (
            len(objectness) != 4
            or (objectness[0], objectness[1] * 4 * levels) != (n, corners)
            or objectness[2] > height
            or objectness[3] > width
        ):
            raise _fail(node, objectness, f"[{n}, {corners / 4 / levels:g}, h, w] for {corners} numbers of anchors")
        if numbers != (n, objectness[1] * 4, *objectness[2:]):
            raise _fail(node, numbers, str([n, objectness[1] * 4, *objectness[2:]]))
    return n * node.attributes["keep"], ROW_COLUMNS


def _anchor_detections(node: Node, inputs: list[Shape]) -> Shape:
    _check_levels(node, inputs, "logits")
    (n, _, height, width), _, *heads = inputs
    levels, corners = len(heads) // 2, len(node.attributes["anchors"])
    outputs = corners // levels  # of a pixel: four numbers for each anchor
    for logits, numbers in zip(heads[:levels], heads[levels:], strict=True):
        if (
            len(numbers) != 4
            or (numbers[0], numbers[1] * levels) != (n, corners)
            or outputs % 4
            or not 0 < numbers[2] <= height
            or not 0 < numbers[3] <= width
        ):
            raise _fail(node, numbers, f"[{n}, {corners / levels:g}, h, w] for {corners} numbers of anchors")
        anchors = outputs // 4
        if len(logits) != 4 or logits[1] % anchors or (n, heads[0][1], *numbers[2:]) != logits:
            classes = f"{anchors} times the classes"
            raise _fail(node, logits, f"[{n}, {classes}, {numbers[2]}, {numbers[3]}], as many classes on each level")
    return n * node.attributes["keep"], DETECTION_COLUMNS


def _roi_align(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs) < 3 or len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "images [N, C, H, W], rows [R, 5] and features [N, C, h, w]")
    images, rows, *levels = inputs
    if len(rows) != 2 or rows[1] < ROW_COLUMNS:
        raise _fail(node, rows, "rows of boxes [R, 5]")
    for shape in levels:
        if len(shape) != 4 or shape[:2] != (images[0], levels[0][1]):
            raise _fail(node, shape, f"[{images[0]}, {levels[0][1:2]}, h, w]")
    return rows[0], levels[0][1], *node.attributes["output_size"]


def _detections(node: Node, inputs: list[Shape]) -> Shape:
    sizes, rows, logits, numbers = inputs
    if len(sizes) != 2 or sizes[1] != 2:
        raise _fail(node, sizes, "sizes [N, 2]")
    if len(rows) != 2 or rows[1] < ROW_COLUMNS or rows[0] % sizes[0]:
        raise _fail(node, rows, f"rows of boxes [a multiple of {sizes[0]}, 5]")
    if len(logits) != 2 or logits[0] != rows[0] or logits[1] < 2:
        raise _fail(node, logits, f"[{rows[0]}, two classes or more]")
    if numbers != (rows[0], logits[1] * 4):
        raise _fail(node, numbers, str([rows[0], logits[1] * 4]))
    return sizes[0] * node.attributes["keep"], DETECTION_COLUMNS


def _select_masks(node: Node, inputs: list[Shape]) -> Shape:
    logits, rows = inputs
    if len(logits) != 4 or rows != (logits[0], DETECTION_COLUMNS):
        raise _fail(node, logits, f"masks [R, classes, h, w] of detections [R, {DETECTION_COLUMNS}]")
    return logits[0], *logits[2:]


SHAPE_RULES: dict[str, Callable[[Node, list[Shape]], Shape]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _affine,
    "relu": _same,
    "relu6": _same,
    "silu": _same,
    "hardswish": _same,
    "hardsigmoid": _same,
    "sigmoid": _same,
    "add": _broadcast,
    "mul": _broadcast,
    "concat": _concat,
    "max_pool2d": _pool2d,
    "avg_pool2d": _pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "upsample": _upsample,
    "upsample_like": _upsample_like,
    "pixel_shuffle": _pixel_shuffle,
    "proposals": _proposals,
    "roi_align": _roi_align,
    "anchor_detections": _anchor_detections,
    "detections": _detections,
    "select_masks": _select_masks,
}
