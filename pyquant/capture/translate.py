"""Translation: the traced program, operation by operation, into layers of ours."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import fx
from torch._ops import OpOverload

from pyquant.capture.aliases import is_in_place
from pyquant.capture.calls import NO_STATE, Call, Constant, Symbolic, Unsupported, Value, same_sizes
from pyquant.capture.drafts import F32, Draft, DraftWeight
from pyquant.capture.operations import TRANSLATORS
from pyquant.capture.program import NeedsFixedSizeError, Program
from pyquant.errors import CaptureError, InputError
from pyquant.graph import StateNames


def translate(program: Program, state: Mapping[str, torch.Tensor]) -> tuple[list[Draft], list[tuple[str, int]]]:
    """Return the layers of a program, and its outputs: the name that a dict gives it ("" for none) and the value.

    `state` holds the module's parameters and buffers, tied ones under each of their names.

    Raises:
        CaptureError: listing every unsupported operation with the path of its module.
        NeedsFixedSizeError: some of them might be supported if a size were fixed.
        InputError: naming every weight that is not finite.
    """
    translation = _Translation(program, state)
    for node in program.graph.nodes:
        translation.visit(node)
    translation.raise_faults()
    outputs: list[tuple[str, int]] = []
    for name, node in program.output_nodes:
        value = translation.values[node]
        if not isinstance(value, Value):
            raise CaptureError(f"output '{name or node.name}' of the network does not depend on its input")
        # A value has one name, so an output that is the input, or another output too, needs a value of its own.
        if value.number in {0, *(number for _, number in outputs)}:
            value = translation.copied(value)
        outputs.append((name, value.number))
    return translation.drafts, outputs


SUPPORTED = (
    "conv2d, linear, batch norm, relu, relu6, silu, hardswish, hardsigmoid, sigmoid, add, mul, concat, max, average "
    "and adaptive average pooling, flatten, dropout, upsampling (nearest, bilinear), pixel shuffle, transposed conv2d "
    "whose stride is its kernel"
)


_UNKNOWN = -1  # the number of a value that an unsupported operation computes; what reads it is checked all the same


class _NoTensor:
    """What an unsupported operation computes where that is not one tensor: several, or a number."""


class _Translation:
    """The layers so far, and what each traced value has become."""

    def __init__(self, program: Program, state: Mapping[str, torch.Tensor]) -> None:
        self.drafts: list[Draft] = []
        self.values: dict[fx.Node, Any] = {}  # Value, Constant, int, Symbolic or _NoTensor
        self._program = program
        self._state = state
        self._needed = _needed(program)
        self._faults: list[str] = []
        self._size_faults: list[str] = []
        self._not_finite: list[str] = []
        self._checked: set[str] = set()
        self._current = program.input_node

    def visit(self, node: fx.Node) -> None:
        """Translate one traced operation; what is wrong with it is kept for `raise_faults`."""
        self._current = node
        if node not in self._needed:
            return
        try:
            self.values[node] = self._translated(node)
        except Unsupported as fault:
            faults = self._size_faults if fault.symbolic else self._faults
            faults.append(f"{_where(node)}: {_operation(node)} {fault}".rstrip())
            self.values[node] = _unknown(node)

    def raise_faults(self) -> None:
        """Raise what `visit` found, all of one kind at once."""
        if lines := list(dict.fromkeys(self._faults + self._size_faults)):
            # What needs a fixed size is listed only where fixing it did not help.
            error = NeedsFixedSizeError if self._size_faults else CaptureError
            raise error(
                f"{len(lines)} unsupported operation{'s' if len(lines) > 1 else ''}:\n  "
                + "\n  ".join(lines)
                + f"\nreplace them by what is supported: {SUPPORTED}"
            )
        if self._not_finite:
            names = ", ".join(dict.fromkeys(self._not_finite))
            raise InputError(f"NaN or infinity in {names}; expected finite weights")

    def add(
        self,
        op: str,
        inputs: Sequence[Value],
        attributes: dict[str, Any] | None = None,
        *,
        weight: Constant | None = None,
        own: dict[str, torch.Tensor] | None = None,
        state: StateNames = NO_STATE,
    ) -> Value:
        """Add a layer and return the value that it computes."""
        path, call = _module(self._current)
        draft = Draft(
            op=op,
            inputs=tuple(value.number for value in inputs),
            output=len(self.drafts) + 1,
            attributes=attributes or {},
            weight=None if weight is None else self._weight(weight, transposed=state.transposed),
            own={role: self._array(tensor, f"the {role} of '{path}'") for role, tensor in (own or {}).items()},
            state=state,
            path=path,
            call=call,
        )
        self.drafts.append(draft)
        return Value(number=draft.output, shape=_shape_of(self._current, op, inputs))

    def copied(self, value: Value) -> Value:
        """Add a layer that changes nothing."""
        if len(value.shape) < 2 or not isinstance(value.shape[1], int):
            raise CaptureError("the network returns one value twice, and it has no fixed number of channels")
        ones, zeros = torch.ones(value.shape[1]), torch.zeros(value.shape[1])
        return self.add("affine", [value], own={"scale": ones, "bias": zeros})

    def _translated(self, node: fx.Node) -> Any:
        if node is self._program.input_node:
            return Value(number=0, shape=tuple(node.meta["val"].shape))
        if node.op in ("placeholder", "get_attr"):
            if (constant := self._program.constants.get(str(node.target))) is None:
                return _NoTensor()  # a part of the program that runs under some context of PyTorch's
            return Constant(tensor=constant[1], source=constant[0])
        if isinstance(size := node.meta.get("val"), (int, torch.SymInt)):
            return _number(size)
        if node.target is operator.getitem:
            first = self.values[node.args[0]]  # type: ignore[index]
            if isinstance(first, _NoTensor):
                return _unknown(node)
            if isinstance(first, Value) and node.args[1] != 0:
                raise Unsupported(f"of result {node.args[1]} of {_operation(node.args[0])}")  # type: ignore[arg-type]
            return first
        inputs = [self.values[source] for source in node.all_input_nodes]
        if not any(isinstance(value, (Value, _NoTensor)) for value in inputs):
            return self._evaluated(node, inputs)
        if _operation(node) not in TRANSLATORS or not isinstance(node.target, OpOverload):
            raise Unsupported()
        if any(isinstance(value, _NoTensor) for value in inputs):
            return _unknown(node)
        result = _first(node.meta["val"])
        known = not any(isinstance(value, Value) and value.number == _UNKNOWN for value in inputs)
        if known and result.dtype != torch.float32:
            raise Unsupported(f"in {result.dtype}; expected float32")
        names = [argument.name for argument in node.target._schema.arguments]
        given = {**dict(zip(names, node.args, strict=False)), **node.kwargs}
        defaults = {a.name: a.default_value for a in node.target._schema.arguments if a.name not in given}
        arguments = {name: fx.node.map_aggregate(value, self._resolved) for name, value in given.items()}
        return TRANSLATORS[_operation(node)](self, Call(arguments={**defaults, **arguments}, shape=tuple(result.shape)))

    def _resolved(self, leaf: Any) -> Any:
        """Return what an argument has become; a tied constant under its name in the module that is running."""
        value = self.values[leaf] if isinstance(leaf, fx.Node) else leaf
        if not isinstance(value, Constant) or not value.source:
            return value
        self._check_finite(value.tensor, f"'{value.source}'")
        path, _ = _module(self._current)
        local = ".".join(filter(None, [path, value.source.rpartition(".")[2]]))
        return replace(value, source=local) if self._state.get(local) is self._state.get(value.source) else value

    def _evaluated(self, node: fx.Node, inputs: Sequence[Any]) -> Constant:
        """Return the result of an operation whose arguments are all constants."""
        if not isinstance(node.target, OpOverload) or torch.Tag.nondeterministic_seeded in node.target.tags:
            raise Unsupported()
        if any(isinstance(value, Symbolic) for value in inputs):
            raise Unsupported("with a size that depends on the input", symbolic=True)

        def tensor(leaf: fx.Node) -> Any:
            value = self.values[leaf]
            if not isinstance(value, Constant):
                return value
            return value.tensor.clone() if is_in_place(node) else value.tensor

        args, kwargs = fx.node.map_arg(node.args, tensor), fx.node.map_arg(node.kwargs, tensor)
        result = node.target(*args, **kwargs)
        if not isinstance(result, torch.Tensor):
            raise Unsupported("of constants")
        return Constant(tensor=result, source=inputs[0].source if _operation(node) in ("alias", "detach") else "")

    def of_size(self, rows: Any, columns: Any) -> Value | None:
        """Return the latest value `[N, C, rows, columns]`, whatever the input's size is, or None."""
        for value in reversed(self.values.values()):
            known = isinstance(value, Value) and value.number != _UNKNOWN and len(value.shape) == 4
            if known and same_sizes(value.shape[2:], (rows, columns)):
                return value  # type: ignore[no-any-return]
        return None

    def _weight(self, weight: Constant, *, transposed: bool) -> DraftWeight:
        identity = (weight.tensor.data_ptr(), transposed)
        for draft in self.drafts:
            if draft.weight is not None and draft.weight.identity == identity:
                return replace(draft.weight, source=weight.source)
        array = self._array(weight.tensor, f"'{weight.source}'")
        if transposed:
            array = np.ascontiguousarray(array.transpose(1, 2, 3, 0).reshape(-1, len(array), 1, 1))
        return DraftWeight(array=array, source=weight.source, identity=identity)

    def _array(self, tensor: torch.Tensor, what: str) -> F32:
        if not self._not_finite:  # else it is the consequence of what is known already
            self._check_finite(tensor, what)
        return np.array(tensor.detach().numpy(), dtype=np.float32, order="C")

    def _check_finite(self, tensor: torch.Tensor, name: str) -> None:
        if name not in self._checked and not torch.isfinite(tensor).all():
            self._not_finite.append(name)
        self._checked.add(name)


def _needed(program: Program) -> set[fx.Node]:
    """Return all that the outputs depend on; the rest (assertions, counters) is not part of the network."""
    needed: set[fx.Node] = set()
    waiting = [node for _, node in program.output_nodes]
    while waiting:
        node = waiting.pop()
        if node not in needed:
            needed.add(node)
            waiting += node.all_input_nodes
    return needed


def _shape_of(node: fx.Node, op: str, inputs: Sequence[Value]) -> tuple[Any, ...]:
    """Return the shape of a layer's result: the traced one, except of an affine layer that is a step towards it."""
    if op == "affine":
        return inputs[0].shape
    return tuple(_first(node.meta["val"]).shape)


def _first(result: Any) -> Any:
    return result[0] if isinstance(result, (tuple, list)) else result


def _unknown(node: fx.Node) -> Value | _NoTensor:
    result = node.meta.get("val")
    return Value(number=_UNKNOWN, shape=tuple(result.shape)) if isinstance(result, torch.Tensor) else _NoTensor()


def _number(size: int | torch.SymInt) -> int | Symbolic:
    if isinstance(size, int):
        return size
    return int(size.node.expr) if size.node.expr.is_Integer else Symbolic(size=size)


def _operation(node: fx.Node) -> str:
    """Return the name of an operation without its namespace, overload and the `_` of its form in place."""
    if isinstance(node.target, OpOverload):
        return node.target._schema.name.rpartition("::")[2].rstrip("_")
    return getattr(node.target, "__name__", str(node.target))


def _module(node: fx.Node) -> tuple[str, str]:
    """Return the path of the innermost module that was running, and a name of this very call of it."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {"": ("", None)}
    call, (path, _) = list(stack.items())[-1]
    return path.partition("@")[0], call


def _where(node: fx.Node) -> str:
    """Return the path and the kind of the innermost module that was running, to be read by people."""
    stack: Mapping[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {"": ("", "")}
    path, kind = list(stack.values())[-1]
    kind = getattr(kind, "__name__", str(kind)).rpartition(".")[2]
    return f"'{path.partition('@')[0]}' ({kind})" if path else f"the network itself ({kind})"
