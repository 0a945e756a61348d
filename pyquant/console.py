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
Progress = Callable[[str, int, int], None]  # what is being done, how many are done, of how many

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
        A function to call with what is being done, how many are done, and of how many. Work inside other work shows
        nothing of its own.
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
    """Yield `items`, showing as `progress` does how many are done; `label` says of what, as in "reading pictures"."""
    with progress() as report:
        for done, item in enumerate(items):
            report(label, done, len(items))
            yield item
        report(label, len(items), len(items))


@contextmanager
def _bars() -> Iterator[Progress]:
    from rich import progress as rich_progress

    columns = (
        rich_progress.TextColumn("{task.description}"),
        rich_progress.BarColumn(),
        rich_progress.MofNCompleteColumn(),
        rich_progress.TimeRemainingColumn(),
    )
    with rich_progress.Progress(*columns, console=_stderr(), transient=True) as bars:
        tasks: dict[str, rich_progress.TaskID] = {}

        def report(label: str, done: int, total: int) -> None:
            if label not in tasks:
                tasks[label] = bars.add_task(label)
            bars.update(tasks[label], completed=done, total=total)

        yield report


@contextmanager
def _lines() -> Iterator[Progress]:
    start: dict[str, float] = {}
    last = monotonic()

    def report(label: str, done: int, total: int) -> None:
        nonlocal last
        now = monotonic()
        seconds = now - start.setdefault(label, now)
        if done == total or now - last >= SECONDS_BETWEEN_LINES:
            note(f"{label}: {done} of {total}, {seconds:.1f} s")
            last = now

    yield report


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
