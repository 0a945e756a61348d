"""The search for the smallest file within a permitted drop: few trials, the right end, and an end."""

from collections.abc import Callable

import numpy as np
import pytest

from pyquant.drop import CLOSE, MAX_TRIALS, DropSearch, Trial

LEAST, MOST = 100_000, 40_000_000
SIZES = [int(size) for size in np.geomspace(LEAST, MOST, 16)]


def predicted(size: float) -> float:
    return 2e4 / size


def searched(drop_at: Callable[[int], float], max_drop: float) -> DropSearch:
    search = DropSearch(max_drop=max_drop, predicted={size: predicted(size) for size in SIZES})
    while (size := search.next_size()) is not None:
        assert LEAST <= size <= MOST
        assert all(size != trial.target_bytes for trial in search.trials)
        search.add(Trial(target_bytes=size, drop=drop_at(size)))
    return search


DROPS: dict[str, Callable[[float], float]] = {  # points, of the predicted error
    "as guessed": lambda error: 30 * error,
    "many times more": lambda error: 400 * error,
    "many times less": lambda error: 2 * error,
    "steep": lambda error: 3000 * error**2,
    "flat": lambda error: 8 * error**0.5,
    "a cliff": lambda error: 0.0 if error < 0.011 else 60.0,
}


@pytest.mark.parametrize("max_drop", [0.3, 1.0, 5.0])
@pytest.mark.parametrize("name", DROPS)
def test_the_smallest_file_that_holds_is_found_in_few_trials(name: str, max_drop: float) -> None:
    drop = DROPS[name]
    search = searched(lambda size: drop(predicted(size)), max_drop)
    sizes = np.geomspace(LEAST, MOST, 20_000)
    exact = min(size for size in sizes if drop(predicted(size)) <= max_drop)
    assert search.best is not None
    assert search.best.drop <= max_drop
    assert exact * 0.999 <= search.best.target_bytes <= exact * (1.15 if name == "a cliff" else CLOSE * 1.001)
    assert len(search.trials) <= (MAX_TRIALS if name == "a cliff" else 8)


def test_the_guess_is_used() -> None:
    assert len(searched(lambda size: 30 * predicted(size), 1.0).trials) <= 5


def test_the_smallest_possible_file_may_hold() -> None:
    search = searched(lambda size: 0.1, 1.0)
    assert search.best is not None
    assert search.best.target_bytes == search.least == LEAST
    assert len(search.trials) <= 5


def test_no_file_may_hold() -> None:
    search = searched(lambda size: 3.0, 1.0)
    assert search.best is None
    assert max(trial.target_bytes for trial in search.trials) == MOST
    assert len(search.trials) <= MAX_TRIALS


def test_noise_does_not_lead_astray(rng: np.random.Generator) -> None:
    for _ in range(20):
        search = searched(lambda size: 30 * predicted(size) + 0.3 * float(rng.standard_normal()), 1.0)
        assert len(search.trials) <= MAX_TRIALS
        assert search.best is not None
        assert 0.4 < search.best.target_bytes / 600_000 < 2.0


def test_nothing_may_be_permitted_and_outputs_may_get_better() -> None:
    search = searched(lambda size: 30 * predicted(size) - 0.4, 0.0)
    assert search.best is not None
    assert 1_490_000 < search.best.target_bytes < 1_900_000


def test_where_everything_is_permitted_one_trial_is_enough() -> None:
    search = searched(lambda size: 3.0, 100.0)
    assert [trial.target_bytes for trial in search.trials] == [LEAST]
