"""What a person sees of pyquant on the terminal: notes, the progress of long work, and tables.

Nothing is shown until `enable` is called, as the command line does: pyquant used as a library stays silent. Notes and
progress go to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
Progress = Callable[[str, int, int], None]  # what is being done, how much of it is done, of how much

SECONDS_BETWEEN_LINES = 10.0  # of progress, where standard error is not a terminal
MAX_FIXED_WIDTH = 12  # characters of a text column that is never shortened

_enabled: ContextVar[bool] = ContextVar("enabled", default=False)
_bar_shown: ContextVar[bool] = ContextVar("bar_shown", default=False)


def enable() -> None:
    """Show notes and progress from now on."""
    _enabled.set(True)


def note(message: str) -> None:
    """Tell the user one thing worth knowing."""
    if _enabled.get():
        _stderr().print(message, markup=False, highlight=False, soft_wrap=True)


def warn(message: str) -> None:
    """Tell the user one thing that is probably not what they want."""
    note(f"warning: {message}")


@contextmanager
def progress() -> Iterator[Progress]:
    """Show the progress of long work: a bar on a terminal, now and then a line elsewhere.

    Yields:
        A function to call with what is being done, how much of it is done, and of how much, in any unit of work: the
        time left follows from it. Work inside other work shows nothing of its own.
    """
    if not _enabled.get() or _bar_shown.get():
        yield lambda label, done, total: None
        return
    _bar_shown.set(True)
    try:
        with _bars() if _stderr().is_terminal else _lines() as report:
            yield report
    finally:
        _bar_shown.set(False)


def track(items: Sequence[T], label: str) -> Iterator[T]:
    """Yield `items`, showing as `progress` does how many are done; `label` says of what, as in "evaluating"."""
    with progress() as report:
        for done, item in enumerate(items):
            report(label, done, len(items))
            yield item
        report(label, len(items), len(items))


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as rich_progress
    from rich.text import Text

    paces: dict[str, Pace] = {}

    class TimeLeft(rich_progress.ProgressColumn):
        """Counts down between reports too, which may be minutes apart."""

        def render(self, task: rich_progress.Task) -> Text:
            return Text(paces[task.description].text(), style="progress.remaining")

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.TaskProgressColumn(),
        TimeLeft(),
    )
    with rich_progress.Progress(*columns, console=_stderr(), transient=True) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            paces.setdefault(label, Pace()).report(done, total)
            if label not in tasks:
                tasks[label] = bars.add_task(label)
            bars.update(tasks[label], completed=done, total=total)

        yield report


@contextmanager
def _lines() -> Iterator[Progress]:
    paces: dict[str, Pace] = {}
    last = monotonic()

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        pace = paces.setdefault(label, Pace())
        pace.report(done, total)
        now = monotonic()
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            note(f"{label}: {100 * done // max(total, 1)} %, {pace.text()}")
            last = now

    yield report


class Pace:
    """How fast some work goes on: the time it has taken and will take."""

    def __init__(self) -> None:
        self._began = self._reported = monotonic()
        self._first: int | None = None
        self._done = self._total = 0

    def report(self, done: int, total: int) -> None:
        """Take note of how much is done, and of how much; what was done at the first report took no time of ours."""
        if self._first is None or done < self._first:
            self._began, self._first = monotonic(), done
        self._reported, self._done, self._total = monotonic(), done, total

    def seconds_left(self) -> float | None:
        """Return how long the rest will take, as fast as it went so far; None: nothing was done yet."""
        if self._first is None or self._done == self._first:
            return None
        passed = self._reported - self._began
        left = passed * (self._total - self._done) / (self._done - self._first)
        return max(0.0, left - (monotonic() - self._reported))

    def text(self) -> str:
        """Return the time taken, and that left."""
        taken = duration_text(monotonic() - self._began)
        left = self.seconds_left()
        return taken if left is None or self._done == self._total else f"{taken}, about {duration_text(left)} left"


def duration_text(seconds: float) -> str:
    """Return a time for people, to two digits or so: `45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s" if whole < 600 else f"{round(whole / 60)} min"
    minutes = round(whole / 60)
    return f"{minutes // 60} h {minutes % 60:02} min"


def print_json(value: Any) -> None:
    """Print a result as JSON on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on standard output; a column whose name ends in `>` is aligned to the right.

    Where the terminal is narrow, long names and sentences are shortened, numbers never.
    """
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for name, *cells in zip(columns, *rows, strict=True):
        right, title = name.endswith(">"), name.removesuffix(">")
        # rich makes columns narrower that may wrap; their cells may not, so they are shortened instead.
        fixed = right or max(len(text) for text in (title, *cells)) <= MAX_FIXED_WIDTH
        shown.add_column(title, justify="right" if right else "left", no_wrap=fixed)
    for row in rows:
        shown.add_row(*(Text(cell, no_wrap=True, overflow="ellipsis") for cell in row))
    Console(file=sys.stdout).print(shown)


def bytes_text(count: float) -> str:
    """Return a size for people, in units of 1000: `101.9 MB`."""
    for unit in ("B", "kB", "MB"):
        if abs(count) < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"


@cache
def _stderr() -> Console:
    from rich.console import Console

    return Console(stderr=True)
