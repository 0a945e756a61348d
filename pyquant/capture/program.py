"""The traced program: what torch.export makes of a module, and which dimensions of its input stayed free."""

from __future__ import annotations

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from pyquant.capture.aliases import base_of, is_in_place, writes_through_views
from pyquant.errors import CaptureError


class NeedsFixedSizeError(CaptureError):
    """The module may yet be captured with fewer free dimensions of its input."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A module traced for one input `[N, C, H, W]`."""

    graph: fx.Graph
    input_node: fx.Node
    output_nodes: list[tuple[str, fx.Node]]  # ("" or the name that a dict gives it, the value)
    constants: dict[str, tuple[str, torch.Tensor]]  # placeholder or attribute -> (name in the state dict, value)
    free: tuple[bool, bool, bool, bool]  # which dimensions of the input are not fixed
    lowest: tuple[int, int, int, int]  # the least size that the trace is valid for


def trace(module: nn.Module, shape: tuple[int, int, int, int], free: tuple[int, ...]) -> Program:
    """Return `module` traced for float32 arrays of `shape`, with the dimensions in `free` free where it allows that.

    Raises:
        CaptureError: torch.export cannot trace the module, or it takes or returns something else than tensors.
        NeedsFixedSizeError: it cannot with these dimensions free.
    """
    example = torch.zeros(shape)
    try:
        # AUTO fixes a dimension that the network fixes, where a named Dim would be an error.
        dynamic = (dict.fromkeys(free, Dim.AUTO),)
        with contextlib.redirect_stderr(io.StringIO()):  # where a failing export prints the whole graph
            exported = torch.export.export(module, (example,), dynamic_shapes=dynamic, strict=False)
            changed = _changed_parameters(exported)
            if writes_through_views(exported.graph):
                # Several times slower than the export; what it returns has no operations in place.
                exported = exported.run_decompositions({})
    except Exception as error:  # torch.export raises whatever it meets, the user's own exceptions included
        raise _explained(error, free) from error
    if changed:
        raise CaptureError(f"the network changes its own parameters when it runs: {', '.join(changed)}")
    return _program(exported)


def flat_outputs(result: Any) -> list[torch.Tensor]:
    """Return the tensors in what a module returned, in the order of the captured graph's outputs."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, torch.Tensor)]


def _program(exported: ExportedProgram) -> Program:
    signature = exported.graph_signature
    nodes = {node.name: node for node in exported.graph.nodes}
    if len(signature.user_inputs) != 1:
        count = len(signature.user_inputs)
        raise CaptureError(f"the network takes {count} inputs; expected one, an array of images [N, C, H, W]")
    input_node = nodes[str(signature.user_inputs[0])]
    tensors = {**exported.constants, **exported.state_dict}
    named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
    constants = {name: (entry, tensors[entry]) for name, entry in named.items()}
    constants |= {name: ("", tensors[entry]) for name, entry in signature.inputs_to_lifted_tensor_constants.items()}
    free, lowest = _free_dimensions(exported, input_node)
    return Program(
        graph=exported.graph,
        input_node=input_node,
        output_nodes=_outputs(exported, nodes),
        constants=constants,
        free=free,
        lowest=lowest,
    )


def _changed_parameters(exported: ExportedProgram) -> list[str]:
    parameters = exported.graph_signature.inputs_to_parameters
    written = [base_of(node).name for node in exported.graph.nodes if is_in_place(node)]
    return sorted({parameters[name] for name in written if name in parameters})


def _outputs(exported: ExportedProgram, nodes: dict[str, fx.Node]) -> list[tuple[str, fx.Node]]:
    returned = list(exported.graph_signature.user_outputs)
    # A structure like the module's own result, with the index of each leaf in its place.
    structure = pytree.tree_unflatten(list(range(len(returned))), exported.call_spec.out_spec)
    result = []
    for path, index in pytree.tree_flatten_with_path(structure)[0]:
        value = returned[index]
        if value is None:
            continue
        named = any(isinstance(key, (pytree.MappingKey, pytree.GetAttrKey)) for key in path)
        name = ".".join(str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path)
        if not isinstance(value, str):
            raise CaptureError(f"output {index + 1} of the network is the constant {value!r}; expected tensors")
        result.append((name if named else "", nodes[value]))
    if not result:
        raise CaptureError("the network returns no tensor")
    return result


def _free_dimensions(
    exported: ExportedProgram, input_node: fx.Node
) -> tuple[tuple[bool, bool, bool, bool], tuple[int, int, int, int]]:
    """Return which dimensions may vary, each by itself and without limit, and the least size of each."""
    free, lowest = [], []
    sizes = list(input_node.meta["val"].shape)
    symbols = [None if isinstance(size, int) else size.node.expr for size in sizes]
    for symbol in symbols:
        bounds = exported.range_constraints.get(symbol)
        bounded = bounds is not None and getattr(bounds.upper, "is_Integer", False) and int(bounds.upper) < 2**31
        # Two dimensions with one symbol must be equal, an expression such as 32*s must be a multiple.
        free.append(symbol is not None and symbol.is_symbol and symbols.count(symbol) == 1 and not bounded)
        lowest.append(1 if bounds is None else int(bounds.lower))
    return tuple(free), tuple(lowest)  # type: ignore[return-value]


def _explained(error: Exception, free: tuple[int, ...]) -> CaptureError:
    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "no reason given")
    message = f"torch.export cannot trace this network, {type(error).__name__}: {reason}"
    if "DataDependent" in type(error).__name__ or "data-dependent" in str(error):
        return CaptureError(f"{message}; the network must not decide by the values it computes: no `if` on a tensor")
    return NeedsFixedSizeError(message) if free else CaptureError(message)
