"""The core's loops over weights on grids, against NumPy: each code is the best of those looked at, given all others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyquant import _core
from pyquant.errors import InputError

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Grids of outputs `[G, R]`, prices of levels, and which weights `[G, R, P]` are kept."""

    step: Floats
    zero: Floats
    importance: Floats
    levels: int
    prices: Floats | None
    kept: NDArray[np.bool_] | None

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.step, self.zero, self.importance, self.levels, self.prices, self.kept

    def values(self, codes: NDArray[Any]) -> NDArray[np.float64]:
        """Return the weights `[G, R, P]` that codes stand for."""
        values = self.step[..., None].astype(np.float64) * (codes - self.zero[..., None] / 2)
        return values if self.kept is None else values * self.kept

    def least(self, at: NDArray[np.float64], bend: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the least cost `[G, R]` of the codes that are looked at."""
        nearest = np.clip(np.rint(at), 0, self.levels - 1)
        middle = np.rint(self.zero / 2)
        tried = [nearest] if self.prices is None else [nearest, nearest + np.sign(middle - nearest), middle]
        return np.min([self.cost(code, at, bend) for code in tried], axis=0)

    def cost(self, code: NDArray[Any], at: NDArray[np.float64], bend: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return what codes `[G, R]` cost: error and price."""
        price = 0.0 if self.prices is None else self.prices[code.astype(np.int64)]
        return np.asarray(bend * (code - at) ** 2 + price)


@pytest.fixture(params=[(1, 1, 1), (1, 5, 17), (3, 2, 9), (2, 33, 128)], ids=str)
def shape(request: pytest.FixtureRequest) -> tuple[int, int, int]:
    return tuple(request.param)


@pytest.fixture(params=["", "prices", "kept", "prices kept"])
def case(request: pytest.FixtureRequest, shape: tuple[int, int, int], rng: np.random.Generator) -> Case:
    levels = 7
    return Case(
        step=rng.uniform(0.2, 0.6, shape[:2]).astype(np.float32),
        zero=rng.integers(levels - 2, levels + 1, shape[:2]).astype(np.float32),
        importance=rng.uniform(0.1, 2, shape[:2]).astype(np.float32),
        levels=levels,
        prices=rng.uniform(0, 0.1, levels).astype(np.float32) if "prices" in request.param else None,
        kept=rng.random(shape) < 0.6 if "kept" in request.param else None,
    )


def gram_of(shape: tuple[int, int, int], rng: np.random.Generator) -> Floats:
    groups, _, inputs = shape
    x = rng.standard_normal((groups, 2 * inputs, inputs)) @ (rng.standard_normal((groups, inputs, inputs)) / 4 + 1)
    return (x.swapaxes(1, 2) @ x / (2 * inputs)).astype(np.float32)


def test_a_sweep_makes_each_code_the_best(case: Case, shape: tuple[int, int, int], rng: np.random.Generator) -> None:
    gram, target = gram_of(shape, rng), rng.standard_normal(shape)
    if shape[2] > 1:
        gram[:, -1] = gram[:, :, -1] = 0  # an input that is always zero
    before = rng.integers(case.levels, size=shape).astype(np.float32)
    slope = ((target - case.values(before)) @ gram).astype(np.float32)
    codes, change = _core.sweep_grids(slope, gram, before, *case.arguments)
    np.testing.assert_allclose(change, case.values(codes) - case.values(before), atol=1e-6)
    now = before.astype(np.float64)
    for j in range(shape[2]):
        bend = gram[:, None, j, j] * case.step**2.0
        fall = ((target - case.values(now)) @ gram)[:, :, j] * case.step
        moves = np.ones(shape[:2], bool) if case.kept is None else case.kept[:, :, j]
        moves = moves & (bend > 0)
        at = now[:, :, j] + fall / np.where(bend > 0, bend, 1)
        weight = bend * case.importance
        excess = case.cost(codes[:, :, j], at, weight) - case.least(at, weight)
        assert excess[moves].max(initial=0) < 1e-4
        np.testing.assert_array_equal(codes[:, :, j][~moves], before[:, :, j][~moves])
        now[:, :, j] = codes[:, :, j]


def test_feedback_makes_up_for_what_was_chosen_before(
    case: Case, shape: tuple[int, int, int], rng: np.random.Generator
) -> None:
    upper = np.linalg.cholesky(gram_of(shape, rng) + 0.1 * np.eye(shape[2])).swapaxes(1, 2).astype(np.float32)
    target = rng.standard_normal(shape).astype(np.float32)
    earlier = rng.standard_normal(shape).astype(np.float32)  # what inputs behind the panel have missed
    codes, error = _core.feedback_grids(target, earlier, upper.swapaxes(1, 2), *case.arguments)
    np.testing.assert_allclose(error, target - case.values(codes), atol=1e-5)
    miss = target - case.values(codes)
    for j in range(shape[2]):
        diagonal = upper[:, None, j, j].astype(np.float64)
        missed = earlier[:, :, j] + (miss[:, :, j + 1 :] @ upper[:, j, j + 1 :, None].astype(np.float64))[..., 0]
        at = (target[:, :, j] + missed / diagonal) / case.step + case.zero / 2
        bend = (diagonal * case.step) ** 2 * case.importance
        assert (case.cost(codes[:, :, j], at, bend) - case.least(at, bend)).max() < 1e-4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": np.zeros((1, 2, 3), np.float32)}, "the shape of 'gram' is off"),
        ({"prices": np.zeros(3, np.float32)}, "the shape of 'prices' is off"),
        ({"zero": np.full((1, 2), 9, np.float32)}, "a zero is off its grid"),
        ({"slope": np.zeros((2, 3), np.float32)}, "expected panels"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "slope": np.zeros((1, 2, 3), np.float32),
        "gram": np.zeros((1, 3, 3), np.float32),
        "codes": np.zeros((1, 2, 3), np.float32),
        "step": np.ones((1, 2), np.float32),
        "zero": np.zeros((1, 2), np.float32),
        "importance": np.ones((1, 2), np.float32),
        "levels": 4,
        "prices": None,
        "kept": None,
    }
    with pytest.raises(InputError, match=message):
        _core.sweep_grids(**arguments | change)


def test_numbers_that_are_none_give_codes_all_the_same() -> None:
    one = np.ones((1, 1), np.float32)
    prices = np.zeros(4, np.float32)
    for number in (np.nan, np.inf, -np.inf):
        slope = np.full((1, 1, 1), number, np.float32)
        codes, _ = _core.sweep_grids(slope, one[None], 0 * one[None], one, one, one, 4, prices, None)
        assert codes.item() in range(4)
