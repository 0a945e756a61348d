"""Each step of the descent lowers the error it is meant to lower, and where it can be checked, to the least one."""

from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs torch")

from pyquant.learn import descent  # noqa: E402
from pyquant.learn.descent import CORRELATIONS, Problem, Solution, decode, feedback, refit, sweep  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402

# groups, outputs of a group, blocks, weights of a block, centroids, additive codebooks
SIZES = [(1, 70, 5, 4, 16, 1), (1, 9, 7, 3, 5, 2), (3, 6, 4, 9, 8, 1), (40, 1, 1, 9, 4, 2), (2, 65, 3, 2, 7, 3)]


def make(rng: np.random.Generator, sizes: tuple[int, ...]) -> tuple[Problem, Solution]:
    """Return a problem whose inputs are strongly correlated, and a solution drawn at random."""
    g, r, j, d, k, m = sizes
    mixing = rng.standard_normal((g, j * d, j * d)) / np.sqrt(j * d) + np.ones((g, 1, j * d)) / 2
    problem = Problem(
        target=torch.from_numpy(rng.standard_normal((g, r, j * d)).astype(np.float32)),
        gram=torch.from_numpy((mixing.transpose(0, 2, 1) @ mixing + 0.05 * np.eye(j * d)).astype(np.float32)),
        importance=torch.ones(g, r),
    )
    codes = torch.from_numpy(rng.integers(k, size=(m, g, r, j)))
    return problem, Solution(codes=codes, codebooks=torch.from_numpy(rng.standard_normal((m, k, d)).astype(np.float32)))


@pytest.fixture
def workers():  # type: ignore[no-untyped-def]
    with Workers(2) as pool:
        yield pool


def output_error(problem: Problem, solution: Solution, prices: torch.Tensor | None = None) -> float:
    """Return `tr((T - Ŵ) H (T - Ŵ)ᵀ)`, outputs weighted by their importance, and the prices of all codes."""
    miss = (problem.target - solution.weight()).double().numpy()
    weighed = miss * problem.importance.double().numpy()[..., None]
    error = float(np.einsum("grd,gde,gre->", weighed, problem.gram.double().numpy(), miss))
    if prices is None:
        return error
    return error + sum(float(own[codes].double().sum()) for own, codes in zip(prices, solution.codes, strict=True))


def test_the_error_is_weighed_by_importance(rng: np.random.Generator, workers: Workers) -> None:
    problem, solution = make(rng, SIZES[2])
    problem = replace(problem, importance=torch.from_numpy(rng.uniform(0.1, 3, (3, 6)).astype(np.float32)))
    assert descent.error(problem, solution, workers) == pytest.approx(output_error(problem, solution), rel=1e-5)


@pytest.mark.parametrize("priced", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
def test_sweep_never_raises_the_error_and_ends(
    sizes: tuple[int, ...], priced: bool, rng: np.random.Generator, workers: Workers
) -> None:
    problem, solution = make(rng, sizes)
    prices = None
    if priced:
        importance = rng.uniform(0.1, 3, problem.importance.shape).astype(np.float32)
        problem = replace(problem, importance=torch.from_numpy(importance))
        m, k, _ = solution.codebooks.shape
        prices = torch.from_numpy(rng.uniform(0, 3, (m, k)).astype(np.float32))
    before = output_error(problem, solution, prices)
    for _ in range(30):
        better = sweep(problem, solution, workers, prices)
        error = output_error(problem, better, prices)
        assert error <= before * (1 + 1e-5)
        if torch.equal(better.codes, solution.codes):
            break
        solution, before = better, error
    else:
        pytest.fail("coordinate descent did not settle")
    # Settled: no single code can be changed for the better.
    for m, g, r, j in zip(*(rng.integers(size, size=20) for size in solution.codes.shape), strict=True):
        for k in range(solution.codebooks.shape[1]):
            codes = solution.codes.clone()
            codes[m, g, r, j] = k
            other = Solution(codes=codes, codebooks=solution.codebooks)
            assert output_error(problem, other, prices) >= before * (1 - 1e-5)


@pytest.mark.parametrize("sizes", SIZES)
def test_refit_is_the_least_squares_solution(
    sizes: tuple[int, ...], rng: np.random.Generator, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(descent, "REFIT_STEPS", 400)
    monkeypatch.setattr(descent, "RIDGE", 1e-9)
    problem, solution = make(rng, sizes)
    m, k, d = solution.codebooks.shape
    # Ŵ depends linearly on all centroids: one column for each of their numbers.
    columns = []
    for unit in torch.eye(m * k * d).reshape(-1, m, k, d):
        columns.append(decode(solution.codes, unit).double().reshape(-1).numpy())
    factor = np.linalg.cholesky(problem.gram.double().numpy())
    shape = problem.target.shape

    def whitened(flat: np.ndarray) -> np.ndarray:
        return (flat.reshape(shape) @ factor).reshape(-1)

    design = np.stack([whitened(column) for column in columns], axis=1)
    aim = whitened(problem.target.double().numpy().reshape(-1))
    best, *_ = np.linalg.lstsq(design, aim, rcond=None)
    least = float(np.square(aim - design @ best).sum())
    got = output_error(problem, refit(problem, solution, workers))
    assert got == pytest.approx(least, rel=1e-3, abs=1e-3)


def test_refit_leaves_centroids_without_blocks(rng: np.random.Generator, workers: Workers) -> None:
    problem, solution = make(rng, (1, 4, 2, 3, 50, 1))
    fitted = refit(problem, solution, workers)
    unused = [k for k in range(50) if not (solution.codes == k).any()]
    torch.testing.assert_close(fitted.codebooks[0, unused], solution.codebooks[0, unused])


@pytest.mark.parametrize("sizes", SIZES)
def test_feedback_beats_choosing_each_block_alone(
    sizes: tuple[int, ...], rng: np.random.Generator, workers: Workers
) -> None:
    problem, solution = make(rng, sizes)
    alone = Problem(
        target=problem.target,
        gram=torch.eye(problem.gram.shape[1]).expand_as(problem.gram).contiguous(),
        importance=problem.importance,
    )
    nearest = feedback(alone, solution.codebooks, workers)
    chosen = feedback(problem, solution.codebooks, workers)
    assert output_error(problem, chosen) <= output_error(problem, nearest)


def test_feedback_without_correlations_is_the_nearest_centroid(rng: np.random.Generator, workers: Workers) -> None:
    problem, solution = make(rng, (1, 70, 5, 4, 16, 1))
    alone = Problem(target=problem.target, gram=torch.eye(20)[None], importance=problem.importance)
    blocks = problem.target.reshape(70, 5, 1, 4)
    nearest = (blocks - solution.codebooks[0]).square().sum(3).argmin(2)
    assert torch.equal(feedback(alone, solution.codebooks, workers).codes[0, 0], nearest)


def test_a_share_of_the_correlations(rng: np.random.Generator) -> None:
    problem, _ = make(rng, SIZES[2])
    none, half, all_of_them = (problem.with_correlations(share).gram for share in (0, 0.5, 1))
    squares = torch.diag_embed(problem.gram.diagonal(dim1=1, dim2=2))
    assert torch.equal(none, squares)
    torch.testing.assert_close(half, (squares + problem.gram) / 2)
    assert torch.equal(all_of_them, problem.gram)


def test_correlations_that_come_in_step_by_step_leave_smaller_errors(workers: Workers) -> None:
    errors = []
    for shares in ((1.0,) * len(CORRELATIONS), CORRELATIONS):
        total = 0.0
        for seed in range(4):
            problem, solution = make(np.random.default_rng(seed), (1, 64, 32, 2, 16, 1))
            for share in shares:
                eased = problem.with_correlations(share)
                solution = sweep(eased, refit(eased, solution, workers), workers)
            total += output_error(problem, solution)
        errors.append(total)
    assert errors[1] < 0.95 * errors[0]


def test_threads_do_not_change_anything(rng: np.random.Generator) -> None:
    problem, solution = make(rng, (1, 200, 5, 4, 16, 2))
    results = []
    for threads in (1, 3):
        with Workers(threads) as pool:
            results.append(sweep(problem, refit(problem, feedback(problem, solution.codebooks, pool), pool), pool))
    assert torch.equal(results[0].codes, results[1].codes)
    assert torch.equal(results[0].codebooks, results[1].codebooks)


def test_importance_draws_centroids_to_what_counts(workers: Workers) -> None:
    problem = Problem(
        target=torch.tensor([[[0.0], [1.0]]]), gram=torch.ones(1, 1, 1), importance=torch.tensor([[1.0, 3.0]])
    )
    shared = Solution(codes=torch.zeros(1, 1, 2, 1, dtype=torch.int64), codebooks=torch.zeros(1, 2, 1))
    assert float(refit(problem, shared, workers).codebooks[0, 0]) == pytest.approx(0.75, abs=1e-3)
