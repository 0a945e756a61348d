"""What a translated operation is given: its arguments as values, constants and numbers, and where its layers go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.fx.experimental.symbolic_shapes import statically_known_true

from pyquant.graph import StateNames

NO_STATE = StateNames()  # of a layer that no entry of the state dict belongs to


@dataclass(frozen=True, slots=True, kw_only=True)
class Value:
    """A value that the network computes; its dimensions are ints where they are fixed."""

    number: int
    shape: tuple[Any, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Constant:
    """A tensor that does not depend on the input, and its name in the state dict ("" where it has none)."""

    tensor: torch.Tensor
    source: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Symbolic:
    """A number that depends on the size of the input."""

    size: Any


class Unsupported(Exception):
    """An operation, or this use of it, that our layers cannot express; `symbolic`: because a size is not fixed."""

    def __init__(self, reason: str = "", *, symbolic: bool = False) -> None:
        super().__init__(reason)
        self.symbolic = symbolic


class Layers(Protocol):
    """Where translated layers go."""

    def of_size(self, rows: Any, columns: Any) -> Value | None:
        """Return a value `[N, C, rows, columns]`, whatever the input's size is, or None where there is none."""

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One call of a PyTorch operation: its arguments by the names of its schema, and the shape of its result."""

    arguments: dict[str, Any]
    shape: tuple[Any, ...]

    def value(self, name: str) -> Value:
        """Return an argument that the network computes."""
        found = self.arguments[name]
        if not isinstance(found, Value):
            raise Unsupported(f"of a constant {name}")
        return found

    def constant(self, name: str) -> Constant | None:
        """Return an argument that does not depend on the input, or None where it is not given."""
        found = self.arguments[name]
        if isinstance(found, Value):
            raise Unsupported(f"with a {name} that the network computes")
        if found is not None and not isinstance(found, Constant):
            raise Unsupported(f"with a {name} that is not a tensor")
        return found

    def parameter(self, name: str) -> Constant:
        """Return an argument that is an entry of the state dict as it is."""
        found = self.constant(name)
        if found is None or not found.source:
            raise Unsupported(
                f"with a {name} computed from other tensors; first make it a parameter of its own "
                "(torch.nn.utils.parametrize.remove_parametrizations, remove_weight_norm, prune.remove)"
            )
        return found

    def pair(self, name: str) -> tuple[int, int]:
        """Return an argument of two fixed integers, which may be given as one."""
        values = self.arguments[name]
        values = list(values) if isinstance(values, (list, tuple)) else [values]
        if any(isinstance(value, Symbolic) for value in values):
            raise Unsupported(f"with a {name} that depends on the size of the input", symbolic=True)
        first, second = values * 2 if len(values) == 1 else values
        return int(first), int(second)


def same_size(a: Any, b: Any) -> bool:
    """Return whether two sizes are equal for every input."""
    return a == b if isinstance(a, int) and isinstance(b, int) else bool(statically_known_true(a == b))


def same_sizes(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Return whether two shapes are equal for every input."""
    return len(a) == len(b) and all(same_size(x, y) for x, y in zip(a, b, strict=True))
