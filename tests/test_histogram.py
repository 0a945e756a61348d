"""Histograms: what they count, and ranges of 8-bit forms whose error is nearly the least there is."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from pyquant import histogram
from pyquant.histogram import ENDS, LEVELS, Histogram
from pyquant.layers import RANGE_WIDTHS

Floats = np.ndarray


def counted(*arrays: Floats) -> Histogram:
    result = Histogram()
    for turn, array in enumerate(arrays):
        result.add(array.astype(np.float32), turn)
    return result


def error_of(numbers: Floats, low: float, high: float) -> float:
    """Return the mean squared error of the 8-bit form, computed in fp32 as the runtime does."""
    scale = (np.float32(high) - np.float32(low)) / np.float32(LEVELS)
    zero = np.rint(-np.float32(low) / scale)
    levels = np.clip(np.rint(numbers / scale) + zero, 0, LEVELS)
    return float(np.square(numbers - scale * (levels - zero)).mean(dtype=np.float64))


def heavy_tails(rng: np.random.Generator) -> Floats:
    return rng.standard_t(4, size=20_000)


DISTRIBUTIONS = {
    "normal": lambda rng: rng.standard_normal(20_000),
    "heavy tails": heavy_tails,
    "after a ReLU": lambda rng: np.maximum(heavy_tails(rng), 0),
    "never positive": lambda rng: -np.abs(heavy_tails(rng)),
    "even": lambda rng: rng.uniform(-1, 3, 20_000),
    "small and large": lambda rng: np.concatenate([rng.normal(0, 1e-3, 10_000), rng.normal(0, 1, 10_000)]),
    "outlier": lambda rng: np.append(rng.standard_normal(20_000), 1000),
}


@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_range_has_nearly_the_least_error(name: str, rng: np.random.Generator) -> None:
    numbers = DISTRIBUTIONS[name](rng).astype(np.float32)
    low, high = counted(numbers).best_range()
    lows = np.min(numbers, initial=0) * (ENDS[::4] if numbers.min() < 0 else ENDS[:1])
    highs = np.max(numbers, initial=0) * (ENDS[::4] if numbers.max() > 0 else ENDS[:1])
    scales, zeros = histogram._levels(lows[:, None], highs[None, :])
    tried = [
        error_of(numbers, -zero * scale, (LEVELS - zero) * scale)
        for scale, zero in zip(scales.flat, zeros.flat, strict=True)
    ]
    assert error_of(numbers, low, high) <= 1.05 * min(tried)
    assert error_of(numbers, low, high) <= 1.001 * tried[0]  # nothing clipped


def test_an_outlier_is_clipped() -> None:
    """Of 900,000 even numbers from -1 to 1 and one of 10, the error is least near an end h of 4.1.

    There (10 - h) / 900,000 = (1 + h) / 780,300: on the left is half the slope of the clipped number's error, on the
    right that of (1 + h)^2 / 255^2 / 12.
    """
    even = np.linspace(-1, 1, 30_000)
    low, high = counted(*[even] * 29, np.append(even, 10)).best_range()
    assert -1.1 < low < -0.9
    assert high == pytest.approx(4.1, abs=0.2)


@settings(max_examples=200, deadline=None)
@given(
    npst.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)),
)
def test_range_is_one_that_files_may_have(numbers: Floats) -> None:
    low, high = counted(numbers).best_range()
    assert low <= 0 <= high
    assert RANGE_WIDTHS[0] <= high - low <= RANGE_WIDTHS[1]
    assert np.float32(low) == low
    assert np.float32(high) == high
    scale = (np.float32(high) - np.float32(low)) / np.float32(LEVELS)
    zero = -np.float32(low) / scale
    assert zero == pytest.approx(np.rint(zero), abs=1e-3)  # 0 is a level
    if numbers.min() >= 0:
        assert low == 0
        assert not np.signbit(low)


@pytest.mark.parametrize("numbers", [np.zeros(5), np.full(5, 1e-30), np.full(5, -1e-45)])
def test_range_of_nothing(numbers: Floats) -> None:
    assert counted(numbers).best_range() == (0, 1)


def test_range_of_a_constant() -> None:
    assert counted(np.full(7, 3.0)).best_range() == (0, 3)
    assert counted(np.full(7, -0.5)).best_range() == (-0.5, 0)


def test_order_does_not_matter(rng: np.random.Generator) -> None:
    arrays = [(rng.standard_normal((3, 5)) * scale).astype(np.float32) for scale in (1e-9, 1, 300, 0.1, 1e20)]
    first, second = Histogram(), Histogram()
    for turn in range(5):
        first.add(arrays[turn], turn)
        second.add(arrays[4 - turn], 4 - turn)
    np.testing.assert_array_equal(first._counts, second._counts)
    assert first.best_range() == second.best_range()
    assert first._counts.sum() == 5 * 15


def test_some_of_many_are_counted_from_every_row_and_column(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "COUNTED", 64)
    seen = np.zeros((8, 16, 16), np.int64)
    step = histogram._step(seen.size)
    assert step == 33
    seen.reshape(-1)[0::step] += 1
    assert 60 <= seen.sum() <= 64
    for axes in ((1, 2), (0, 2), (0, 1)):
        assert (seen.sum(axis=axes) > 0).all()
    array = np.zeros(seen.shape, np.float32)
    array[7, 15, 15] = 9  # not counted, but known
    several = counted(array, array)
    assert several.highest == 9
    assert 120 <= several._counts.sum() <= 128


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        counted(np.array([0, bad, 1]))
