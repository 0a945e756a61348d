"""How a picture becomes a detector's input, and how what it finds there is laid over the picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import _core
from pyquant.errors import ConfigError, FormatError, InputError
from pyquant.graph import Graph, GraphInput, Network
from pyquant.layers import ACTIVATION_RANGES
from pyquant.preprocessing import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MAX_RESIZED_PIXELS,
    MAX_SIDE,
    Preprocessing,
    normalised_levels,
)

DETECTIONS = ("detections", "anchor_detections")  # operations whose output is what was found
CHOICES = frozenset({"proposals", *DETECTIONS, "select_masks"})  # operations that choose among boxes or masks
LEARNT_FROM = {"proposals": {"best": 100, "keep": 32}, "detections": {"keep": 8}}  # of a picture, at most
LEARNING_SIDE = 320  # pixels of the pictures that codebooks are learnt on, at most
KIND = "detector"  # what tells this preprocessing from a classifier's in a file
F32 = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)  # no slots: `_levels` is computed once and kept
class DetectorPreprocessing:
    """Normalise pixels in 0..1 per channel, resize (bilinear, not antialiased), and pad with zeros, right and below.

    The short side becomes `short` pixels, or less where the long one would exceed `long`: as torchvision's
    `GeneralizedRCNNTransform`, save that a side never becomes 0, which it refuses.
    """

    short: int
    long: int
    multiple: int = 32  # of which the padded sides are
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("short", "long", "multiple"):
            value = getattr(self, name)
            if type(value) is not int or not 0 < value <= MAX_SIDE:
                raise ConfigError(f"{name} must be 1 to {MAX_SIDE:,} pixels, got {value!r}")
        normalised_levels(self.mean, self.std)
        if (pixels := self._padded(self.short) * self._padded(self.long)) > MAX_RESIZED_PIXELS:
            raise ConfigError(f"short and long: inputs of {pixels:,} pixels are too large")

    def __call__(self, picture: NDArray[np.uint8]) -> tuple[F32, F32]:
        """Return the network's inputs, the image `[3, H, W]` and its height and width without padding `[2]`.

        Args:
            picture: RGB pixels, uint8 `[height, width, 3]`.

        Raises:
            InputError: the array is not that.
        """
        pixels = np.asarray(picture)
        if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3 or 0 in pixels.shape:
            found = f"{pixels.dtype} {list(pixels.shape)}"
            raise InputError(f"a picture is a uint8 array [H, W, 3] of red, green and blue, got {found}")
        height, width = self.resized(*pixels.shape[:2])
        padded = self._padded(height), self._padded(width)
        image = _core.resize_picture(np.ascontiguousarray(pixels), self._levels, height, width, *padded)
        return image, np.array([height, width], np.float32)

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Return the height and width that a picture of this size is given, without padding."""
        scale = min(self.short / min(height, width), self.long / max(height, width))
        return max(floor(height * scale), 1), max(floor(width * scale), 1)

    @property
    def for_learning(self) -> Preprocessing:
        """How pictures become inputs of one size, without padding, for codebooks to be learnt on."""
        side = max(min(self.short, LEARNING_SIDE) // self.multiple, 1) * self.multiple
        return Preprocessing(resize=side, crop=(side, side), mean=self.mean, std=self.std)

    @property
    def usual_input(self) -> tuple[int, int, int]:
        """The shape `[3, H, W]` of the largest input, which most pictures come near."""
        return 3, self._padded(self.short), self._padded(max(self.short, self.long))

    def _padded(self, side: int) -> int:
        return -(-side // self.multiple) * self.multiple

    @cached_property
    def _levels(self) -> F32:
        return normalised_levels(self.mean, self.std)

    def to_json(self) -> dict[str, Any]:
        """Return the preprocessing as plain JSON values."""
        values = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}
        return {"kind": KIND, **values}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DetectorPreprocessing:
        """Return the preprocessing that `to_json` described.

        Raises:
            FormatError: an entry is unknown, missing or makes no sense.
        """
        keys = ("kind", "short", "long", "multiple", "mean", "std")
        if set(value) != set(keys):
            raise FormatError(f"preprocessing: expected {', '.join(keys)}, got {sorted(value)!r}")
        given: dict[str, Any] = {key: value[key] for key in keys[1:]}
        given |= {key: tuple(entry) for key, entry in given.items() if isinstance(entry, list)}
        try:
            return cls(**given)
        except ConfigError as error:
            raise FormatError(f"preprocessing: {error}") from error


def for_learning(network: Network) -> Network:
    """Return a detector that finds less: what its heads learn from takes memory for each box of each picture."""
    nodes = []
    for node in network.graph.nodes:
        if node.op in LEARNT_FROM:
            most = {key: min(node.attributes[key], value) for key, value in LEARNT_FROM[node.op].items()}
            # Whatever its score: where little is found, the heads would have nothing to learn from.
            node = replace(node, attributes={**node.attributes, **most, "min_score": 0.0})
        nodes.append(node)
    return replace(network, graph=replace(network.graph, nodes=tuple(nodes)))


def as_before(learnt: Network, network: Network) -> Network:
    """Return what was learnt of `for_learning(network)` with the choices of `network`."""
    choices = {node.name: node for node in network.graph.nodes if node.op in CHOICES}
    nodes = tuple(choices.get(node.name, node) for node in learnt.graph.nodes)
    return replace(learnt, graph=replace(learnt.graph, nodes=nodes))


def rows_of_values(graph: Graph) -> dict[str, str]:
    """Return, for each value that has a row for each box, the value that holds these boxes."""
    boxes: dict[str, str] = {}
    for node in graph.nodes:
        if node.op in ("proposals", *DETECTIONS):
            boxes[node.output] = node.output
        elif node.op in ("roi_align", "select_masks"):
            boxes[node.output] = node.inputs[1]
        elif (source := next((boxes[name] for name in node.inputs if name in boxes), None)) is not None:
            boxes |= dict.fromkeys(node.outputs, source)
    return boxes


def is_detector(graph: Graph) -> bool:
    """Say whether a network chooses among boxes."""
    return any(node.op in CHOICES for node in graph.nodes)


def label_count(graph: Graph) -> int:
    """Return how many labels a detector can give, the background included; 0 where the network is no detector."""
    shapes = graph.infer_shapes()
    for node in graph.nodes:
        if node.op == "detections":
            return shapes[node.inputs[2]][1]
        if node.op == "anchor_detections":
            logits, numbers = (shapes[node.inputs[index]][1] for index in (2, 2 + (len(node.inputs) - 2) // 2))
            return 4 * logits // numbers
    return 0


def compared_outputs(graph: Graph) -> tuple[tuple[str, ...], ...]:
    """Return the values by which networks of this graph are compared, in groups that count the same.

    These are the outputs, as one group; of a detector what its choices read: the objectness (or logits) and the numbers
    of all levels, the logits and the numbers of boxes, and the logits of masks.
    """
    written = {name for node in graph.nodes if node.op not in CHOICES for name in node.outputs}
    groups = []
    for node in graph.nodes:
        read = [name for name in node.inputs if name in written]
        if node.op in ("proposals", "anchor_detections"):
            groups += [tuple(read[: len(read) // 2]), tuple(read[len(read) // 2 :])]
        elif node.op in CHOICES:
            groups += [(name,) for name in read]
    return tuple(groups) or (graph.outputs,)


def finding_boxes(network: Network, outputs: Sequence[str] = ()) -> Network:
    """Return a detector up to the boxes that its own parts read; its outputs are these, then `outputs`."""
    read = {name for node in network.graph.nodes if node.op not in CHOICES for name in node.inputs}
    nodes = tuple(node for node in network.graph.nodes if node.op not in CHOICES or node.output in read)
    boxes = [node.output for node in nodes if node.op in CHOICES]
    return replace(network, graph=replace(network.graph, nodes=nodes, outputs=(*boxes, *outputs)))


def tensor_parts(network: Network, *, features: bool = False) -> Network:
    """Return a detector without its choices: its other parts side by side, for boxes that are inputs.

    Its outputs are what the choices read, and where `features` are asked for, those that regions are cut from. Choices
    turn a rounding error into another box; these outputs do not.
    """
    chosen = [node for node in network.graph.nodes if node.op in CHOICES]
    kept = tuple(node for node in network.graph.nodes if node.op not in CHOICES)
    shapes = network.graph.infer_shapes()
    written = {name for node in kept for name in node.outputs}
    read = {name for node in kept for name in node.inputs}
    boxes = {node.output: shapes[node.output][1:] for node in chosen if node.output in read}
    reading = [*chosen, *(node for node in kept if features and node.op == "roi_align")]
    outputs = dict.fromkeys(name for node in reading for name in node.inputs if name in written)
    inputs = (
        network.graph.inputs[0],
        *(GraphInput(name=name, shape=(None, *columns), default=columns) for name, columns in boxes.items()),
    )
    graph = Graph(inputs=inputs, nodes=kept, outputs=tuple(outputs))
    graph.check_edges()
    own = {name: tensor for name, tensor in network.tensors.items() if name != ACTIVATION_RANGES}
    return Network(graph=graph, tensors=own)


def detections_on(
    picture: tuple[int, int], resized: tuple[int, int], rows: F32, masks: F32 | None
) -> dict[str, NDArray[Any]]:
    """Return what a network found in one picture, in the picture's own pixels.

    Args:
        picture: its height and width.
        resized: those of the network's input, without padding.
        rows: the network's detections `[R, 7]`: image, or -1 where the row is not used, box, score, label.
        masks: their probabilities `[R, m, m]`, or None.

    Returns:
        `boxes` float32 `[D, 4]` (left, top, right, bottom), `labels` int64 `[D]`, `scores` float32 `[D]`, best first,
        and where there are masks, `masks` bool `[D, height, width]`.
    """
    used = rows[:, 0] >= 0
    found = rows[used]
    # In float32, as torchvision has it: masks begin at whole pixels.
    down, across = np.array(picture, np.float32) / np.array(resized, np.float32)
    boxes = found[:, 1:5] * np.array([across, down, across, down], np.float32)
    result: dict[str, NDArray[Any]] = {
        "boxes": boxes,
        "labels": found[:, 6].astype(np.int64),
        "scores": found[:, 5].copy(),
    }
    if masks is not None:
        result["masks"] = _core.paste_masks(np.ascontiguousarray(masks[used]), boxes, *picture)
    return result
