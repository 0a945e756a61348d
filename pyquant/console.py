"""What a person sees of pyquant on the terminal: notes, the progress of long work, and tables.

Nothing is shown until `enable` is called, as the command line does: pyquant used as a library stays silent. Notes and
progress go to standard error, so that standard output holds results alone.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from functools import cache
from time import monotonic
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 10.0  # of progress, where standard error is not a terminal

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


def track(items: Iterable[T], label: str, total: int | None = None) -> Iterator[T]:
    """Yield `items`, showing how many are done: a bar on a terminal, now and then a line elsewhere.

    Args:
        items: the work, one item after the other.
        label: what is being done, for example "reading pictures".
        total: how many items there are, where `items` has no length.
    """
    if total is None and isinstance(items, Sequence):
        total = len(items)
    if not _enabled.get() or _bar_shown.get():  # work inside other work shows nothing of its own
        yield from items
        return
    shown = _bar_shown.set(True)
    try:
        yield from (_with_bar if _stderr().is_terminal else _with_lines)(items, label, total)
    finally:
        _bar_shown.reset(shown)


def _with_bar(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=_stderr(), transient=True) as progress:
        yield from progress.track(items, total=total, description=label)


def _with_lines(items: Iterable[T], label: str, total: int | None) -> Iterator[T]:
    of_total = "" if total is None else f" of {total}"
    last = start = monotonic()
    done = 0
    for done, item in enumerate(items, 1):
        yield item
        if (now := monotonic()) - last >= SECONDS_BETWEEN_LINES:
            note(f"{label}: {done}{of_total}, {now - start:.0f} s")
            last = now
    note(f"{label}: {done} done, {monotonic() - start:.1f} s")


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, title: str | None = None) -> None:
    """Print a table on standard output: a column whose name ends in `>` is aligned to the right."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    result = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        right = column.endswith(">")
        # The first column names the row and is the one to be shortened where the terminal is narrow.
        result.add_column(
            column.removesuffix(">"), justify="right" if right else "left", no_wrap=True,
            overflow="ellipsis", min_width=None if index == 0 else len(column.removesuffix(">")),
        )  # fmt: skip
    for row in rows:
        result.add_row(*(Text(cell) for cell in row))
    Console(file=sys.stdout).print(result)


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
