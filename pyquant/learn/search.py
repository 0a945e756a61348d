"""The search for a number whose outcome falls as it grows, by secants between bounds."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite


@dataclass(slots=True)
class Search:
    """Looks for the number, as its log2, whose outcome is what is aimed at.

    By the secant through the last two trials, or half way between the nearest ones with too much and too little.
    """

    log: float  # the next number to try
    slope: float  # of it, with the outcome, to begin with ..
    least_slope: float  # .. and within these bounds
    most_slope: float
    before: tuple[float, float] | None = None  # the last trial, and its excess
    too_small: float = -inf
    too_large: float = inf

    def move(self, excess: float, least: float = -inf) -> None:
        """Take up that a trial had so much too much; numbers then grow by a factor of 2^least or more."""
        if self.before is not None and excess != self.before[1]:
            slope = (self.before[0] - self.log) / (excess - self.before[1])
            self.slope = min(max(slope, self.least_slope), self.most_slope)
        self.before = self.log, excess
        if excess > 0:
            self.too_small = max(self.too_small, self.log)
        else:
            self.too_large = min(self.too_large, self.log)
        wanted = self.log + self.slope * excess
        middle = (self.too_small + self.too_large) / 2
        if isfinite(middle) and not self.too_small < wanted < self.too_large:
            wanted = middle
        self.log = max(wanted, self.log + least)
