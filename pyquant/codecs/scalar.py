"""The scalar codec: each weight is replaced by the number of one level of its output's own uniform grid.

Dimensions: O outputs · D weights of an output · B bits of a code. Weight i of output o is `step[o] * (code - zero[o] /
2)`: a grid is moved by half steps, so that it may hold 0 or, where levels are few, lie on both sides of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs.packing import pack_codes, packed_bytes, unpack_codes
from pyquant.errors import ConfigError

MIN_BITS, MAX_BITS = 2, 8
OUTPUT_BYTES = 5  # of the step and the zero of an output ..
CODED_BYTES = {"step": 2, "zero": 1}  # .. and when entropy-coded, at most
SIGNED_BYTES = 255  # levels, -127 to 127 steps: all that grids of 8 bits use, so that the runtime's bytes hold them
STEP_BITS = 11  # of a step's mantissa: those below are zeros, which entropy coding takes away


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalarConfig:
    """Replace each weight by one of 2**bits levels, which are evenly spaced for each output.

    With a `rate`, frequent levels are preferred until entropy coding brings codes to so many bits per weight, at most,
    which need not be a whole number; 0: every weight gets the level that suits the outputs best.
    """

    bits: int
    rate: float = 0.0

    def __post_init__(self) -> None:
        if not MIN_BITS <= self.bits <= MAX_BITS:
            raise ConfigError(f"bits must be {MIN_BITS} to {MAX_BITS}, got {self.bits}")
        if not 0 <= self.rate <= self.bits:
            raise ConfigError(f"rate must be 0 (none) to {self.bits}, the bits of a code, got {self.rate:g}")

    @property
    def setting(self) -> str:
        """The text that stands for the config in a rule."""
        return f"scalar:{self.bits}" + (f";rate:{self.rate:g}" if self.rate else "")

    @property
    def centroids(self) -> int:
        """The number of levels."""
        return 1 << self.bits

    @property
    def block(self) -> tuple[int, int, int]:
        """The shape of what a code stands for: one weight."""
        return 1, 1, 1

    @property
    def code_bits(self) -> int:
        """The bits of one packed code."""
        return self.bits

    @property
    def weight_bits(self) -> float:
        """The bits that one weight counts in `bit_operations`."""
        return self.rate or float(self.bits)

    def dimensions(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the dimensions of its tensors, by the letters of `pyquant.layers`."""
        return {"D": prod(weight_shape[1:]), "bits": self.bits}

    def coded_bytes(self, weight_shape: tuple[int, ...]) -> int:
        """Return the bytes of the codes, steps and zeros of a weight: packed, or with a rate the most when coded."""
        if self.rate:
            return sum(self.planned_bytes(weight_shape).values())
        return packed_bytes(prod(weight_shape), self.bits) + OUTPUT_BYTES * weight_shape[0]

    def planned_bytes(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the most bytes that the tensors of a weight take when entropy-coded, by role; {} without a rate.

        They keep to it together, not one by one.
        """
        if not self.rate:
            return {}
        outputs = {role: size * weight_shape[0] for role, size in CODED_BYTES.items()}
        return {"codes": int(self.rate * prod(weight_shape) / 8), **outputs}

    def decoded(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the fp32 weight of `weight_shape` that tensors, by role, stand for."""
        codes = unpack_codes(tensors["codes"], self.bits, prod(weight_shape)).reshape(weight_shape[0], -1)
        return values(codes, tensors["step"], tensors["zero"]).reshape(weight_shape)

    def faults(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with numbers, each with the role of the tensor that holds them."""
        step = tensors["step"].astype(np.float64)
        if (step < 0).any():
            yield "step", "holds a negative step"
        zero = tensors["zero"].astype(np.int64)
        largest = step * np.maximum(zero, 2 * (self.centroids - 1) - zero) / 2
        if (largest > np.finfo(np.float32).max).any():
            yield "step", "is too large: weights are not finite"


def grid_levels(config: ScalarConfig) -> int:
    """Return the number of levels that are made use of."""
    return min(config.centroids, SIGNED_BYTES)


def values(codes: NDArray[np.integer], step: NDArray[np.floating], zero: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return the numbers `[O, D]` that codes `[O, D]` stand for, with steps and zeros `[O]`."""
    halves = 2 * codes.astype(np.int32) - zero[:, None]
    return halves.astype(np.float32) * (step.astype(np.float32) * np.float32(0.5))[:, None]


def rounded_steps(step: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return steps `[O]` with as many bits as a file is to keep: finer ones would make weights no better."""
    mantissa, exponent = np.frexp(step)
    return np.asarray(np.ldexp(np.rint(np.ldexp(mantissa, STEP_BITS)), exponent - STEP_BITS), np.float32)


def tensors_of(
    codes: NDArray[np.integer], step: NDArray[np.floating], zero: NDArray[Any], config: ScalarConfig
) -> dict[str, NDArray[Any]]:
    """Return the tensors that keep codes `[O, D]`, steps and zeros `[O]`, by role."""
    return {"codes": pack_codes(codes, config.bits), "step": step.astype(np.float32), "zero": zero.astype(np.uint8)}
