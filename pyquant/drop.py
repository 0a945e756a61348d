"""The search for the smallest file whose accuracy falls by no more than is permitted, in few trials.

A trial compresses the network to a size and measures what that costs, which takes minutes; a plan takes a second. So
plans order the sizes: the drop in accuracy is taken to be a power of the output error that is predicted for a size. The
power is fitted to the trials so far, and the size that it points to is the next one, within the bracket between the
largest size that fell too far and the smallest that did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import exp, log, sqrt

import numpy as np

MAX_TRIALS = 10
CLOSE = 1.02  # ratio of the bracket's ends at which the search ends
FARTHEST = 4.0  # times smaller or larger than one end of the bracket, where the other is not known yet
MARGIN = 0.15  # of the bracket, in the logarithm of the size, that a trial keeps away from its ends
FIRST_GUESS = 30.0  # points of drop for each unit of predicted error, where nothing was tried yet
LEAST_POINTS = 0.05  # a drop below this is noise, as far as the fit is concerned
EXPONENTS = (0.5, 2.0)  # of the predicted error, between which the fit stays


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
        held = [trial for trial in self.trials if trial.drop <= self.max_drop]
        return min(held, key=lambda trial: trial.target_bytes, default=None)

    @property
    def least(self) -> int:
        """The smallest size that is possible."""
        return min(self.predicted)

    def next_size(self) -> int | None:
        """Return the bytes of the next file to try, None where the search is over."""
        high = self.best.target_bytes if self.best is not None else None
        low = max((trial.target_bytes for trial in self.trials if self._is_below(trial, high)), default=None)
        most = max(self.predicted)
        if len(self.trials) >= MAX_TRIALS or high == self.least or low == most:
            return None
        guess = self._guess()
        if low is not None and high is not None:
            if high <= CLOSE * low:
                return None
            if self._same_end_twice():
                guess = sqrt(low * high)
            width = (high / low) ** MARGIN
            guess = min(max(guess, low * width), high / width)
        elif high is not None:
            farthest = high / FARTHEST
            guess = farthest if self._same_end_twice() else min(max(guess, farthest), high / CLOSE)
            if guess < CLOSE * self.least:
                guess = self.least
        elif low is not None:
            farthest = low * FARTHEST
            guess = farthest if self._same_end_twice() else max(min(guess, farthest), low * CLOSE)
        return int(min(max(guess, self.least), most))

    def add(self, trial: Trial) -> None:
        """Take note of what a size costs."""
        self.trials.append(trial)

    def _is_below(self, trial: Trial, high: int | None) -> bool:
        """Say whether a trial is a lower end of the bracket."""
        return trial.drop > self.max_drop and (high is None or trial.target_bytes < high)

    def _same_end_twice(self) -> bool:
        """Say whether the last two trials have moved the same end: the fit is off, and longer steps are quicker."""
        last = [trial.drop <= self.max_drop for trial in self.trials[-2:]]
        return len(last) == 2 and last[0] == last[1]

    def _guess(self) -> float:
        """Return the size at which the drop would be what is permitted, by the trials nearest to it."""
        wanted = max(self.max_drop, LEAST_POINTS)
        nearest = sorted(self.trials, key=lambda trial: abs(log(_points(trial) / wanted)))[:2]
        if not nearest:
            return self._size_at(wanted / FIRST_GUESS)
        errors = [self._error_at(trial.target_bytes) for trial in nearest]
        exponent = 1.0
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
