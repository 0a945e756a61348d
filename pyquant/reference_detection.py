"""The operations of detectors in readable NumPy; see `pyquant.reference`.

Boxes are left, top, right, bottom in pixels. A value of rows holds a box each: the image it belongs to, or -1 where the
row is not used, the box, and of detections the score and the label too. Each image has as many rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor, log2, sqrt

import numpy as np
from numpy.typing import NDArray

from pyquant.graph import Node

F64 = NDArray[np.float64]
UNUSED = -1.0


def anchors_of(node: Node, level: int, num_anchors: int, rows: int, columns: int, strides: tuple[int, int]) -> F64:
    """Return the anchors `[rows * columns * num_anchors, 4]` of one level, pixel by pixel."""
    shapes = np.array(node.attributes["anchors"], np.float64).reshape(-1, num_anchors, 4)[level]
    y, x = np.meshgrid(np.arange(rows) * strides[0], np.arange(columns) * strides[1], indexing="ij")
    corners = np.stack([x, y, x, y], axis=-1).reshape(-1, 1, 4)
    return np.asarray((corners + shapes).reshape(-1, 4))


def decode(node: Node, numbers: F64, boxes: F64) -> F64:
    """Return the boxes `[.., 4]` that a head's numbers dx, dy, dw, dh make of others.

    The centre moves by dx widths and dy heights; the sides grow by exp(dw) and exp(dh) (Ren et al., 2015).
    """
    dx, dy, dw, dh = np.moveaxis(numbers / np.array(node.attributes["box_weights"]), -1, 0)
    left, top, right, bottom = np.moveaxis(boxes, -1, 0)
    width, height, largest = right - left, bottom - top, node.attributes["max_log_scale"]
    x, y = left + width / 2 + dx * width, top + height / 2 + dy * height
    half_width, half_height = (np.exp(np.minimum(log, largest)) * side / 2 for log, side in ((dw, width), (dh, height)))
    return np.stack([x - half_width, y - half_height, x + half_width, y + half_height], axis=-1)


def clip(boxes: F64, size: F64) -> F64:
    """Return the boxes with their corners moved into a picture of `size`, height and width."""
    height, width = size
    return np.clip(boxes, 0, np.array([width, height, width, height]))


def has_sides(boxes: F64, least: float) -> NDArray[np.bool_]:
    """Return which boxes are at least so wide and so high."""
    return np.asarray((boxes[:, 2] - boxes[:, 0] >= least) & (boxes[:, 3] - boxes[:, 1] >= least))


def suppress(boxes: F64, max_overlap: float) -> list[int]:
    """Return which of these boxes, best first, overlap no better one that stays: greedy non-maximum suppression."""
    kept: list[int] = []
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    for i, box in enumerate(boxes):
        others = boxes[kept]
        sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
        shared = np.maximum(sides, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):  # of two empty boxes it is 0 / 0, and both stay
            overlap = shared / (areas[kept] + areas[i] - shared)
        if not (overlap > max_overlap).any():
            kept.append(i)
    return kept


def best_first(scores: F64) -> NDArray[np.intp]:
    """Return the order of falling scores; of equal ones the first comes first."""
    return np.argsort(-scores, kind="stable")


def _sigmoid(x: F64) -> F64:
    return np.asarray(np.exp(-np.logaddexp(0, -x)))


def _moved(node: Node, level: int, images: F64, numbers: F64) -> tuple[F64, F64]:
    """Return the anchors of a level, pixel by pixel, and the numbers `[A * 4, rows, columns]` that move each."""
    outputs, rows, columns = numbers.shape
    strides = images.shape[2] // rows, images.shape[3] // columns
    moves = numbers.reshape(outputs // 4, 4, rows, columns).transpose(2, 3, 0, 1).reshape(-1, 4)
    return anchors_of(node, level, outputs // 4, rows, columns, strides), moves


def proposals(network: object, node: Node, inputs: list[F64]) -> F64:
    """Return rows `[N * keep, 5]`: of each level the best anchors, moved and clipped; of those that stay, the best."""
    a = node.attributes
    images, sizes, *heads = inputs
    num_levels = len(heads) // 2
    result = np.zeros((len(images), a["keep"], 5))
    result[:, :, 0] = UNUSED
    for image, size in enumerate(sizes):
        boxes, scores = [np.zeros((0, 4))], [np.zeros(0)]
        for level, (objectness, numbers) in enumerate(zip(heads[:num_levels], heads[num_levels:], strict=True)):
            anchors, moves = _moved(node, level, images, numbers[image])
            logits = objectness[image].transpose(1, 2, 0).ravel()
            best = best_first(logits)[: a["best"]]
            found, chances = clip(decode(node, moves[best], anchors[best]), size), _sigmoid(logits[best])
            counts = has_sides(found, a["min_side"]) & (chances >= a["min_score"])
            found, chances = found[counts], chances[counts]
            kept = suppress(found, a["max_overlap"])
            boxes.append(found[kept])
            scores.append(chances[kept])
        best = best_first(np.concatenate(scores))[: a["keep"]]
        result[image, : len(best), 0] = image
        result[image, : len(best), 1:] = np.concatenate(boxes)[best]
    return result.reshape(-1, 5)


def level_of(node: Node, box: Sequence[float], halvings: Sequence[int]) -> int:
    """Return which of the levels, so many times halved, a box is taken from (Lin et al., 2017, equation 1)."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    if not area > 0:
        return 0
    # A box as large as the canonical one may come out just below it.
    wanted: int = floor(
        node.attributes["canonical_level"] + log2(sqrt(area) / node.attributes["canonical_side"]) + 1e-6
    )
    return min(max(wanted, halvings[0]), halvings[-1]) - halvings[0]


def halvings_of(image_rows: int, level_rows: int) -> int:
    """Return how many times the pixels of a picture were halved on the way to a level."""
    return round(log2(image_rows / level_rows))


def resampling(begin: float, end: float, out_size: int, size: int, samples: int) -> F64:
    """Return the matrix `[out_size, size]` that resamples the pixels of one axis from `begin` to `end`.

    Each output pixel is the mean of `samples` points, each interpolated between two pixels. A point further outside
    than a pixel counts nothing.
    """
    step = max(end - begin, 1.0) / out_size / samples
    matrix = np.zeros((out_size, size))
    for i in range(out_size * samples):
        position = begin + (i + 0.5) * step
        if -1 <= position <= size:
            at = min(max(position, 0.0), size - 1.0)
            low = int(at)
            matrix[i // samples, low] += (1 - (at - low)) / samples
            matrix[i // samples, min(low + 1, size - 1)] += (at - low) / samples
    return matrix


def roi_align(network: object, node: Node, inputs: list[F64]) -> F64:
    """Return `[R, C, oh, ow]`: each row's box, resampled from the level that suits its size (He et al., 2017)."""
    images, rows, *levels = inputs
    (oh, ow), samples = node.attributes["output_size"], node.attributes["samples"]
    halvings = [halvings_of(images.shape[2], level.shape[2]) for level in levels]
    result = np.zeros((len(rows), levels[0].shape[1], oh, ow))
    for i, (image, *box) in enumerate(rows[:, :5]):
        if not 0 <= image < len(images):
            continue
        level = level_of(node, box, halvings)
        features = levels[level][int(image)]
        left, top, right, bottom = (side / 2 ** halvings[level] for side in box)
        down = resampling(top, bottom, oh, features.shape[1], samples)
        across = resampling(left, right, ow, features.shape[2], samples)
        result[i] = down @ features @ across.T
    return result


def detections(network: object, node: Node, inputs: list[F64]) -> F64:
    """Return rows `[N * keep, 7]`: of each class the boxes that score enough and stay; of all classes, the best."""
    a = node.attributes
    sizes, rows, logits, numbers = inputs
    per_image, num_classes = len(rows) // len(sizes), logits.shape[1]
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares = shares / shares.sum(axis=1, keepdims=True)
    result = np.zeros((len(sizes), a["keep"], 7))
    result[:, :, 0] = UNUSED
    for image, size in enumerate(sizes):
        own = np.arange(image * per_image, (image + 1) * per_image)
        own = own[rows[own, 0] == image]
        found = []  # each the box, score, label and row
        for label in range(1, num_classes):  # 0 is the background
            boxes = clip(decode(node, numbers[own, 4 * label : 4 * label + 4], rows[own, 1:5]), size)
            scores = shares[own, label]
            order = best_first(scores)
            order = order[((scores > a["min_score"]) & has_sides(boxes, a["min_side"]))[order]]
            for i in order[suppress(boxes[order], a["max_overlap"])]:
                found.append((*boxes[i], scores[i], label, own[i]))
        found.sort(key=lambda entry: (-entry[4], entry[6], entry[5]))
        for i, entry in enumerate(found[: a["keep"]]):
            result[image, i] = (image, *entry[:6])
    return result.reshape(-1, 7)


def anchor_detections(network: object, node: Node, inputs: list[F64]) -> F64:
    """Return rows `[N * keep, 7]`: of each level the best classes of anchors, moved; of each class those that stay."""
    a = node.attributes
    images, sizes, *heads = inputs
    num_levels = len(heads) // 2
    result = np.zeros((len(images), a["keep"], 7))
    result[:, :, 0] = UNUSED
    for image, size in enumerate(sizes):
        found = []  # of each level: boxes, scores and labels as columns
        for level, (logits, numbers) in enumerate(zip(heads[:num_levels], heads[num_levels:], strict=True)):
            anchors, moves = _moved(node, level, images, numbers[image])
            outputs, rows, columns = numbers.shape[1:]
            own = logits[image].reshape(outputs // 4, -1, rows, columns).transpose(2, 3, 0, 1)
            classes = own.shape[3]
            with np.errstate(invalid="ignore"):  # what is not a number has no score
                scores = _sigmoid(own.ravel())
            best = best_first(own.ravel())
            best = best[scores[best] > a["min_score"]][: a["best"]]
            boxes = clip(decode(node, moves[best // classes], anchors[best // classes]), size)
            rows_found = np.column_stack([boxes, scores[best], best % classes])
            found.append(rows_found[has_sides(boxes, a["min_side"])])
        entries = np.concatenate(found)
        entries = entries[best_first(entries[:, 4])]
        kept = []
        for label in np.unique(entries[:, 5]):
            of_class = np.flatnonzero(entries[:, 5] == label)
            kept += of_class[suppress(entries[of_class, :4], a["max_overlap"])].tolist()
        kept = sorted(kept)[: a["keep"]]
        result[image, : len(kept), 0] = image
        result[image, : len(kept), 1:] = entries[kept]
    return result.reshape(-1, 7)


def select_masks(network: object, node: Node, inputs: list[F64]) -> F64:
    """Return `[R, mh, mw]`: of the masks `[R, classes, mh, mw]`, in logits, that of each detection's class, 0 to 1."""
    logits, rows = inputs
    result = np.zeros((len(rows), *logits.shape[2:]))
    for i, row in enumerate(rows):
        if row[0] >= 0 and 0 <= row[6] < logits.shape[1]:
            result[i] = _sigmoid(logits[i, int(row[6])])
    return result


def interpolation(size: int, out_size: int) -> F64:
    """Return the matrix `[out_size, size]` of bilinear interpolation along one axis, corners not aligned."""
    matrix = np.zeros((out_size, size))
    for i in range(out_size):
        position = max((i + 0.5) * size / out_size - 0.5, 0.0)
        low = min(int(position), size - 1)
        share = min(position - low, 1.0)
        matrix[i, low] += 1 - share
        matrix[i, min(low + 1, size - 1)] += share
    return matrix


def resize(image: F64, height: int, width: int) -> F64:
    """Return an image `[.., H, W]` of another size."""
    down, across = interpolation(image.shape[-2], height), interpolation(image.shape[-1], width)
    return np.asarray(down @ image @ across.T)


def paste_mask(mask: F64, box: Sequence[float], height: int, width: int) -> F64:
    """Return a mask `[m, m]` laid over its box in a picture `[height, width]` that is zero elsewhere.

    The mask gets a border of zeros, its box grows with it, and then begins and ends at whole pixels.
    """
    growth = (len(mask) + 2) / len(mask)
    spans = []
    for begin, end in ((box[1], box[3]), (box[0], box[2])):
        centre, half = (begin + end) / 2, (end - begin) / 2 * growth
        first = int(centre - half)
        spans.append((first, max(int(centre + half) - first + 1, 1)))
    (top, rows), (left, columns) = spans
    # The picture, with room around it for what lies outside.
    room = max(rows, columns, 0) + max(abs(top), abs(left))
    picture = np.zeros((height + 2 * room, width + 2 * room))
    picture[room + top : room + top + rows, room + left : room + left + columns] = resize(
        np.pad(mask, 1), rows, columns
    )
    return picture[room : room + height, room : room + width]
