"""The outcome of a compression: files with what was measured of them, the trials that led to one, or plans alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pyquant.accuracy import Comparison
from pyquant.planning import Plan
from pyquant.report import Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A file that was written, and what was predicted and measured of it."""

    report: Report
    target_bytes: int | None  # None: the recipe decided
    plan: Plan | None  # by which codecs were chosen; None where the recipe decided
    output_error: float | None  # relative, squared, of the network's outputs on calibration inputs; None: not measured
    accuracy: Comparison | None  # None without labelled pictures
    provenance: Mapping[str, Any]  # what the file says of its making

    @property
    def predicted_error(self) -> float | None:
        """What the plan says of the relative squared error of the network's outputs."""
        return None if self.plan is None else self.plan.output_error

    def to_json(self) -> dict[str, Any]:
        """Return the file's report as plain JSON values, with all that is known besides."""
        known = {
            "target_bytes": self.target_bytes,
            "predicted_output_error": self.predicted_error,
            "output_error": self.output_error,
            "accuracy": self.accuracy.to_json() if self.accuracy else None,
        }
        return self.report.to_json() | {key: value for key, value in known.items() if value is not None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A file that was made on the way to the smallest one within a permitted drop."""

    target_bytes: int
    bytes: int
    accuracy: Comparison
    holds: bool  # it falls by no more than is permitted

    def to_json(self) -> dict[str, Any]:
        """Return the trial as plain JSON values."""
        return {
            "target_bytes": self.target_bytes,
            "bytes": self.bytes,
            "top1": self.accuracy.top1_after,
            "drop": self.accuracy.drop,
            "standard_error": self.accuracy.standard_error,
            "holds": self.holds,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """All that one run has made: files, or plans where it was a dry one."""

    files: tuple[Made, ...] = ()
    plans: tuple[Plan, ...] = ()
    trials: tuple[Tried, ...] = ()  # of a search, in the order in which they were made
    max_drop: float | None = None  # points of top-1, of a search
    is_smallest: bool = False  # whether the file that a search found is the smallest that is possible at all
    several: bool = False  # whether several sizes were asked for

    def to_json(self) -> dict[str, Any]:
        """Return the outcome as plain JSON values, as `compress --json` prints it."""
        if self.plans:
            plans = [plan.to_json() for plan in self.plans]
            return {"plans": plans} if self.several else plans[0]
        files = [made.to_json() for made in self.files]
        if self.several:
            return {"files": files}
        if self.max_drop is None:
            return files[0]
        search = {"max_drop": self.max_drop, "trials": [trial.to_json() for trial in self.trials]}
        return files[0] | search | {"smallest_possible": self.is_smallest}
