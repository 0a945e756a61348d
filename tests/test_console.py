"""What people see: how long work has taken and will take, however unequal its steps; lines without a terminal."""

import pytest

from pyquant import console
from pyquant.console import Pace, duration_text


class Clock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(console, "monotonic", made)
    return made


def test_time_left_follows_from_the_work_done(clock: Clock) -> None:
    pace = Pace()
    pace.report(0, 1000)
    assert pace.seconds_left() is None
    clock.now += 7
    assert pace.text() == "7 s"
    clock.now += 23
    pace.report(100, 1000)
    assert pace.seconds_left() == pytest.approx(270)
    clock.now += 10
    assert pace.text() == "40 s, about 4 min 20 s left"
    clock.now += 1000  # the next report is late
    assert pace.seconds_left() == 0
    pace.report(1000, 1000)
    assert pace.text() == "17 min"


def test_what_was_done_before_took_no_time_of_ours(clock: Clock) -> None:
    pace = Pace()
    pace.report(900, 1000)
    assert pace.seconds_left() is None
    clock.now += 60
    pace.report(950, 1000)
    assert pace.seconds_left() == pytest.approx(60)


def test_work_that_begins_again_is_timed_again(clock: Clock) -> None:
    pace = Pace()
    pace.report(5, 10)
    clock.now += 500
    pace.report(10, 10)
    pace.report(0, 10)
    clock.now += 10
    pace.report(5, 10)
    assert pace.seconds_left() == pytest.approx(10)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (3570, "60 min"), (7500, "2 h 05 min"),
     (90000, "25 h 00 min")],
)  # fmt: skip
def test_durations(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_lines_where_there_is_no_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "note", lines.append)
    with console._lines() as report:
        report("learning layers", 0, 8)
        clock.now += 12
        report("learning layers", 1, 8)
        clock.now += 1
        report("learning layers", 2, 8)
        clock.now += 100
        report("learning layers", 8, 8)
    assert lines == ["learning layers: 12 %, 12 s, about 1 min 24 s left", "learning layers: 100 %, 1 min 53 s"]


def test_bars_on_a_terminal(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    from rich.console import Console

    shown = Console(file=io.StringIO(), force_terminal=True, width=100)
    monkeypatch.setattr(console, "_stderr", lambda: shown)
    with console._bars() as report:
        report("fine-tuning", 0, 10)
        clock.now += 60
        report("fine-tuning", 5, 10)
    text = shown.file.getvalue()
    assert "fine-tuning" in text
    assert "50%" in text
    assert "1 min 00 s, about 1 min 00 s left" in text
