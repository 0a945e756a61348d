"""The layers of a network while it is captured: numbered values, no names yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.graph import StateNames

F32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class DraftWeight:
    """A weight and the name of the state dict's entry that it came from; layers that share one have one `identity`."""

    array: F32
    source: str
    identity: tuple[int, bool]  # where it lies in memory, and whether its rows are those of a transposed convolution


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """One layer to be: what a Node is, with numbers for its values, its own tensors inside, and where it came from."""

    op: str
    inputs: tuple[int, ...]  # 0 is the network's input
    output: int
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weight: DraftWeight | None = None
    own: Mapping[str, F32] = field(default_factory=dict)  # by role: "scale", "bias"
    state: StateNames = field(default_factory=StateNames)
    path: str = ""  # of the innermost module that was running
    call: str = ""  # the same, told apart by call where a module is called several times
