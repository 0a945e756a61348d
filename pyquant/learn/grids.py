"""Codes and steps of uniform grids that descend on a layer's true output error, and on the length of codes.

The error of Ŵ on inputs with Gram H is `tr((T - Ŵ) H (T - Ŵ)ᵀ)`, T being the weight aimed at. Steps that lower it:

    fitted     grids, each output's by itself: of many steps and zeros the ones that round best, by the diagonal of H
    feedback   codes, weight by weight; the error of each is made up for by those chosen after it. Inputs are taken in
               one order for all outputs, those with the largest squares first (Frantar et al., "GPTQ", ICLR 2023, who
               show that this loses nothing against OBQ's own greedy order for each output)
    sweep      codes, weight by weight, given all the others: coordinate descent
    refit      steps: least squares

With a price for each level (its code length, times what a bit is worth), codes minimise the error plus the prices. This
widens the interval that becomes zero, the dead zone of entropy-constrained scalar quantization (Sullivan, "Efficient
scalar quantization of exponential and Laplacian random variables", 1996). Correlations of the inputs then come in step
by step, as in `pyquant.learn.descent`; grids without prices, which are finer, lose by that.

Where some weights are dropped, the others have codes, and all steps leave the dropped ones zero: a mask says which.

Dimensions: G groups · R outputs of a group · D weights of an output · L levels. Targets and codes are `[G, R, D]`, the
latter float32 for speed, steps and zeros `[G, R]`, Grams `[G, D, D]`, prices `[L]`, masks `[G, R, D]`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from pyquant import _core
from pyquant.codecs import ScalarConfig
from pyquant.codecs.scalar import SIGNED_BYTES, grid_levels, rounded_steps
from pyquant.learn.descent import FEEDBACK_DAMPING, Problem, panels
from pyquant.learn.workers import Workers

ROUNDS = 6  # of fitting steps and choosing codes, where codes have no price
STEPS = 30  # that are tried for each output, of its largest weight ..
NARROWEST = 0.15  # .. times this, at least, as the reach of the grid
FEWEST_COUNTED = 0.5  # of a level that does not occur, so that it has a length


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """The grid of each output: level k is `step * (k - zero / 2)`."""

    step: Tensor  # [G, R]
    zero: Tensor  # [G, R], in half steps
    levels: int
    kept: Tensor | None = None  # bool [G, R, D], the weights that have codes; None: all have

    def part(self, groups: slice, rows: slice) -> Grids:
        """Return the grids of some groups and outputs."""
        kept = None if self.kept is None else self.kept[groups, rows]
        return replace(self, step=self.step[groups, rows], zero=self.zero[groups, rows], kept=kept)

    def units(self, codes: Tensor) -> Tensor:
        """Return the weights `[G, R, D]` that codes stand for, in steps."""
        units = codes - self.zero[..., None] / 2
        return units if self.kept is None else units * self.kept

    def values(self, codes: Tensor) -> Tensor:
        """Return the weights `[G, R, D]` that codes stand for."""
        return self.step[..., None] * self.units(codes)

    def choosing(self, importance: Tensor, prices: Tensor | None, panel: slice) -> tuple[Any, ...]:
        """Return how the core is to choose codes of the inputs in a panel, given `[G, R]` importances and prices."""
        return (
            self.step.numpy(),
            self.zero.numpy(),
            importance.numpy(),
            self.levels,
            None if prices is None else prices.numpy(),
            None if self.kept is None else self.kept[:, :, panel].numpy(),
        )

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the codes of the levels that are nearest to weights `[G, R, D]`."""
        return (weight / self.step[..., None] + self.zero[..., None] / 2).round().clamp_(0, self.levels - 1)


def fitted(problem: Problem, levels: int, zeros: Sequence[int], workers: Workers, kept: Tensor | None = None) -> Grids:
    """Return the grids whose nearest levels miss the targets least, weighted by the diagonal of the Gram.

    Args:
        levels: of a grid.
        zeros: where zero may be in it, in half steps.
        kept: the weights to have codes; the targets of all others are 0.
    """

    def run(piece: tuple[slice, slice]) -> tuple[Tensor, Tensor]:
        part = problem.part(*piece)
        own_kept = None if kept is None else kept[piece]
        weighing = part.gram.diagonal(dim1=1, dim2=2)[:, None]
        largest = part.target.abs().amax(2)
        reach = torch.where(largest > 0, largest, 1.0)
        best = torch.full_like(reach, torch.inf)
        step, zero = reach.clone(), torch.full_like(reach, zeros[0])
        for own_zero in zeros:
            for factor in torch.linspace(NARROWEST, 1, STEPS).tolist():
                zero_here, step_here = torch.full_like(reach, own_zero), reach * factor * 2 / (levels - 1)
                grids = Grids(step=step_here, zero=zero_here, levels=levels, kept=own_kept)
                miss = grids.values(grids.nearest(part.target)).sub_(part.target).square_()
                error = (miss * weighing).sum(2)
                better = error < best
                best = torch.where(better, error, best)
                step, zero = torch.where(better, grids.step, step), torch.where(better, grids.zero, zero)
        return step, zero

    step, zero = torch.empty(problem.target.shape[:2]), torch.empty(problem.target.shape[:2])
    for piece, found in zip(problem.chunks(), workers.map(run, problem.chunks()), strict=True):
        step[piece], zero[piece] = found
    return Grids(step=step, zero=zero, levels=levels, kept=kept)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ordered:
    """A problem whose inputs are in the order in which feedback takes them, the first one last."""

    problem: Problem
    order: Tensor  # [G, D], of the inputs as they were
    upper: Tensor  # [G, D, D]: the damped Gram is Uᵀ U

    @classmethod
    def of(cls, problem: Problem, workers: Workers, unit: int = 1) -> Ordered:
        """Put the inputs with the largest squares last; so many neighbouring ones stay together."""
        squares = problem.gram.diagonal(dim1=1, dim2=2).reshape(len(problem.gram), -1, unit).sum(2)
        order = (squares.argsort(dim=1, stable=True)[..., None] * unit + torch.arange(unit)).flatten(1)
        gram = torch.stack([gram[own][:, own] for gram, own in zip(problem.gram, order, strict=True)])
        target = problem.target.gather(2, order[:, None].expand_as(problem.target))

        def factor(gram: Tensor) -> Tensor:
            damping = FEEDBACK_DAMPING * float(gram.diagonal().mean()) or 1.0
            damped = gram.double() + damping * torch.eye(len(gram), dtype=torch.float64)
            upper: Tensor = torch.linalg.cholesky(damped, upper=True)
            return upper.float()

        upper = torch.stack(workers.map(factor, gram))
        return cls(problem=replace(problem, target=target, gram=gram), order=order, upper=upper)

    def restored(self, codes: Tensor) -> Tensor:
        """Return codes, or a mask, `[G, R, D]` in the order of the problem that this one was made of."""
        return torch.empty_like(codes).scatter_(2, self.order[:, None].expand_as(codes), codes)

    def with_correlations(self, share: float) -> Ordered:
        """Return the problem for inputs that have so much of their correlations; `upper` stays."""
        return replace(self, problem=self.problem.with_correlations(share))

    @property
    def curvature(self) -> float:
        """The mean over all weights of how the error bends with each, given those chosen after it."""
        return float(self.upper.diagonal(dim1=1, dim2=2).square().mean())


def solved(
    ordered: Ordered, config: ScalarConfig, workers: Workers, kept: Tensor | None = None
) -> tuple[Grids, Tensor]:
    """Return grids, with the steps that a file keeps, and codes with the least error."""
    levels = grid_levels(config)
    # In the middle, between two levels or on one of them; of signed bytes on the one that is there.
    zeros = (levels - 1,) if levels == SIGNED_BYTES else (levels - 2, levels - 1, levels)
    grids = rounded(fitted(ordered.problem, levels, zeros, workers, kept))
    codes = feedback(ordered, grids, None, workers)
    for _ in range(ROUNDS):
        grids = rounded(refit(ordered, grids, codes, workers))
        codes = sweep(ordered, grids, codes, None, workers)
    return grids, codes


def rounded(grids: Grids) -> Grids:
    """Return grids with the steps that a file keeps."""
    return replace(grids, step=torch.from_numpy(rounded_steps(grids.step.numpy())))


def feedback(ordered: Ordered, grids: Grids, prices: Tensor | None, workers: Workers) -> Tensor:
    """Return codes, chosen from the last weight to the first, each making up for those chosen before.

    As in `pyquant.learn.descent.feedback`, whose blocks are single weights here.
    """
    problem = ordered.problem
    codes = torch.empty_like(problem.target)

    def run(piece: tuple[slice, slice]) -> None:
        part, own, upper = problem.part(*piece), grids.part(*piece), ordered.upper[piece[0]]
        missed = torch.zeros_like(part.target)  # U's rows times the errors of all weights chosen so far
        for panel in reversed(panels(part.target.shape[2])):
            chosen, error = _core.feedback_grids(
                part.target[:, :, panel].numpy(),
                missed[:, :, panel].numpy(),
                upper[:, panel, panel].transpose(1, 2).numpy(),
                *own.choosing(part.importance, prices, panel),
            )
            codes[piece][:, :, panel] = torch.from_numpy(chosen)
            before = slice(0, panel.start)
            missed[:, :, before] += torch.bmm(torch.from_numpy(error), upper[:, before, panel].transpose(1, 2))

    workers.map(run, problem.chunks())
    return codes


def sweep(ordered: Ordered, grids: Grids, codes: Tensor, prices: Tensor | None, workers: Workers) -> Tensor:
    """Return codes that are, one after another, the best ones while all others stay as they are."""
    problem = ordered.problem
    result = codes.clone()

    def run(piece: tuple[slice, slice]) -> None:
        part, own, chosen = problem.part(*piece), grids.part(*piece), result[piece]
        slope = torch.bmm(part.target - own.values(chosen), part.gram)  # half the fall of the error with Ŵ
        for panel in panels(part.target.shape[2]):
            best, change = _core.sweep_grids(
                slope[:, :, panel].numpy(),
                part.gram[:, panel, panel].numpy(),
                chosen[:, :, panel].numpy(),
                *own.choosing(part.importance, prices, panel),
            )
            chosen[:, :, panel] = torch.from_numpy(best)
            after = slice(panel.stop, part.target.shape[2])
            slope[:, :, after] -= torch.bmm(torch.from_numpy(change), part.gram[:, panel, after])

    workers.map(run, problem.chunks())
    return result


def refit(ordered: Ordered, grids: Grids, codes: Tensor, workers: Workers) -> Grids:
    """Return grids with the steps that suit the codes best; where none does, they stay."""
    problem = ordered.problem

    def run(piece: tuple[slice, slice]) -> Tensor:
        part, own = problem.part(*piece), grids.part(*piece)
        units = own.units(codes[piece])
        weighed = torch.bmm(units, part.gram)
        best = (weighed * part.target).sum(2) / (weighed * units).sum(2)
        return torch.where((best > 0) & best.isfinite(), best, own.step)

    step = torch.empty_like(grids.step)
    for piece, found in zip(problem.chunks(), workers.map(run, problem.chunks()), strict=True):
        step[piece] = found
    return replace(grids, step=step)


def error(ordered: Ordered, grids: Grids, codes: Tensor, workers: Workers) -> float:
    """Return the error of codes: the sum over all outputs, each times its importance."""
    problem = ordered.problem

    def run(piece: tuple[slice, slice]) -> float:
        part, own = problem.part(*piece), grids.part(*piece)
        missed = part.target - own.values(codes[piece])
        errors = (torch.bmm(missed, part.gram) * missed).sum(2) * part.importance
        return float(errors.double().sum())

    return sum(workers.map(run, problem.chunks()))


def code_lengths(codes: Tensor, levels: int) -> Tensor:
    """Return the bits `[L]` that each level takes under the static model of the codes."""
    counts = torch.bincount(codes.reshape(-1).long(), minlength=levels).double().clamp_min(FEWEST_COUNTED)
    return (counts.sum() / counts).log2().float()


def mean_length(codes: Tensor, levels: int) -> float:
    """Return the bits of a code, on average, under their own static model."""
    counts = torch.bincount(codes.reshape(-1).long(), minlength=levels).double()
    return float((counts * code_lengths(codes, levels)).sum() / counts.sum())


def cheapest(at: Tensor, bend: Tensor, zero: Tensor, levels: int, prices: Tensor | None) -> Tensor:
    """Return the codes c of the least `bend (c - at)²`, or that and their price.

    With prices, what is looked at besides the nearest level are the next one towards zero, and zero.

    Args:
        at: `[..]`, where the least error is.
        bend: how the error grows; it fits `at`.
        zero: the level, maybe between two; it fits `at`.
        levels: of the grid.
        prices: `[L]`.
    """
    nearest = at.round().clamp_(0, levels - 1)
    if prices is None:
        return nearest
    middle = zero.round()
    tried = torch.stack([nearest, nearest + (middle - nearest).sign(), middle.expand_as(nearest)])
    cost = bend * (tried - at).square() + prices[tried.long()]
    return tried.gather(0, cost.argmin(0)[None])[0]
