"""An order: which files are to be made of one network, refused at once if it contradicts itself, and their making."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from torch import nn

from pyquant import console
from pyquant.accuracy import Comparison, Labelled
from pyquant.capture import is_detector
from pyquant.checkpoint import Checkpoint
from pyquant.console import Progress
from pyquant.drop import DropSearch, Trial
from pyquant.errors import ConfigError, InputError
from pyquant.file import read_model
from pyquant.job import Job
from pyquant.learn.calibration import Source
from pyquant.outcome import Made, Outcome, Tried
from pyquant.report_page import check_page, write_page
from pyquant.settings import Settings
from pyquant.storage import check_writable, checked_before_use
from pyquant.targets import Target, check_names, check_possible, targets_of

AnyPath = str | os.PathLike[str]

PLANNED_SIZES = 16  # for which a search has errors predicted, from the smallest file to the largest
NUDGES = 5  # a size that no choice of codecs has is made this many times larger, by `NUDGE` each time
NUDGE = 1.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """Files of given sizes, of the size that the recipe gives, or the smallest one within a permitted drop.

    Sizes are bytes of the file, ratios say how many times smaller than the network in fp32 it is to be.
    """

    out: AnyPath | None  # None: plans alone; of several sizes, a name with {bytes} or {ratio} in it
    sizes: tuple[int, ...] = ()
    ratios: tuple[float, ...] = ()
    max_drop: float | None = None  # points of top-1 on the labelled pictures
    labelled: AnyPath | None = None  # a folder or zip file of pictures in class folders
    page: AnyPath | None = None  # a report as an HTML page
    checkpoint: AnyPath | None = None  # a folder in which to save what is done, to go on where it was stopped

    def __post_init__(self) -> None:
        if self.max_drop is not None:
            if not 0 <= self.max_drop <= 100:
                raise ConfigError(f"the permitted drop must be 0 to 100 points of top-1, got {self.max_drop:g}")
            if self.labelled is None:
                raise ConfigError("a permitted drop is measured on labelled pictures: give them with --labelled")
            if self.sizes or self.ratios:
                raise ConfigError("give a target size or ratio, or a permitted drop, not both")
            if self.out is None:
                raise ConfigError("a permitted drop needs trials, so it has no plan: leave out --dry-run, give --out")
        if self.out is None and self.page is not None:
            raise ConfigError("a report page is about files that were made: leave out --dry-run, or the page")
        if self.sizes and self.ratios:
            raise ConfigError("give a target size or a target ratio, not both")
        if self.several and self.out is not None:
            check_names(self.out, bool(self.ratios))

    @property
    def several(self) -> bool:
        """Whether several sizes are asked for."""
        return len(self.sizes) + len(self.ratios) > 1

    def check_files(self, inputs: Sequence[AnyPath]) -> None:
        """Check that what is to be written can be, and would overwrite none of `inputs`; capture nothing yet.

        Raises:
            InputError: it cannot, or two of them have one name.
            MissingDependencyError: a page is asked for, and what draws its figures is not installed.
        """
        if self.out is not None:
            check_writable(self.out, inputs=inputs)
        if self.page is not None:
            if self.out is not None and os.path.realpath(self.page) == os.path.realpath(self.out):
                raise InputError(f"{self.page}: is the name of the file too; give the page another one")
            check_page(self.page, inputs=inputs)

    def carry_out(self, module: nn.Module, calibration: Source, settings: Settings, progress: Progress) -> Outcome:
        """Make what is ordered.

        Every file is written whole and checked as soon as it is ready; one that fails leaves those before it.

        Raises:
            ConfigError, CaptureError, InputError, SelfCheckError: as `pyquant.compress`; a ConfigError too where no
                file falls by so little as is permitted.
        """
        if self.labelled is not None and is_detector(module):
            raise ConfigError(
                "labelled pictures measure classifiers, and a permitted drop is one of their top-1; of a detector give "
                "sizes with --target-size, and compare the files by `pyquant eval --annotations`"
            )
        searches = self.max_drop is not None
        options = {"several": self.several or searches, "to_size": bool(self.sizes or self.ratios) or searches}
        with self._checkpoint() as checkpoint, Job(module, calibration, settings, progress, **options) as job:
            if checkpoint is not None:
                asked = {"target size": self.sizes, "target ratio": self.ratios, "permitted drop": self.max_drop}
                job.keep(checkpoint, asked)
            targets = targets_of(job.network.graph, self.sizes, self.ratios)
            if targets:
                check_possible(targets, *job.possible_sizes())
            wanted: list[Target | None] = [*targets] or [None]  # None: as the recipe decides
            if self.out is None:
                return Outcome(
                    plans=tuple(job.plan(None if target is None else target.bytes) for target in wanted),
                    several=self.several,
                )
            for target in targets:
                check_writable(target.named(self.out))
            labelled = None
            if self.labelled is not None:
                # The dense network first: pictures that cannot be used show before long work.
                labelled = Labelled(job.network, self.labelled, job.preprocessing, settings.classes, settings.threads)
                console.note(f"the dense network: {labelled.dense_top1:.2f} % top-1 on {labelled.count:,} pictures")
            if self.max_drop is not None and labelled is not None:
                outcome = _Search(self, job, labelled, self.max_drop).run()
            else:
                files = tuple(self._make(job, target, labelled) for target in wanted)
                outcome = Outcome(files=files, several=self.several)
        if self.page is not None:
            write_page(self.page, outcome)
        return outcome

    def _checkpoint(self) -> AbstractContextManager[Checkpoint | None]:
        return nullcontext() if self.checkpoint is None else Checkpoint(self.checkpoint)

    def _make(self, job: Job, target: Target | None, labelled: Labelled | None) -> Made:
        """Make one file, and measure what is asked for."""
        assert self.out is not None
        out = Path(self.out) if target is None else target.named(self.out)
        size = None if target is None else target.bytes
        report = job.compress(out, size)
        return Made(
            report=report,
            target_bytes=size,
            plan=job.plan(size) if size is not None or job.bounds_operations else None,
            output_error=job.output_error(out) if self.several or self.page is not None else None,
            accuracy=None if labelled is None else labelled.compare(out),
            provenance=read_model(out).provenance,
        )


class _Search:
    """The search for the smallest file within a permitted drop."""

    def __init__(self, order: Order, job: Job, labelled: Labelled, max_drop: float) -> None:
        assert order.out is not None
        self._out = order.out
        self._measure = order.page is not None
        self._job = job
        self._labelled = labelled
        self._max_drop = max_drop
        self._trials: list[Tried] = []
        self._best: Made | None = None

    def run(self) -> Outcome:
        """Try sizes; the smallest file so far that holds is at its place as soon as it is known to."""
        search = DropSearch(max_drop=self._max_drop, predicted=self._predicted_errors())
        while (size := search.next_size()) is not None:
            tried = {trial.target_bytes for trial in search.trials}
            feasible = self._feasible(size) or min(known for known in {*search.predicted, *tried} if known >= size)
            if feasible in tried:
                break  # between the sizes that are left there is no file
            try:
                search.add(Trial(target_bytes=feasible, drop=self._try(feasible)))
            except ConfigError as error:
                if self._best is None:
                    raise
                console.warn(f"the search ends with the smallest file so far: {error}")
                break
        if self._best is None:
            nearest = min(self._trials, key=lambda tried: tried.accuracy.drop)
            raise ConfigError(
                f"no file falls by at most {self._max_drop:g} points of top-1: of {len(self._trials)} trials the "
                f"nearest was {nearest.bytes:,} bytes, {nearest.accuracy.drop:.2f} points down; nothing was written. "
                "Permit a larger drop, or fine-tune"
            )
        return Outcome(
            files=(self._best,),
            trials=tuple(self._trials),
            max_drop=self._max_drop,
            is_smallest=search.best is not None and search.best.target_bytes == search.least,
        )

    def _predicted_errors(self) -> dict[int, float]:
        """Return the predicted output error for sizes from the smallest possible to the largest."""
        sizes = np.geomspace(*self._job.possible_sizes(), PLANNED_SIZES)
        errors = {}
        for size in [self._feasible(int(size)) for size in sizes.round()]:
            if size is not None:
                errors[size] = self._job.plan(size).output_error
        return errors

    def _feasible(self, size: int) -> int | None:
        """Return the size, or one a little larger that a choice of codecs has; None: there is a wide gap."""
        for _ in range(NUDGES):
            with suppress(ConfigError):
                self._job.plan(size)
                return size
            size = int(size * NUDGE) + 1
        return None

    def _try(self, size: int) -> float:
        """Make a file, which takes its place if it holds; return its drop in points."""
        with suppress(_Rejected), checked_before_use(self._out) as path:
            report = self._job.compress(path, size)
            accuracy = self._labelled.compare(path)
            tried = Tried(
                target_bytes=size, bytes=report.bytes, accuracy=accuracy, holds=accuracy.drop <= self._max_drop
            )
            self._trials.append(tried)
            console.note(
                f"trial {len(self._trials)}: {report.bytes:,} bytes, {accuracy.top1_after:.2f} % top-1, "
                f"{_points(accuracy)}: {'holds' if tried.holds else 'too far'}"
            )
            if not tried.holds or (self._best is not None and report.bytes >= self._best.report.bytes):
                raise _Rejected
            self._best = Made(
                report=replace(report, file=os.fspath(self._out)),
                target_bytes=size,
                plan=self._job.plan(size),
                output_error=self._job.output_error(path) if self._measure else None,
                accuracy=accuracy,
                provenance=read_model(path).provenance,
            )
        return self._trials[-1].accuracy.drop


class _Rejected(Exception):
    """A trial's file is not to take its place."""


def _points(accuracy: Comparison) -> str:
    direction = "down" if accuracy.drop >= 0 else "up"
    return f"{abs(accuracy.drop):.2f} points {direction} (standard error {accuracy.standard_error:.2f})"
