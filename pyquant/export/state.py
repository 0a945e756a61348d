"""A network's decoded weights under the names of the PyTorch module it was captured from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import InputError
from pyquant.graph import Network, Node

State = dict[str, NDArray[np.generic]]


def state_dict(network: Network) -> State:
    """Return the state dict of the original module, float32, which loads there with `strict=True`.

    Batch norms are kept as modules although the graph holds them folded: running mean 0, running variance 1, and a
    weight that allows for the module's eps, so that the norm gives back the folded scale. The bias of a convolution
    that a norm follows is 0, since the norm's own bias holds it.

    Raises:
        InputError: one entry would need two values (a norm module called twice with different statistics), or a
            layer holds a scale or bias for which the original module has no place; all such layers are listed.
    """
    state: State = {}
    owners: dict[str, str] = {}
    faults = []
    for node in network.graph.nodes:
        try:
            entries = list(_entries(network, node))
        except ValueError as error:
            faults.append(f"layer '{node.name}': {error}")
            continue
        for key, value in entries:
            if key not in state:
                state[key], owners[key] = value, node.name
            elif state[key].shape != value.shape or not np.array_equal(state[key], value):
                faults.append(f"layers '{owners[key]}' and '{node.name}' need different values of '{key}'")
    if faults:
        raise InputError(f"this network has no state dict under its module's names: {'; '.join(faults)}")
    return state


def _entries(network: Network, node: Node) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the state dict entries of one layer; raise ValueError where the module has no place for a tensor."""
    scale, bias = network.own(node, "scale"), network.own(node, "bias")
    if node.op == "affine" and node.state.norm:  # without a norm it is arithmetic of the module's own code
        assert scale is not None
        assert bias is not None
        yield from _norm_entries(node, node.state.norm, scale, bias)
    if node.weight is None:
        return
    weight = network.module_weight(node)
    yield node.state.weight or f"{node.name}.weight", weight
    outputs = len(weight)
    if node.state.transposed:
        outputs = weight.shape[1]
        # One bias for all pixels of an output, which neither learning nor training changes.
        bias = None if bias is None else bias.reshape(outputs, -1)[:, 0]
    if node.state.norm:
        if node.state.bias:
            yield node.state.bias, np.zeros(outputs, np.float32)
        scale = np.ones(outputs, np.float32) if scale is None else scale
        bias = np.zeros(outputs, np.float32) if bias is None else bias
        yield from _norm_entries(node, node.state.norm, scale, bias)
    elif scale is not None:
        raise ValueError("it has a scale, but no batch norm to hold it")
    elif node.state.bias:
        yield node.state.bias, np.zeros(outputs, np.float32) if bias is None else bias
    elif bias is not None:
        raise ValueError("it has a bias, but the module had none")


def _norm_entries(
    node: Node, norm: str, scale: NDArray[np.floating], bias: NDArray[np.floating]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Yield the entries of the batch norm `norm`, whose evaluation is `x * scale + bias`, per channel.

    Sums and roots are taken in float64 and rounded once.
    """
    scale64, bias64, eps = scale.astype(np.float64), bias.astype(np.float64), node.state.eps
    if node.state.norm_affine:
        mean, variance = np.zeros_like(scale64), np.ones_like(scale64)
        yield f"{norm}.weight", (scale64 * np.sqrt(1.0 + eps)).astype(np.float32)
        yield f"{norm}.bias", bias.astype(np.float32)
    else:
        if not np.all(scale64 > 0):
            raise ValueError(f"batch norm '{norm}' has no weight, so its scale cannot be {scale.min()}")
        mean = -bias64 / scale64
        # Rounding may leave a variance of almost 0 slightly negative.
        variance = np.maximum(1.0 / scale64**2 - eps, 0.0)
    yield f"{norm}.running_mean", mean.astype(np.float32)
    yield f"{norm}.running_var", variance.astype(np.float32)
    yield f"{norm}.num_batches_tracked", np.array(0, np.int64)
