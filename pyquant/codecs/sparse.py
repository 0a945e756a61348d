"""The sparse codec: some of the weights are kept, as levels of their output's own uniform grid; the others are zero.

Dimensions: O outputs · C input channels (per group) · D weights of an output · U units of a weight, the neighbouring
inputs that a code of the mask is of · S weights that are kept · B bits of a kept weight's code.

Neighbours are the input channels of one kernel position: weights of an output are taken in the order `[kh, kw, C]`.
Kept weight i of output o is `step[o] * (code - zero[o] / 2)`, as in the scalar codec. At an odd zero levels lie on both
sides of 0, and none is wasted on it. The zeros of what is dropped are so many half steps, or steps, like all others:
signed bytes hold these weights where they hold those of the scalar codec.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from math import comb, log2, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import scalar
from pyquant.codecs.packing import is_worth_coding, pack_codes, packed_bytes, unpack_codes
from pyquant.codecs.product import as_conv_shape
from pyquant.codecs.scalar import ScalarConfig
from pyquant.errors import ConfigError, InputError

RUNS = (1, 4)
MAX_PATTERNS = 256  # of N in M: a code of 8 bits
# What a coded mask takes beyond its entropy, at most: a table, and where few weights are kept (or dropped) this share
# for the bytes of codes that are rarer than a table can say. Measured on random masks of 2,000 to 2.4 million weights.
MASK_TABLE_BYTES = 256
RARE_PATTERNS, USUAL_SHARE = 0.02, 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class SparseConfig:
    """Keep some of the weights, each as a level of its output's own uniform grid; the others are zero.

    Kept are the `kept` share of all weights: anywhere, in runs of neighbouring inputs, or so many in every `of`
    neighbouring inputs, which is N:M sparsity.
    """

    kept: float
    bits: int = 8  # of a kept weight's code
    run: int = 1  # neighbouring inputs that are kept or dropped together
    of: int = 0  # 0: anywhere

    def __post_init__(self) -> None:
        if not 0 < self.kept < 1:
            raise ConfigError(f"the share that is kept must lie between 0 and 1, got {self.kept:g}")
        _ = self.grids
        if self.run not in RUNS:
            raise ConfigError(f"run must be {' or '.join(map(str, RUNS))}, got {self.run}")
        if not self.of:
            return
        if self.run != 1:
            raise ConfigError(f"run must be 1 where so many of {self.of} inputs are kept, got {self.run}")
        if not 2 <= self.of <= MAX_PATTERNS:
            raise ConfigError(f"weights can be kept of 2 to {MAX_PATTERNS} neighbouring inputs, got {self.of}")
        if not 1 <= self.kept_of < self.of or self.kept_of / self.of != self.kept:
            raise ConfigError(
                f"of {self.of} inputs a whole number must be kept, at least 1 and not all, got {self.kept * self.of:g}"
            )
        if self.patterns > MAX_PATTERNS:
            raise ConfigError(
                f"{self.kept_of} of {self.of} inputs can be kept in {self.patterns:,} ways; expected at most "
                f"{MAX_PATTERNS}"
            )

    @property
    def setting(self) -> str:
        """The text that stands for the config in a rule."""
        share = f"{self.kept_of}:{self.of}" if self.of else f"{self.kept}"
        return f"sparse:{share}" + (f";run:{self.run}" if self.run > 1 else "") + f";bits:{self.bits}"

    @property
    def grids(self) -> ScalarConfig:
        """The grids of the weights that are kept."""
        return ScalarConfig(bits=self.bits)

    @property
    def kept_of(self) -> int:
        """The number of inputs that are kept of every `of`."""
        return round(self.kept * self.of)

    @property
    def patterns(self) -> int:
        """The number of ways in which the weights of a unit are kept, each a code of the mask."""
        return comb(self.of, self.kept_of) if self.of else 2

    @property
    def unit(self) -> int:
        """The number of neighbouring inputs that a code of the mask is of."""
        return self.of or self.run

    @property
    def mask_bits(self) -> int:
        """The bits of one packed code of the mask."""
        return (self.patterns - 1).bit_length()

    @property
    def rate(self) -> float:
        """The bits per weight that codes were to take: none were asked for."""
        return 0.0

    @property
    def centroids(self) -> int:
        """The number of levels."""
        return self.grids.centroids

    @property
    def block(self) -> tuple[int, int, int]:
        """The shape of what a code of a kept weight stands for: one weight."""
        return self.grids.block

    @property
    def code_bits(self) -> int:
        """The bits of one packed code of a kept weight."""
        return self.bits

    @property
    def weight_bits(self) -> float:
        """The bits that one weight counts in `bit_operations`."""
        return self.kept * self.bits

    def unit_patterns(self) -> NDArray[np.bool_]:
        """Return which weights `[P, unit]` of a unit are kept by each code of the mask."""
        return patterns_of(self.kept_of, self.of) if self.of else np.array([[False] * self.run, [True] * self.run])

    def misfit(self, weight_shape: tuple[int, ...]) -> str:
        """Return why a weight of this shape cannot be coded; "" where it can."""
        channels = weight_shape[1]
        if channels % self.unit == 0:
            return ""
        return f"its {channels} input channels are no multiple of the {self.unit} that '{self.setting}' takes together"

    def kept_weights(self, weight_shape: tuple[int, ...]) -> int:
        """Return S, the number of weights that are kept of a weight that fits."""
        units = prod(weight_shape) // self.unit
        return units * self.kept_of if self.of else self.run * max(1, round(self.kept * units))

    def dimensions(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the dimensions of its tensors, by the letters of `pyquant.layers`."""
        return {
            "U": prod(weight_shape) // self.unit,
            "S": self.kept_weights(weight_shape),
            "bits": self.bits,
            "mask_bits": self.mask_bits,
        }

    def coded_bytes(self, weight_shape: tuple[int, ...]) -> int:
        """Return the bytes of the mask, coded or packed, and of the packed codes, the steps and zeros of a weight."""
        sizes = self.packed_bytes(weight_shape) | self.planned_bytes(weight_shape)
        return sum(sizes.values()) + scalar.OUTPUT_BYTES * weight_shape[0]

    def planned_bytes(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the most bytes that the mask of a weight takes when entropy-coded, by role; {} where that is no less.

        How many weights are kept is known before which of them: S / run of U units, or each pattern of N in M as often.
        """
        sizes = self.dimensions(weight_shape)
        share = self.kept_weights(weight_shape) / prod(weight_shape)
        rare = min(share, 1 - share)
        extra = RARE_PATTERNS * max(0.0, 1 - rare / USUAL_SHARE) ** 2
        bits = log2(self.patterns) if self.of else _binary_entropy(share)
        most = MASK_TABLE_BYTES + int(sizes["U"] * bits * (1 + extra) / 8)
        return {"mask": most} if is_worth_coding(most, packed_bytes(sizes["U"], self.mask_bits)) else {}

    def packed_bytes(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the bytes of the mask and the codes of a weight when packed, by role."""
        sizes = self.dimensions(weight_shape)
        return {"mask": packed_bytes(sizes["U"], self.mask_bits), "codes": packed_bytes(sizes["S"], self.bits)}

    def decoded(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the fp32 weight of `weight_shape` that tensors, by role, stand for."""
        kept = self._kept(tensors, weight_shape)
        codes = np.zeros(kept.shape, np.uint16)
        codes[kept] = unpack_codes(tensors["codes"], self.bits, self.kept_weights(weight_shape))
        numbers = scalar.values(codes, tensors["step"], tensors["zero"])
        return from_channels_last(np.where(kept, numbers, np.float32(0)), weight_shape)

    def kept_mask(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which weights `[O, D]`, in the order of the weight itself, tensors, by role, keep."""
        return from_channels_last(self._kept(tensors, weight_shape), weight_shape).reshape(weight_shape[0], -1)

    def _kept(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.bool_]:
        """Return which weights `[O, D]`, channels last, are kept."""
        units = unpack_codes(tensors["mask"], self.mask_bits, prod(weight_shape) // self.unit)
        return self.unit_patterns()[units].reshape(weight_shape[0], -1)

    def faults(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with numbers, each with the role of the tensor that holds them."""
        yield from self.grids.faults(tensors, weight_shape)
        units = unpack_codes(tensors["mask"], self.mask_bits, prod(weight_shape) // self.unit)
        if (largest := int(units.max())) >= self.patterns:
            yield "mask", f"holds pattern {largest}; there are {self.patterns}"
        wanted = self.kept_weights(weight_shape)
        if not self.of and (found := self.run * int(np.count_nonzero(units))) != wanted:
            yield "mask", f"keeps {found:,} weights; expected {wanted:,} of {prod(weight_shape):,}"


def _binary_entropy(share: float) -> float:
    """Return the bits that it takes to say of one unit whether it is kept, when this share of all is."""
    return -share * log2(share) - (1 - share) * log2(1 - share) if 0 < share < 1 else 0.0


def channels_last(weight: NDArray[Any]) -> NDArray[Any]:
    """Return the weights `[O, D]` of `[O, C, kh, kw]` or `[O, C]`, of an output in the order `[kh, kw, C]`."""
    o, c, kh, kw = as_conv_shape(weight.shape)
    return np.ascontiguousarray(weight.reshape(o, c, kh, kw).transpose(0, 2, 3, 1)).reshape(o, -1)


def from_channels_last(rows: NDArray[Any], weight_shape: tuple[int, ...]) -> NDArray[Any]:
    """Return the weight of `weight_shape` of which `channels_last` gave the rows `[O, D]`."""
    o, c, kh, kw = as_conv_shape(weight_shape)
    return np.ascontiguousarray(rows.reshape(o, kh, kw, c).transpose(0, 3, 1, 2)).reshape(weight_shape)


def patterns_of(kept: int, of: int) -> NDArray[np.bool_]:
    """Return the patterns `[P, of]` in which so many of `of` neighbours can be kept, in lexicographic order.

    That is the order of the lists of positions that are kept: of 2 in 4 the first is 0, 1, the second 0, 2.
    """
    patterns = np.zeros((comb(of, kept), of), np.bool_)
    for pattern, positions in zip(patterns, combinations(range(of), kept), strict=True):
        pattern[list(positions)] = True
    return patterns


def tensors_of(
    kept_mask: NDArray[np.bool_],
    codes: NDArray[np.integer],
    step: NDArray[np.floating],
    zero: NDArray[Any],
    config: SparseConfig,
    weight_shape: tuple[int, ...],
) -> dict[str, NDArray[Any]]:
    """Return the tensors that keep a weight, by role.

    Args:
        kept_mask: which weights `[O, D]` are kept, in the order of the weight itself.
        codes: of these, `[O, D]` too; what is there for others does not count.
        step: `[O]`.
        zero: `[O]`, in half steps.
        config: with which the mask must agree.
        weight_shape: `[O, C, kh, kw]` or `[O, C]`.

    Raises:
        InputError: other weights are kept than the config says, or a code needs more bits.
    """
    kept = channels_last(kept_mask.reshape(weight_shape))
    units = kept.reshape(-1, config.unit)
    wanted, found = config.kept_weights(weight_shape), int(np.count_nonzero(kept))
    if found != wanted:
        raise InputError(f"expected {wanted:,} weights to be kept for '{config.setting}', got {found:,}")
    if config.of:
        if (units.sum(axis=1) != config.kept_of).any():
            raise InputError(f"expected {config.kept_of} of each {config.of} neighbouring inputs to be kept")
        mask = _ranks(units, config.kept_of)
    else:
        mask = units[:, 0].astype(np.uint8)
        if (units != units[:, :1]).any():
            raise InputError(f"expected runs of {config.run} neighbouring inputs to be kept or dropped together")
    rows = channels_last(codes.reshape(weight_shape))
    return {
        "mask": pack_codes(mask, config.mask_bits),
        **scalar.tensors_of(rows[kept], step, zero, config.grids),
    }


def _ranks(units: NDArray[np.bool_], kept: int) -> NDArray[np.int64]:
    """Return the index in `patterns_of` of each of the patterns `[U, of]`, which keep so many."""
    of = units.shape[1]
    ranks, left = np.zeros(len(units), np.int64), np.full(len(units), kept)
    for position in range(of):
        # Where this one is dropped, all patterns come before that begin in the same way and keep it.
        before = [0] + [min(comb(of - position - 1, more), MAX_PATTERNS) for more in range(kept)]
        ranks += np.where(units[:, position], 0, np.array(before)[left])
        left -= units[:, position]
    return ranks
