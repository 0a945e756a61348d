"""How fast a machine trains, which turns minutes into a number of steps."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Seconds that training takes."""

    new: float  # a step whose pictures the dense network has not met
    known: float  # any other step
    judging: float  # one judgement on the pictures held back

    def steps(self, seconds: float, new_batches: float) -> int:
        """Return how many steps fit into so many seconds; the first `new_batches` of them need the dense network."""
        new = min(new_batches, max(0.0, seconds / self.new))
        return int(new + max(0.0, seconds - new * self.new) / self.known)

    def corrected(self, seconds: float, steps: int, trials: int) -> Pace:
        """Return the pace at which so many trials, of `steps` steps together, took so many seconds.

        A machine that is busy for minutes is slower than one that was timed for a second. All trials have the same
        batches, new at the first.
        """
        if not trials:
            return self
        expected = steps / trials * (self.new + (trials - 1) * self.known) + trials * self.judging
        factor = seconds / expected
        return Pace(new=factor * self.new, known=factor * self.known, judging=factor * self.judging)


@dataclass(slots=True, kw_only=True)
class Timing:
    """What settles how many steps there are, as soon as the first learning rate is chosen."""

    pace: Pace  # of the first steps
    seconds: float  # left
    spent: float = 0.0  # seconds, on trials
    steps: int = 0  # of trials

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Timing:
        """Return what `dataclasses.asdict` gave."""
        return cls(**{**values, "pace": Pace(**values["pace"])})

    def count(self, seconds: float) -> None:
        """Count a step of a trial, and how long it took."""
        self.seconds -= seconds
        self.spent += seconds
        self.steps += 1
