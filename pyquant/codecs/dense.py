"""The dense codec: a weight kept as it is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Keep the weight in its own dtype (fp32 or fp16)."""

    @property
    def setting(self) -> str:
        """The text that stands for the config in a rule."""
        return "dense"

    @property
    def weight_bits(self) -> float:
        """The bits that one weight counts in `bit_operations`: it is multiplied in fp32, whatever its dtype."""
        return 32.0

    def dimensions(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the dimensions of its tensors, by the letters of `pyquant.layers`."""
        return {}

    def decoded(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the fp32 weight of `weight_shape` that tensors, by role, stand for."""
        return tensors["weight"].astype(np.float32).reshape(weight_shape)

    def faults(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with numbers, each with the role of the tensor that holds them: nothing."""
        yield from ()
