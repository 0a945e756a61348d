"""How fast a machine trains, which turns minutes into a number of steps."""

from __future__ import annotations

from dataclasses import dataclass


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
