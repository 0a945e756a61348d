"""The search for the smallest file whose accuracy falls by no more than is permitted, in few trials.

A trial compresses the network to a size and measures what that costs, which takes minutes; a plan takes a second. So
plans order the sizes: the drop in accuracy is taken to be a power of the output error that is predicted for a size. The
power is fitted to the trials so far, and the size that it points to is the next one, within the bracket between the
largest size that fell too far and the smallest that did not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, exp, log, sqrt

import numpy as np

MAX_TRIALS = 10
CLOSE = 1.02  # ratio of the bracket's ends at which the search ends
FARTHEST = 4.0  # times smaller or larger than one end of the bracket, where the other is not known yet
BEYOND = 1.05  # times, how far beyond the guess a trial goes where one end of the bracket is not known
FIRST_GUESS = 20.0  # points of drop for each unit of predicted error, where nothing was tried yet
LEAST_POINTS = 0.05  # a drop below this is noise, as far as the fit is concerned
EXPONENTS = (0.5, 2.0)  # of the predicted error, between which the fit stays
ROUNDING = 1e-9  # of a size, by the logarithms of the fit
USUAL_EXPONENT = 1.5  # where one trial alone says nothing about it


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One size that was tried."""

    target_bytes: int
    drop: float  # points of accuracy


@dataclass(slots=True, kw_only=True)
class DropSearch:
    """Which size to try next, and whether the search is over."""

    max_drop: float  # points
    predicted: Mapping[
        int, float
    ]  # output error by size in bytes; the least and the largest size that are possible too
    trials: list[Trial] = field(default_factory=list)

    @property
    def best(self) -> Trial | None:
        """The smallest size so far that fell by no more than is permitted."""
        _, high = _bracket(self.trials, self.max_drop)
        return next((trial for trial in self.trials if trial.target_bytes == high), None)

    @property
    def least(self) -> int:
        """The smallest size that is possible."""
        return min(self.predicted)

    def next_size(self) -> int | None:
        """Return the bytes of the next file to try, None where the search is over."""
        low, high = _bracket(self.trials, self.max_drop)
        most = max(self.predicted)
        if len(self.trials) >= MAX_TRIALS or high == self.least or low == most:
            return None
        guess = self._guess()
        if low is not None and high is not None:
            if high <= CLOSE * low:
                return None
            guess = self._within(low, high, guess)
        elif high is not None:
            guess = high / self._step(high / guess)
            if guess < CLOSE * self.least:
                guess = self.least
        elif low is not None:
            guess = low * self._step(guess / low)
        # Rounded to whole bytes, but not past the ends by what exp(log(size)) is off.
        return min(max(ceil(guess * (1 - ROUNDING)), self.least), most)

    def add(self, trial: Trial) -> None:
        """Take note of what a size costs."""
        self.trials.append(trial)

    def _within(self, low: int, high: int, guess: float) -> float:
        """Return the size to try in a bracket of which both ends are known."""
        low_before, high_before = _bracket(self.trials[:-1], self.max_drop)
        left = 0.0  # how much of the bracket the last trial has left
        if low_before is not None and high_before is not None:
            left = log(high / low) / log(high_before / low_before)
        if high < CLOSE**2 * low or left > 0.5:
            return sqrt(low * high)  # the guesses are off: halving is quicker
        # A little more than the guess most likely holds. A little less than that fails then, and the search is over.
        return min(max(guess * sqrt(CLOSE), low * CLOSE), high / CLOSE)

    def _step(self, wanted: float) -> float:
        """Return how many times smaller or larger the next size is than the only end of the bracket that is known."""
        # Beyond the guess, to learn the other end; further each time that this was not far enough.
        step = wanted * BEYOND
        if len(self.trials) > 1:
            one, other = (trial.target_bytes for trial in self.trials[-2:])
            step = max(step, max(one / other, other / one) ** 2)
        return min(max(step, BEYOND), FARTHEST)

    def _guess(self) -> float:
        """Return the size at which the drop would be what is permitted, by the trials nearest to it."""
        wanted = max(self.max_drop, LEAST_POINTS)
        nearest = sorted(self.trials, key=lambda trial: abs(log(_points(trial) / wanted)))[:2]
        if not nearest:
            return self._size_at(wanted / FIRST_GUESS)
        errors = [self._error_at(trial.target_bytes) for trial in nearest]
        exponent = USUAL_EXPONENT
        if len(nearest) == 2 and errors[0] != errors[1]:
            slope = log(_points(nearest[0]) / _points(nearest[1])) / log(errors[0] / errors[1])
            exponent = min(max(slope, EXPONENTS[0]), EXPONENTS[1])
        return self._size_at(errors[0] * (wanted / _points(nearest[0])) ** (1 / exponent))

    def _error_at(self, size: float) -> float:
        sizes, errors = self._logarithms()
        return exp(float(np.interp(log(size), sizes, errors)))

    def _size_at(self, error: float) -> float:
        sizes, errors = self._logarithms()
        return exp(float(np.interp(-log(error), [-value for value in errors], sizes)))

    def _logarithms(self) -> tuple[list[float], list[float]]:
        """Return the logarithms of sizes, ascending, and of their errors, which never rise."""
        sizes = sorted(self.predicted)
        errors = np.minimum.accumulate([max(self.predicted[size], 1e-9) for size in sizes])
        return [log(size) for size in sizes], [log(error) for error in errors]


def _points(trial: Trial) -> float:
    return max(trial.drop, LEAST_POINTS)


def _bracket(trials: Sequence[Trial], max_drop: float) -> tuple[int | None, int | None]:
    """Return the smallest size that holds, as the second, and before it the largest below it that does not."""
    high = min((trial.target_bytes for trial in trials if trial.drop <= max_drop), default=None)
    fell = [trial.target_bytes for trial in trials if trial.drop > max_drop]
    return max((size for size in fell if high is None or size < high), default=None), high
