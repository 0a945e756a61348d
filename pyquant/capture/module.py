"""A PyTorch module that takes images `[N, C, H, W]` becomes a network of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import nn

from pyquant.capture.assemble import assemble
from pyquant.capture.fold import fold_batch_norms
from pyquant.capture.isolate import isolated, undisturbed
from pyquant.capture.probe import check, holds
from pyquant.capture.program import NeedsFixedSizeError, trace
from pyquant.capture.translate import translate
from pyquant.errors import InputError
from pyquant.graph import GraphInput, Network
from pyquant.torch_network import TorchNetwork

BATCH, ROWS, COLUMNS = 0, 2, 3  # axes of the input


def capture_module(module: nn.Module, input_shape: tuple[int, int, int]) -> Network:
    """Return the network of `module` in eval mode, with dense float32 weights and its batch norms folded.

    The batch, the height and the width of the input `[N, C, H, W]` are free where the network allows it; a dimension
    that it fixes is recorded in the graph's input, which then refuses other sizes. `input_shape`, `(C, H, W)`, is the
    default size. The module is left exactly as it was; its hooks are not run.

    Raises:
        CaptureError: listing every unsupported operation with the path of its module, or saying why the module cannot
            be traced.
        InputError: a weight is NaN or infinite, or `input_shape` is not three positive sizes.
    """
    if len(input_shape) != 3 or any(not isinstance(size, int) or size < 1 for size in input_shape):
        raise InputError(f"input_shape: expected three positive sizes (channels, height, width), got {input_shape}")
    c, h, w = input_shape
    with undisturbed():
        copy = isolated(module)
        # A module may need a fixed size where a free one was tried; the batch is fixed last of all.
        for free in ((BATCH, ROWS, COLUMNS), (BATCH,)):
            try:
                return _captured(copy, (c, h, w), free)
            except NeedsFixedSizeError:
                continue
        return _captured(copy, (c, h, w), ())


def _captured(module: nn.Module, input_shape: tuple[int, int, int], free: tuple[int, ...]) -> Network:
    batch = 2 if BATCH in free else 1  # torch.export takes a dimension of 1 for a fixed one
    program = trace(module, (batch, *input_shape), free)
    if BATCH in free and (not program.free[BATCH] or program.lowest[BATCH] > batch):
        raise NeedsFixedSizeError("the network fixes the size of the batch")
    drafts, outputs = translate(program, _state(module))
    drafts = fold_batch_norms(drafts, [number for _, number in outputs])
    shape = [None if is_free else size for is_free, size in zip(program.free, (batch, *input_shape), strict=True)]
    declared = GraphInput(name=program.input_node.name, shape=tuple(shape), default=input_shape)
    containers = {path for path, part in module.named_modules() if path == "" or any(part.children())}
    network = assemble(drafts, outputs, declared, containers)
    executable = TorchNetwork(network)
    check(module, executable, input_shape)
    for axis in (ROWS, COLUMNS):
        if shape[axis] is None and not _holds_below(module, executable, axis, program.lowest[axis]):
            shape[axis] = input_shape[axis - 1]
    declared = replace(declared, shape=tuple(shape))
    if None in shape[ROWS:] and not holds(module, executable, _other_sizes(declared)):
        declared = replace(declared, shape=(shape[BATCH], *input_shape))
    return replace(network, graph=replace(network.graph, inputs=(declared,)))


def _state(module: nn.Module) -> Mapping[str, torch.Tensor]:
    """Return parameters and buffers, tied ones under each of their names."""
    parameters = dict(module.named_parameters(remove_duplicate=False))
    return {**parameters, **dict(module.named_buffers(remove_duplicate=False))}


def _holds_below(module: nn.Module, network: TorchNetwork, axis: int, lowest: int) -> bool:
    """Return whether the network is right about an input just smaller than the trace is said to be valid for."""
    c, h, w = network.graph.inputs[0].default
    below = (c, lowest - 1, w) if axis == ROWS else (c, h, lowest - 1)
    if lowest <= 2:  # where torch.export starts, whatever the network
        return True
    try:
        network.graph.infer_shapes([(1, *below)])
    except InputError:
        return True
    return holds(module, network, [below])


def _other_sizes(declared: GraphInput) -> list[tuple[int, int, int]]:
    """Return sizes of the other parity than the default, not square, and multiples of what networks often need."""
    c, h, w = declared.default
    rows, columns = [h + 1, (h // 64 + 1) * 64], [w + 3, (w // 64 + 2) * 64]
    if declared.shape[ROWS] is not None:
        rows = [h, h]
    if declared.shape[COLUMNS] is not None:
        columns = [w, w]
    return [(c, *size) for size in zip(rows, columns, strict=True)]
