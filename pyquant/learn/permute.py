"""Channels of a network in another order, so that its function stays the same: which may change places, and the change.

A channel is followed from the layer that produces it to all layers that read it. Additions and tied weights make
channels one that must move together; a concatenation puts them behind others; a flatten or a depthwise convolution with
several outputs makes several of one. Two sets of channels that move together may change places where they look alike:
both occur in the same values, equally often, and there with the same constants and in the same groups of convolutions.
What enters and leaves the network, and what an operation reads that is not known to treat channels alike, stays.

Dimensions: C channels of a value · O outputs of a layer · S sets of channels that move together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyquant.graph import Network, Node, Weight
from pyquant.shapes import Shape

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

Indices = NDArray[np.int64]

# Operations with one input that treat all channels alike.
CHANNELWISE = frozenset(
    {
        "relu",
        "relu6",
        "silu",
        "hardswish",
        "hardsigmoid",
        "sigmoid",
        "max_pool2d",
        "avg_pool2d",
        "adaptive_avg_pool2d",
        "upsample",
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channels:
    """The channels of a network, by the sets of them that move together.

    `exchangeable` holds the numbers of sets that may change places with each other in any way, two or more each.
    """

    count: int  # S
    exchangeable: tuple[Indices, ...]
    inputs: Mapping[str, Indices]  # by the weight's name, of all channels read: [C]
    outputs: Mapping[str, Indices]  # by the name of a layer with tensors per channel: [O] or [C]


def channels_of(network: Network) -> Channels:
    """Return which channels of a network move together, and which may change places."""
    return _Trace(network).result()


def reordered(
    network: Network, norms: Mapping[str, Norm], channels: Channels, source: Indices
) -> tuple[Network, dict[str, Norm]]:
    """Return a dense network that computes the same with its channels in another order, and its batch norms likewise.

    Args:
        source: `[S]`, for each set the number of the set that takes its place; both in one of `exchangeable`.
    """
    tensors: dict[str, NDArray[Any]] = dict(network.tensors)
    moved_norms = dict(norms)
    for node in network.graph.nodes:
        if node.name not in channels.outputs:
            continue
        rows = places(channels.outputs[node.name], source)
        for role in ("scale", "bias"):
            if role in node.tensors:
                tensors[node.tensor(role)] = network.tensors[node.tensor(role)][rows]
        if node.state.norm in norms:
            moved_norms[node.state.norm] = _moved_norm(norms[node.state.norm], rows)
        if node.weight is not None:
            columns = places(channels.inputs[node.weight.name], source)
            tensors[node.weight.tensor("weight")] = _moved_weight(network.weight(node.weight), rows, columns)
    return Network(graph=network.graph, tensors=tensors), moved_norms


def places(sets: Indices, source: Indices) -> Indices:
    """Return, for each channel of a value `[C]` whose sets are given, the place from which it takes its content.

    Where a set has several channels in the value, the first takes that of the first, and so on.
    """
    order = np.argsort(sets, kind="stable")
    ordered = sets[order]
    starts = np.searchsorted(ordered, source[sets])
    rank = np.empty_like(order)
    rank[order] = np.arange(len(sets)) - np.searchsorted(ordered, ordered)
    result: Indices = order[starts + rank]
    return result


def _moved_norm(norm: Norm, rows: Indices) -> Norm:
    names = ("weight", "bias", "input_bias", "mean", "variance")
    return replace(norm, **{name: getattr(norm, name)[rows] for name in names})


def _moved_weight(weight: NDArray[np.float32], rows: Indices, columns: Indices) -> NDArray[np.float32]:
    """Return a weight `[O, C / G, ..]` with its outputs and inputs moved; neither leaves its group, unless C is G."""
    width = weight.shape[1]
    if width > 1:
        group = np.arange(len(rows)) // (len(rows) // (len(columns) // width))
        local = columns.reshape(-1, width)[group] % width  # [O, C / G]
        index = local.reshape(*local.shape, *[1] * (weight.ndim - 2))
        weight = np.take_along_axis(weight, np.broadcast_to(index, (len(rows), width, *weight.shape[2:])), axis=1)
        # Rows move after columns: in a group, all rows have the same columns.
    return np.ascontiguousarray(weight[rows])


class _Trace:
    """The sets of channels while the graph is walked: a forest that grows together (union-find)."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parent: list[int] = []
        self._fixed: list[int] = []
        self._values: dict[str, Indices] = {}
        # Where channels occur, and what distinguishes them there: numbers, all channels alike where there are none.
        self._occurrences: list[tuple[Indices, NDArray[Any] | None]] = []
        self._inputs: dict[str, Indices] = {}
        self._outputs: dict[str, Indices] = {}
        self._shared: dict[tuple[str, ...], Indices] = {}  # the channels of each entry of the module's state
        shapes = network.graph.infer_shapes()
        for declared in network.graph.inputs:
            self._values[declared.name] = self._fix(self._new(declared.default_shape))
        for node in network.graph.nodes:
            self._visit(node, shapes)
        for name in network.graph.outputs:
            self._fix(self._values[name])

    def result(self) -> Channels:
        """Return the sets, numbered in the order in which they appear."""
        roots = np.array([self._root(channel) for channel in range(len(self._parent))], np.int64)
        _, number = np.unique(roots, return_inverse=True)
        number = number.reshape(-1).astype(np.int64)
        looks: list[list[Any]] = [[] for _ in range(int(number.max()) + 1)]
        for place, (channels, marks) in enumerate(self._occurrences):
            for at, which in enumerate(number[channels].tolist()):
                looks[which].append((place, None if marks is None else marks[at].tobytes()))
        fixed = set(number[np.array(self._fixed, np.int64)].tolist())
        alike: dict[tuple[Any, ...], list[int]] = {}
        for which, look in enumerate(looks):
            if which not in fixed:
                alike.setdefault(tuple(look), []).append(which)
        return Channels(
            count=len(looks),
            exchangeable=tuple(np.array(sets, np.int64) for sets in alike.values() if len(sets) > 1),
            inputs={name: number[channels] for name, channels in self._inputs.items()},
            outputs={name: number[channels] for name, channels in self._outputs.items()},
        )

    def _visit(self, node: Node, shapes: Mapping[str, Shape]) -> None:
        read = [self._values[name] for name in node.inputs]
        shape = shapes[node.inputs[0]]
        if node.weight is not None:
            out = self._weighted(node, node.weight, read[0])
        elif node.op == "affine":
            out = self._own_tensors(node, read[0])
        elif node.op in CHANNELWISE or (node.op == "flatten" and node.attributes["start_axis"] > 1):
            out = read[0]
        elif node.op == "flatten":
            out = self._occurs(np.repeat(read[0], prod(shape[2:])))
        elif node.op == "concat" and node.attributes["axis"] == 1:
            out = self._occurs(np.concatenate(read))
        elif node.op in ("add", "mul", "concat") and len({len(shapes[name]) for name in node.inputs}) == 1:
            out = self._elementwise(read)
        else:
            for channels in read:
                self._fix(channels)
            out = self._fix(self._new(shapes[node.output]))
        self._values[node.output] = out

    def _weighted(self, node: Node, weight: Weight, read: Indices) -> Indices:
        groups = node.attributes.get("groups", 1)
        if weight.shape[1] == 1 and groups > 1:
            out = self._occurs(np.repeat(read, weight.shape[0] // groups))
        else:
            out = self._new((1, weight.shape[0]))
            self._occurs(out, np.arange(len(out)) // (len(out) // groups))
            self._occurs(read, np.arange(len(read)) // weight.shape[1])
        self._share(("inputs", weight.name), read)
        self._share(("outputs", weight.name), out)
        self._inputs.setdefault(weight.name, read)
        return self._own_tensors(node, out)

    def _own_tensors(self, node: Node, channels: Indices) -> Indices:
        """Note a layer's scale and bias: what the user's module holds moves along, what its code computes stays."""
        self._outputs[node.name] = channels
        if node.state.norm:
            self._share(("norm", node.state.norm), channels)
        if node.state.bias:
            self._share(("bias", node.state.bias), channels)
        stays = () if node.state.norm else ("scale",) if node.state.bias else ("scale", "bias")
        for role in stays:
            if (tensor := self._network.own(node, role)) is not None:
                self._occurs(channels, tensor)
        return channels

    def _elementwise(self, read: list[Indices]) -> Indices:
        out = max(read, key=len)
        for channels in read:
            if len(channels) == len(out):
                self._join(channels, out)
            else:
                self._fix(channels)  # one channel that meets all of the others
        return out

    def _share(self, key: tuple[str, ...], channels: Indices) -> None:
        """Let two uses of one tensor move it in the same way."""
        before = self._shared.setdefault(key, channels)
        if len(before) == len(channels):
            self._join(before, channels)
        else:
            self._fix(before)
            self._fix(channels)

    def _new(self, shape: Shape) -> Indices:
        start = len(self._parent)
        self._parent.extend(range(start, start + shape[1]))
        return self._occurs(np.arange(start, start + shape[1], dtype=np.int64))

    def _occurs(self, channels: Indices, marks: NDArray[Any] | None = None) -> Indices:
        self._occurrences.append((channels, marks))
        return channels

    def _fix(self, channels: Indices) -> Indices:
        self._fixed.extend(channels.tolist())
        return channels

    def _join(self, some: Indices, others: Indices) -> None:
        for a, b in zip(some.tolist(), others.tolist(), strict=True):
            root_a, root_b = self._root(a), self._root(b)
            # The older one stays the root, so that numbers follow the order of the graph.
            self._parent[max(root_a, root_b)] = min(root_a, root_b)

    def _root(self, channel: int) -> int:
        root = channel
        while self._parent[root] != root:
            root = self._parent[root]
        while self._parent[channel] != root:  # shorter ways for the next time
            self._parent[channel], channel = root, self._parent[channel]
        return root
