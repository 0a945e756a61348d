"""Assembly: names for the captured layers and values, and the finished network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pyquant.capture.drafts import Draft
from pyquant.graph import Graph, GraphInput, Network, Node, Weight

INPUT = 0  # the number of the network's input among the values


def assemble(
    drafts: Sequence[Draft], outputs: Sequence[tuple[str, int]], declared: GraphInput, containers: Collection[str]
) -> Network:
    """Return the network of these layers.

    A layer is called after the module that owns its weight, or else after the module that it alone stands for; layers
    that a module's own `forward` computes are called after their operation, inside that module.
    """
    names = _layer_names(drafts, containers)
    values = _value_names(drafts, outputs, names, declared.name)
    weight_names: dict[tuple[int, bool], str] = {}
    tensors: dict[str, NDArray[np.float32]] = {}
    nodes = []
    for draft, name in zip(drafts, names, strict=True):
        weight, state = None, draft.state
        if draft.weight is not None:
            shared_name = weight_names.setdefault(draft.weight.identity, name)
            weight = Weight(name=shared_name, shape=draft.weight.array.shape)
            tensors[weight.tensor("weight")] = draft.weight.array
            # "" stands for the entry that most layers have.
            state = replace(state, weight="" if state.weight == f"{name}.weight" else state.weight)
        node = Node(
            op=draft.op,
            name=name,
            inputs=tuple(values[number] for number in draft.inputs),
            outputs=(values[draft.output],),
            attributes=draft.attributes,
            weight=weight,
            tensors=tuple(draft.own),
            state=state,
        )
        tensors |= {node.tensor(role): array for role, array in draft.own.items()}
        nodes.append(node)
    graph = Graph(inputs=(declared,), nodes=tuple(nodes), outputs=tuple(values[number] for _, number in outputs))
    graph.check_edges()
    return Network(graph=graph, tensors=tensors)


def _layer_names(drafts: Sequence[Draft], containers: Collection[str]) -> list[str]:
    """Return a name for each layer, unique; layers that have a weight choose first."""
    per_call = Counter(draft.call for draft in drafts)
    wanted = []
    for draft in drafts:
        if draft.weight is not None:
            owner, _, leaf = draft.weight.source.rpartition(".")
            wanted.append((owner if leaf == "weight" else draft.weight.source) or draft.op)
        elif per_call[draft.call] == 1 and draft.path not in containers:
            wanted.append(draft.path)
        else:
            wanted.append(".".join(filter(None, [draft.path, draft.op])))
    names = [""] * len(drafts)
    taken: set[str] = set()
    for position in sorted(range(len(drafts)), key=lambda i: (drafts[i].weight is None, i)):
        names[position] = _unique(wanted[position], taken)
    return names


def _value_names(
    drafts: Sequence[Draft], outputs: Sequence[tuple[str, int]], layer_names: Sequence[str], input_name: str
) -> dict[int, str]:
    """Return a name for each value: the layer's, or what the module's result calls it."""
    values = {INPUT: input_name}
    taken = {input_name}
    for name, number in outputs:
        if name:
            values[number] = _unique(name, taken)
    for draft, name in zip(drafts, layer_names, strict=True):
        if draft.output not in values:
            values[draft.output] = _unique(name, taken)
    return values


def _unique(name: str, taken: set[str]) -> str:
    """Return `name`, or else `name_2`, `name_3`, .., and take it."""
    count, result = 1, name
    while result in taken:
        count += 1
        result = f"{name}_{count}"
    taken.add(result)
    return result
