"""A histogram that grows with what it counts, and the range in which 8 bits hold its numbers with the least error."""

from __future__ import annotations

from math import frexp, gcd

import numpy as np
from numpy.typing import NDArray

from pyquant.layers import RANGE_WIDTHS

HALF = 2048  # bins on each side of 0; at least half of those on one side are used
COUNTED = 1 << 15  # numbers of one array that are counted at most; the lowest and highest are looked for among all
LEVELS = 255  # steps of an 8-bit number
# Of the lowest and of the highest number: where a range may end. Errors change little from one to the next.
ENDS = 2.0 ** -np.arange(0, 6.01, 1 / 32)

Floats = NDArray[np.float32]


class Histogram:
    """Counts of numbers in 2 * HALF bins of one width, a power of two, with 0 between the two halves.

    Where a number lies beyond the last bin, bins become twice as wide as often as is needed and neighbours are merged.
    So the counts do not depend on the order in which arrays come.
    """

    def __init__(self) -> None:
        self.lowest = 0.0  # of all numbers, and 0
        self.highest = 0.0
        self._counts = np.zeros(2 * HALF, np.int64)
        self._zeros = 0  # numbers counted that are exactly 0
        self._exponent = frexp(RANGE_WIDTHS[0])[1]  # bins reach from -2**exponent to 2**exponent

    def add(self, array: Floats, turn: int = 0) -> None:
        """Count the numbers of a contiguous float32 array, or some of many, evenly spread.

        Args:
            array: of any shape.
            turn: which ones of many are counted: others for each turn, always the same for one.

        Raises:
            ValueError: there are numbers that are not finite.
        """
        lowest, highest = float(array.min()), float(array.max())  # NaN, where there is one
        if not (np.isfinite(lowest) and np.isfinite(highest)):
            raise ValueError("numbers that are not finite")
        self.lowest, self.highest = min(self.lowest, lowest), max(self.highest, highest)
        self._widen(frexp(max(-self.lowest, self.highest))[1])
        step = _step(array.size)
        numbers = array.reshape(-1)[turn % step :: step]
        # Scaled by a power of two, so exactly; a number of the largest float32 can be.
        bins = np.floor(numbers * np.float32(2.0**-self._exponent * HALF)).astype(np.int32) + HALF
        self._counts += np.bincount(bins, minlength=2 * HALF)
        self._zeros += int(np.count_nonzero(numbers == 0))

    def best_range(self) -> tuple[float, float]:
        """Return the lowest and highest number of the 8-bit form that has the least squared error, both float32.

        Level q of 0..255 is `scale * (q - zero)`; numbers beyond are clipped. `zero` is one of the levels, so that 0 is
        exact, and where no number is negative, no level is. Where all numbers are 0 or nearly, it is 0 to 1.
        """
        narrowest, widest = RANGE_WIDTHS
        if self.highest - self.lowest < 4 * narrowest:  # which leaves room for a lost end, and for rounding
            return 0.0, 1.0
        lows = np.maximum(self.lowest, -widest / 4) * (ENDS if self.lowest < 0 else ENDS[:1])
        highs = np.minimum(self.highest, widest / 4) * (ENDS if self.highest > 0 else ENDS[:1])
        scales, zeros = _levels(lows[:, None], highs[None, :])
        errors = self._errors(scales, zeros)
        errors[scales * LEVELS < narrowest] = np.inf
        best = np.unravel_index(errors.argmin(), errors.shape)  # the first of equals, and so the widest
        scale, zero = float(scales[best]), float(zeros[best])
        return float(np.float32((0 - zero) * scale)), float(np.float32((LEVELS - zero) * scale))

    def _widen(self, exponent: int) -> None:
        while self._exponent < exponent:
            pairs = self._counts.reshape(-1, 2).sum(axis=1)
            self._counts = np.zeros_like(self._counts)
            self._counts[HALF // 2 : HALF + HALF // 2] = pairs
            self._exponent += 1

    def _errors(self, scales: NDArray[np.float64], zeros: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the sum of squared errors of 8-bit forms.

        A number beyond the levels is off by its distance from the last one, one that becomes 0 by itself, and any other
        by step / sqrt(12), as if numbers were spread evenly between two levels.
        """
        width = 2.0**self._exponent / HALF
        centres = np.clip((np.arange(2 * HALF) - HALF + 0.5) * width, self.lowest, self.highest)
        counts = self._counts.astype(np.float64)
        counts[HALF] -= self._zeros  # which have no error
        # Of all bins before one: how many numbers there are, their sum, and that of their squares.
        sums = np.zeros((3, 2 * HALF + 1))
        np.cumsum([counts, counts * centres, counts * centres**2], axis=1, out=sums[:, 1:])

        low, high = -zeros * scales, (LEVELS - zeros) * scales
        below, within = sums[:, np.searchsorted(centres, low)], sums[:, np.searchsorted(centres, high)]
        above = sums[:, -1].reshape(3, *[1] * scales.ndim) - within
        first, last = np.maximum(-scales / 2, low), np.minimum(scales / 2, high)  # of what becomes 0
        to_zero = sums[:, np.searchsorted(centres, last)] - sums[:, np.searchsorted(centres, first)]
        clipped = [n * end**2 - 2 * end * total + squares for (n, total, squares), end in ((below, low), (above, high))]
        rounded = (within[0] - below[0] - to_zero[0]) * scales**2 / 12
        errors: NDArray[np.float64] = np.maximum(clipped[0], 0) + np.maximum(clipped[1], 0) + to_zero[2] + rounded
        return errors


def _levels(lows: NDArray[np.float64], highs: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return scale and zero of the narrowest 8-bit forms that reach these lows and highs, 0 among their levels.

    An end that is much nearer to 0 than the other may be lost.
    """
    zeros = np.rint(-lows * LEVELS / (highs - lows))
    with np.errstate(divide="ignore", invalid="ignore"):
        down = np.where(zeros > 0, -lows / zeros, 0)
        up = np.where(zeros < LEVELS, highs / (LEVELS - zeros), 0)
    return np.maximum(down, up), zeros


def _step(size: int) -> int:
    """Return how far apart the numbers are that are counted: in every row, column and channel, so coprime to `size`."""
    step = -(-size // COUNTED)
    while gcd(step, size) > 1:
        step += 1
    return step
