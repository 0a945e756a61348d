"""The decoded network with every scale multiplied into its weight, as other engines want it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import DenseConfig
from pyquant.graph import Network, Weight


def folded(network: Network) -> Network:
    """Return the same function with dense float32 weights and no scales; biases stay.

    A weight that several layers share stays shared among those without a scale.
    """
    tensors: dict[str, NDArray[Any]] = {}
    nodes = []
    for node in network.graph.nodes:
        if node.weight is None:
            tensors.update({node.tensor(role): network.tensors[node.tensor(role)] for role in node.tensors})
            nodes.append(node)
            continue
        scale = network.own(node, "scale")
        # "/" appears in no module path, so this name is free.
        name = node.weight.name if scale is None else f"{node.name}/folded"
        weight = Weight(name=name, shape=node.weight.shape, codec=DenseConfig())
        if weight.tensor("weight") not in tensors:
            value = network.weight(node.weight)
            if scale is not None:
                value = value * scale.astype(np.float32).reshape(-1, *[1] * (value.ndim - 1))
            tensors[weight.tensor("weight")] = value
        roles = tuple(role for role in node.tensors if role == "bias")
        tensors.update({node.tensor(role): network.tensors[node.tensor(role)] for role in roles})
        nodes.append(replace(node, weight=weight, tensors=roles))
    dense = Network(graph=replace(network.graph, nodes=tuple(nodes)), tensors=tensors)
    return dense.with_activation_ranges(network.activation_ranges)
