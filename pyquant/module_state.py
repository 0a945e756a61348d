"""The user's module and what is learnt: its batch norms read, and a copy of it that carries the decoded weights."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pyquant.capture.isolate import isolated
from pyquant.graph import Graph
from pyquant.learn.layerwise import Learnt
from pyquant.learn.norms import Norm

State = Mapping[str, torch.Tensor]


def norms_of(graph: Graph, state: State) -> dict[str, Norm]:
    """Return the batch norms of a graph by module path, from the state dict of the module it was captured from."""
    norms = {}
    for node in graph.nodes:
        if name := node.state.norm:
            mean = _array(state[f"{name}.running_mean"])
            norms[name] = Norm(
                weight=_array(state[f"{name}.weight"]) if f"{name}.weight" in state else np.ones_like(mean),
                bias=_array(state[f"{name}.bias"]) if f"{name}.bias" in state else np.zeros_like(mean),
                input_bias=_array(state[node.state.bias]) if node.state.bias else np.zeros_like(mean),
                mean=mean,
                variance=_array(state[f"{name}.running_var"]),
                eps=node.state.eps,
            )
    return norms


def with_learnt(module: nn.Module, learnt: Learnt) -> nn.Module:
    """Return a copy of a module with the decoded weights and the batch norms as learnt, not folded.

    Batch norms that keep their statistics, and parts that the network does not use, stay as they are.
    """
    state = module.state_dict(keep_vars=True)
    new: dict[str, NDArray[np.float32]] = {}
    for node, _ in learnt.network.graph.weighted():
        new[node.state.weight or f"{node.name}.weight"] = learnt.network.module_weight(node)
    for node in learnt.network.graph.nodes:
        if node.weight is None or not node.state.bias or node.state.transposed:
            continue
        if node.state.norm in learnt.norms:
            new[node.state.bias] = learnt.norms[node.state.norm].input_bias
        elif not node.state.norm:
            bias = learnt.network.own(node, "bias")
            assert bias is not None
            new[node.state.bias] = bias
    for name, norm in learnt.norms.items():
        new |= {f"{name}.running_mean": norm.mean, f"{name}.running_var": norm.variance}
        if f"{name}.weight" in state:
            new |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    by_tensor = {id(state[key]): value for key, value in new.items()}  # a tied weight has several names
    result = isolated(module)
    # Assigned, not copied: the isolated module shares its parameters with the user's.
    entries = {key: torch.from_numpy(by_tensor[id(old)]) for key, old in state.items() if id(old) in by_tensor}
    result.load_state_dict({**result.state_dict(), **entries}, strict=True, assign=True)
    return result


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().to("cpu", torch.float32).numpy())
