"""The core's loops over blocks of weights, against NumPy: with beams enough, no sum of centroids is better."""

from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from pyquant import _core
from pyquant.errors import InputError

Floats = NDArray[np.float32]

# groups, outputs of a group, blocks, weights of a block, additive codebooks, centroids: tiles of every kind
SIZES = [(1, 1, 1, 1, 1, 1), (2, 17, 3, 4, 1, 50), (1, 33, 5, 9, 2, 7), (3, 4, 2, 2, 3, 5), (1, 5, 4, 3, 1, 300)]


def gram_of(groups: int, inputs: int, rng: np.random.Generator) -> Floats:
    x = rng.standard_normal((groups, 2 * inputs, inputs)) @ (rng.standard_normal((groups, inputs, inputs)) / 4 + 1)
    return (x.swapaxes(1, 2) @ x / (2 * inputs) + 0.1 * np.eye(inputs)).astype(np.float32)


def decoded(codes: NDArray[np.int64], codebooks: Floats) -> NDArray[np.float64]:
    """Return the weights `[G, R, P]` that codes `[M, G, R, J]` stand for."""
    total = sum(book.astype(np.float64)[own] for book, own in zip(codebooks, codes, strict=True))
    return np.asarray(total).reshape(*codes.shape[1:3], -1)


def check(
    chosen: NDArray[np.int64],
    wanted: NDArray[np.float64],
    bend: NDArray[np.float64],
    codebooks: Floats,
    costs: NDArray[np.float64],
) -> None:
    """Check that the chosen codes `[M, R]` of a block are the best ones.

    Args:
        chosen: of the outputs of a group.
        wanted: w, `[R, d]`; what is least is cᵀ H c - 2 cᵀ w.
        bend: H, `[d, d]`.
        codebooks: `[M, K, d]`.
        costs: `[R, M, K]`, of codes.
    """
    m, k, _ = codebooks.shape
    combinations = np.array(list(product(range(k), repeat=m)))  # [N, M]
    sums = sum(codebooks[i].astype(np.float64)[combinations[:, i]] for i in range(m))  # [N, d]
    scores = ((sums @ bend) * sums).sum(1) - 2 * wanted @ sums.T  # [R, N]
    scores = scores + sum(costs[:, i, combinations[:, i]] for i in range(m))
    place = np.ravel_multi_index(tuple(chosen), (k,) * m)
    own = scores[np.arange(len(scores)), place]
    assert (own - scores.min(1)).max() < 1e-4 * np.abs(scores).max()


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_a_sweep_makes_each_block_the_best(sizes: tuple[int, ...], priced: bool, rng: np.random.Generator) -> None:
    groups, outputs, blocks, d, m, k = sizes
    gram, target = gram_of(groups, blocks * d, rng), rng.standard_normal((groups, outputs, blocks * d))
    codebooks = rng.standard_normal((m, k, d)).astype(np.float32)
    before = rng.integers(k, size=(m, groups, outputs, blocks))
    prices = rng.uniform(0, 2, (m, k)).astype(np.float32) if priced else None
    markups = rng.uniform(0.5, 2, (groups, outputs)).astype(np.float32) if priced else None
    slope = ((target - decoded(before, codebooks)) @ gram).astype(np.float32)
    codes, change = _core.sweep_blocks(slope, gram, before, codebooks, k ** (m - 1), prices, markups)
    np.testing.assert_allclose(change, decoded(codes, codebooks) - decoded(before, codebooks), atol=1e-5)
    costs = np.zeros((groups, outputs, m, k))
    if prices is not None and markups is not None:
        costs = prices.astype(np.float64) * markups[..., None, None]
    now = before.copy()
    for j in range(blocks):
        here = slice(j * d, j * d + d)
        weight = decoded(now, codebooks)
        fall = ((target - weight) @ gram)[:, :, here]
        for group in range(groups):
            bend = gram[group, here, here].astype(np.float64)
            wanted = fall[group] + weight[group, :, here] @ bend
            check(codes[:, group, :, j], wanted, bend, codebooks, costs[group])
        now[..., j] = codes[..., j]


@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_feedback_makes_up_for_what_was_chosen_before(sizes: tuple[int, ...], rng: np.random.Generator) -> None:
    groups, outputs, blocks, d, m, k = sizes
    upper = np.linalg.cholesky(gram_of(groups, blocks * d, rng)).swapaxes(1, 2).astype(np.float32)
    target = rng.standard_normal((groups, outputs, blocks * d)).astype(np.float32)
    earlier = rng.standard_normal(target.shape).astype(np.float32)  # what blocks behind the panel have missed
    codebooks = rng.standard_normal((m, k, d)).astype(np.float32)
    codes, error = _core.feedback_blocks(target, earlier, upper.swapaxes(1, 2), codebooks, k ** (m - 1))
    np.testing.assert_allclose(error, target - decoded(codes, codebooks), atol=1e-5)
    for j in range(blocks):
        here, behind = slice(j * d, j * d + d), slice(j * d + d, None)
        for group in range(groups):
            own = upper[group, here, here].astype(np.float64)
            missed = earlier[group, :, here] + error[group, :, behind] @ upper[group, here, behind].T.astype(np.float64)
            wanted = (target[group, :, here] @ own.T + missed) @ own
            check(codes[:, group, :, j], wanted, own.T @ own, codebooks, np.zeros((outputs, m, k)))


def test_few_beams_never_make_codes_worse(rng: np.random.Generator) -> None:
    groups, outputs, blocks, d, m, k = 1, 40, 6, 4, 3, 12
    gram, target = gram_of(groups, blocks * d, rng), rng.standard_normal((groups, outputs, blocks * d))
    codebooks = rng.standard_normal((m, k, d)).astype(np.float32)
    codes = rng.integers(k, size=(m, groups, outputs, blocks))

    def errors() -> NDArray[np.float64]:
        miss = target - decoded(codes, codebooks)
        return np.asarray(((miss @ gram) * miss).sum(2))

    for beams in (1, 4, 1):
        before = errors()
        slope = ((target - decoded(codes, codebooks)) @ gram).astype(np.float32)
        codes, _ = _core.sweep_blocks(slope, gram, codes, codebooks, beams, None, None)
        assert (errors() <= before * (1 + 1e-5)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"gram": np.zeros((1, 4, 3), np.float32)}, "the shape of 'gram' is off"),
        ({"codes": np.full((1, 1, 2, 2), 3)}, "a code is no centroid's"),
        ({"codebooks": np.zeros((1, 3, 3), np.float32)}, "codebooks do not fit the panel"),
        ({"beams": 0}, "at least one sum"),
        ({"prices": np.zeros((1, 3), np.float32)}, "prices have markups"),
    ],
)
def test_what_does_not_fit_is_refused(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {
        "slope": np.zeros((1, 2, 4), np.float32),
        "gram": np.zeros((1, 4, 4), np.float32),
        "codes": np.zeros((1, 1, 2, 2), np.int64),
        "codebooks": np.zeros((1, 3, 2), np.float32),
        "beams": 1,
        "prices": None,
        "markups": None,
    }
    with pytest.raises(InputError, match=message):
        _core.sweep_blocks(**arguments | change)


def test_numbers_that_are_none_give_codes_all_the_same() -> None:
    codebooks = np.ones((2, 3, 2), np.float32)
    slope = np.full((1, 5, 2), np.nan, np.float32)
    codes, _ = _core.sweep_blocks(
        slope, np.ones((1, 2, 2), np.float32), np.ones((2, 1, 5, 1), int), codebooks, 4, None, None
    )
    assert codes.min() >= 0
    assert codes.max() < 3
