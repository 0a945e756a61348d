"""Codes and codebooks that descend on a layer's true output error, correlations between blocks included.

The error of Ŵ on inputs with Gram H is `tr((T - Ŵ) H (T - Ŵ)ᵀ)`, T being the weight that would be best without a
codebook. Three steps lower it, each exact in its own variables while the others stay as they are:

    feedback   codes, block by block; the error of each is made up for by those chosen after it (Frantar et al., "GPTQ",
               ICLR 2023; for vectors van Baalen et al., "GPTVQ", 2024; the same as Babai's nearest plane)
    sweep      codes, block by block, given all the others: coordinate descent
    refit      codebooks, all centroids at once: least squares, by preconditioned conjugate gradients

Rounds of both go on for inputs whose correlations come in step by step: where all count from the start, codes are soon
stuck, each the best one for the others (graduated non-convexity; Blake and Zisserman, "Visual Reconstruction", 1987).

With a price for each centroid (the length of its code, times what a bit is worth), codes minimise the error plus the
prices (Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", IEEE Trans. ASSP 37, 1989).

Dimensions: G groups · R outputs of a group · J blocks per output row · d weights of a block · D = J·d · K centroids ·
M additive codebooks. Codes are `[M, G, R, J]`, codebooks `[M, K, d]`, targets `[G, R, D]`, Grams `[G, D, D]`, prices
`[M, K]`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant import _core
from pyquant.learn.workers import Workers

Array = NDArray[np.float32]
Result = TypeVar("Result")

CHUNK_ROWS = 128  # outputs that a worker takes at a time; fixed, so that results are the same for any number of threads
PANEL = 128  # weights of a row, at most, between two updates of all the others
BEAM = 4  # sums of additive centroids that a search for codes keeps
CORRELATIONS = (0.2, 0.55, 0.85, 0.97, 1.0, 1.0)  # shares of the inputs' correlations that count in each round
SWEEPS = 2  # of a round
REFIT_STEPS = 3  # of conjugate gradients: codes change before more would pay
RIDGE = 1e-4  # of the mean curvature, added to a centroid's own: centroids without blocks stay where they are
LEAST_IMPORTANCE = 1e-20  # by which prices are divided
FEEDBACK_DAMPING = 1e-2  # of the Gram's mean diagonal, so that it can be inverted


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """Some outputs of a layer: what their weights should be, and what it costs to miss that."""

    target: Tensor  # [G, R, D]
    gram: Tensor  # [G, D, D], symmetric; 0 where a block is padding
    importance: Tensor  # [G, R], how much an output's error counts when outputs share a centroid

    def chunks(self) -> list[tuple[slice, slice]]:
        """Return the groups and outputs of each piece of work."""
        groups, rows, _ = self.target.shape
        step = max(1, CHUNK_ROWS // rows)
        return [
            (slice(g, g + step), slice(r, r + CHUNK_ROWS))
            for g in range(0, groups, step)
            for r in range(0, rows, CHUNK_ROWS)
        ]

    def part(self, groups: slice, rows: slice) -> Problem:
        """Return the problem of some groups and outputs."""
        return Problem(
            target=self.target[groups, rows], gram=self.gram[groups], importance=self.importance[groups, rows]
        )

    def with_correlations(self, share: float) -> Problem:
        """Return the problem for inputs that have so much of their correlations: with 0, each weight counts alone."""
        squares = torch.diag_embed(self.gram.diagonal(dim1=1, dim2=2))
        return replace(self, gram=torch.lerp(squares, self.gram, share))


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """Codes and the codebooks that they index."""

    codes: Tensor  # int64 [M, G, R, J]
    codebooks: Tensor  # float32 [M, K, d]

    def weight(self) -> Tensor:
        """Return Ŵ `[G, R, D]`."""
        return decode(self.codes, self.codebooks)


def decode(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Return the weight `[G, R, D]` that codes `[M, G, R, J]` stand for."""
    _, groups, rows, _ = codes.shape
    return _sums(codes, codebooks).reshape(groups, rows, -1)


def feedback(problem: Problem, codebooks: Tensor, workers: Workers) -> Solution:
    """Return codes for `codebooks`, chosen from the last block to the first, each making up for those chosen before.

    With `H = UᵀU`, U upper triangular, the error is `||U (t - w)||²`: the part of it that block j has, given all blocks
    after it, is `||U_jj (t_j - w_j) + Σ_k>j U_jk (t_k - w_k)||²`, and no choice made later changes it.
    """
    groups, rows, dim = problem.target.shape
    m, _, d = codebooks.shape

    def factor(gram: Tensor) -> Tensor:
        """Return U."""
        damping = FEEDBACK_DAMPING * float(gram.diagonal().mean()) or 1.0
        upper: Tensor = torch.linalg.cholesky(gram.double() + damping * torch.eye(dim, dtype=torch.float64), upper=True)
        return upper.float()

    factors = torch.stack(workers.map(factor, problem.gram))
    codes = torch.zeros(m, groups, rows, dim // d, dtype=torch.int64)

    def run(piece: tuple[slice, slice]) -> None:
        target, upper = problem.target[piece], factors[piece[0]]
        missed = torch.zeros_like(target)  # U's rows times the errors of all blocks chosen so far
        for panel in reversed(panels(dim, d)):
            best, error = _core.feedback_blocks(
                target[:, :, panel].numpy(),
                missed[:, :, panel].numpy(),
                upper[:, panel, panel].transpose(1, 2).numpy(),
                codebooks.numpy(),
                BEAM,
            )
            codes[:, piece[0], piece[1], panel.start // d : panel.stop // d] = torch.from_numpy(best)
            before = slice(0, panel.start)
            missed[:, :, before] += torch.bmm(torch.from_numpy(error), upper[:, before, panel].transpose(1, 2))

    workers.map(run, problem.chunks())
    return Solution(codes=codes, codebooks=codebooks)


def sweep(problem: Problem, solution: Solution, workers: Workers, prices: Tensor | None = None) -> Solution:
    """Return codes that are, one block after another, the best ones while all others stay as they are."""
    codebooks = solution.codebooks
    d, dim = codebooks.shape[2], problem.gram.shape[1]

    def improve(part: Problem, codes: Tensor) -> Tensor:
        codes = codes.clone()
        pricing: tuple[Array | None, Array | None] = None, None
        if prices is not None:
            pricing = prices.numpy(), part.importance.clamp_min(LEAST_IMPORTANCE).reciprocal().numpy()
        slope = torch.bmm(part.target - decode(codes, codebooks), part.gram)  # half the fall of the error with Ŵ
        for panel in panels(dim, d):
            blocks = slice(panel.start // d, panel.stop // d)
            best, change = _core.sweep_blocks(
                slope[:, :, panel].numpy(),
                part.gram[:, panel, panel].numpy(),
                codes[..., blocks].numpy(),
                codebooks.numpy(),
                BEAM,
                *pricing,
            )
            codes[..., blocks] = torch.from_numpy(best)
            after = slice(panel.stop, dim)
            slope[:, :, after] -= torch.bmm(torch.from_numpy(change), part.gram[:, panel, after])
        return codes

    parts = _each_chunk(problem, solution.codes, improve, workers)
    codes = torch.empty_like(solution.codes)
    for (groups, rows), part in zip(problem.chunks(), parts, strict=True):
        codes[:, groups, rows] = part
    return replace(solution, codes=codes)


def error(problem: Problem, solution: Solution, workers: Workers) -> float:
    """Return the error of a solution: the sum over all outputs, each times its importance."""

    def own(part: Problem, codes: Tensor) -> Tensor:
        missed = part.target - decode(codes, solution.codebooks)
        errors = (torch.bmm(missed, part.gram) * missed).sum(2) * part.importance
        return errors.double().sum()

    return float(sum_in_order(_each_chunk(problem, solution.codes, own, workers)))


def refit(problem: Problem, solution: Solution, workers: Workers) -> Solution:
    """Return the codebooks that fit all codes best, approached from the present ones."""
    shape = solution.codebooks.shape
    curvature = sum_in_order(_each_chunk(problem, solution.codes, partial(_curvature, shape=shape), workers))
    ridge = RIDGE * float(curvature.diagonal(dim1=2, dim2=3).mean()) or 1.0
    inverse = torch.linalg.inv(curvature + ridge * torch.eye(shape[2], dtype=torch.float64))

    def gather(weight_of: Callable[[Problem, Tensor], Tensor]) -> Tensor:
        """Return, for each centroid, the sum of the slopes at its blocks, float64 `[M, K, d]`."""

        def slopes(part: Problem, codes: Tensor) -> Tensor:
            slope = torch.bmm(weight_of(part, codes), part.gram) * part.importance[..., None]
            return _sum_by_code(codes, slope.reshape(-1, shape[2]), shape)

        return sum_in_order(_each_chunk(problem, solution.codes, slopes, workers))

    codebooks = solution.codebooks.double()
    residual = gather(lambda part, codes: part.target - decode(codes, solution.codebooks))
    step = _precondition(inverse, residual)
    fall = float((residual * step).sum())
    direction, first_fall = step, fall
    for _ in range(REFIT_STEPS):
        if not fall > 1e-10 * first_fall:
            break
        bent = gather(partial(_decoded, codebooks=direction.float())) + ridge * direction
        length = fall / float((direction * bent).sum())
        codebooks = codebooks + length * direction
        residual = residual - length * bent
        step = _precondition(inverse, residual)
        fall, before = float((residual * step).sum()), fall
        direction = step + fall / before * direction
    return replace(solution, codebooks=codebooks.float())


def _sums(codes: Tensor, codebooks: Tensor) -> Tensor:
    """Return the sums `[.., d]` of the centroids that codes `[M, ..]` stand for."""
    total = codebooks[0][codes[0]]
    for m in range(1, len(codebooks)):
        total = total + codebooks[m][codes[m]]
    return total


def panels(dim: int, d: int = 1) -> list[slice]:
    """Return neighbouring blocks, some at a time: what they change elsewhere is added for all of them at once."""
    step = d * max(1, PANEL // d)
    return [slice(start, min(start + step, dim)) for start in range(0, dim, step)]


def sum_in_order(parts: list[Tensor]) -> Tensor:
    """Return the sum of tensors, added one after another."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def _decoded(part: Problem, codes: Tensor, *, codebooks: Tensor) -> Tensor:
    return decode(codes, codebooks)


def _precondition(inverse: Tensor, residual: Tensor) -> Tensor:
    return (inverse @ residual[..., None])[..., 0]


def own_grams(gram: Tensor, size: int) -> Tensor:
    """Return the Gram of each so many neighbouring inputs alone, `[G, D / size, size, size]`."""
    places = torch.arange(gram.shape[1]).reshape(-1, size)
    return gram[:, places[:, :, None], places[:, None]]


def _curvature(part: Problem, codes: Tensor, *, shape: torch.Size) -> Tensor:
    """Return how the error bends with each centroid alone, float64 `[M, K, d, d]`."""
    d, positions = shape[2], codes.shape[3]
    groups, rows, _ = part.target.shape
    weighted = own_grams(part.gram, d)[:, None] * part.importance[:, :, None, None, None]  # [G, R, J, d, d]
    weighted = weighted.reshape(groups * rows * positions, d * d)
    return _sum_by_code(codes, weighted, torch.Size([*shape[:2], d * d])).reshape(*shape[:2], d, d)


def _sum_by_code(codes: Tensor, values: Tensor, shape: torch.Size) -> Tensor:
    """Return the sum of `values` `[G·R·J, n]` over the blocks of each centroid, float64 `[M, K, n]`."""
    result = torch.zeros(shape, dtype=torch.float64)
    for m in range(shape[0]):
        result[m].index_add_(0, codes[m].reshape(-1), values.double())
    return result


def _each_chunk(
    problem: Problem, codes: Tensor, function: Callable[[Problem, Tensor], Result], workers: Workers
) -> list[Result]:
    """Return `function` of the problem and the codes of each chunk, in order."""

    def run(piece: tuple[slice, slice]) -> Result:
        return function(problem.part(*piece), codes[:, piece[0], piece[1]])

    return workers.map(run, problem.chunks())
