"""Rates: layers that count more get more bits, and all together what was asked for."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyquant.rates import LEAST, MOST, shared_rates


def test_four_times_the_error_is_worth_a_bit() -> None:
    sizes = {"a": 100, "b": 100, "c": 400}
    rates = shared_rates(2.0, {"a": 1.0, "b": 4.0, "c": 1.0}, sizes)
    assert rates["b"] - rates["a"] == pytest.approx(1)
    assert rates["a"] - rates["c"] == pytest.approx(1)  # four times as many weights share its error
    assert sum(rates[name] * sizes[name] for name in sizes) == pytest.approx(2 * 600)


@given(
    st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 10**7)), min_size=1, max_size=9),
    st.floats(LEAST, MOST),
)
def test_the_mean_is_kept_and_rates_are_possible(layers: list[tuple[float, int]], mean: float) -> None:
    factors = {str(index): factor for index, (factor, _) in enumerate(layers)}
    sizes = {str(index): size for index, (_, size) in enumerate(layers)}
    rates = shared_rates(mean, factors, sizes)
    assert all(LEAST <= rate <= MOST for rate in rates.values())
    total = sum(sizes.values())
    assert sum(rates[name] * sizes[name] for name in sizes) == pytest.approx(mean * total, rel=1e-6)
