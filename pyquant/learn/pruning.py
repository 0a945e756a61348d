"""Weights that are dropped, chosen with all correlations of the inputs, and the others, which make up for them.

The error of Ŵ on inputs with Gram H is `tr((T - Ŵ) H (T - Ŵ)ᵀ)`, T being the weight aimed at. Three steps lower it
while so many weights are kept:

    greedy         which weights to drop. The one whose loss costs least goes, all that are left make up for it, and so
                   on (Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022). They take whole outputs, at D³
                   operations each; here it is a block of inputs at a time, and the blocks treated later make up for
                   the errors of those treated before, as in `pyquant.learn.grids.feedback`
    exchanged      which weights to drop, unit by unit, given all others: coordinate descent, at a price for a weight
    least_squares  the weights that are kept, by preconditioned conjugate gradients

A block's own Gram, all blocks treated later being free to make up for it, is `Uᵀ U` of its part of the Gram's factor.
How many weights of a block are dropped follows from one threshold of the layer: the increase of an output's error,
times its importance. It is searched for on some of the outputs; the last weights to keep are then chosen by what they
cost alone.

Units are neighbouring inputs that a pattern is chosen for: single weights, runs that are kept or dropped together, or
groups of M weights of which N are kept.

Dimensions: G groups · R outputs of a group · D weights of an output · u weights of a unit · V units of an output · P
patterns of a unit. Targets, weights and masks are `[G, R, D]`, Grams `[G, D, D]`.
"""

from __future__ import annotations

from dataclasses import replace
from math import log2

import torch
from torch import Tensor

from pyquant.codecs import SparseConfig
from pyquant.learn.descent import Problem, own_grams, panels
from pyquant.learn.grids import Ordered
from pyquant.learn.search import Search
from pyquant.learn.workers import Workers

SEARCH_ROWS = 48  # outputs of a group, on which the threshold is searched
SEARCHES = 10  # thresholds that are tried, at most
CLOSE = 0.003  # of all weights, too many or too few kept: near enough
FIRST = 0.3  # the first threshold, of the cost that as many weights have alone as are to be dropped
SLOPES = 4.0, 0.5, 40.0  # of log2 of the threshold, with the share kept: to begin with, least and most
EXCHANGES = 3  # rounds of choosing again and fitting
MOST_PATTERNS = 70  # of a unit (4 of 8), for which to choose again: more would take too long
FIRST_STEPS, STEPS = 12, 6  # of conjugate gradients, after dropping and after choosing again
TINY = 1e-30


def pruned(ordered: Ordered, config: SparseConfig, count: int, workers: Workers) -> tuple[Tensor, Tensor]:
    """Return the mask of the weights that are kept, and these weights; all others are 0.

    Args:
        ordered: neighbouring inputs are together in it as the config wants.
        config: says which weights may be kept together.
        count: of the weights that are kept.
        workers: do the work.
    """
    problem = ordered.problem
    patterns = torch.from_numpy(config.unit_patterns())
    units = None if config.of else count // config.run
    threshold = 0.0 if units is None else _threshold(ordered, config, units, workers)
    kept, weight = greedy(ordered, config, threshold, workers)
    if units is not None:
        kept = _counted(kept, unit_costs(problem, weight, config.run, workers), units)
    weight = least_squares(problem, kept, weight, FIRST_STEPS, workers)
    if len(patterns) > MOST_PATTERNS:
        return kept, weight
    least = error(problem, weight, workers)
    for _ in range(EXCHANGES):
        price = 0.0 if units is None else _price(unit_costs(problem, weight, config.run, workers), units) / config.run
        better, start = exchanged(problem, weight, patterns, price, workers)
        if units is not None:
            better = _counted(better, unit_costs(problem, start, config.run, workers), units)
        start = least_squares(problem, better, start, STEPS, workers)
        if not (now := error(problem, start, workers)) < least:
            break
        kept, weight, least = better, start, now
    return kept, weight


def greedy(ordered: Ordered, config: SparseConfig, threshold: float, workers: Workers) -> tuple[Tensor, Tensor]:
    """Return the mask of the weights that are kept, and these weights.

    Args:
        ordered: neighbouring inputs are together in it as the config wants.
        config: says which weights may be kept together.
        threshold: weights, or runs of them, are dropped while the error rises by no more; of N of M, so many are.
        workers: do the work.
    """
    problem = ordered.problem
    kept, weight = torch.empty_like(problem.target, dtype=torch.bool), torch.empty_like(problem.target)

    def run(piece: tuple[slice, slice]) -> None:
        part, upper = problem.part(*piece), ordered.upper[piece[0]]
        missed = torch.zeros_like(part.target)  # U's rows times the errors of all blocks treated so far
        own_kept, own_weight = kept[piece], weight[piece]
        groups, rows, _ = part.target.shape
        group = torch.arange(groups).repeat_interleave(rows)
        for block in reversed(panels(part.target.shape[2], config.unit)):
            own = upper[:, block, block]
            made_up = torch.linalg.solve_triangular(own, missed[:, :, block].transpose(1, 2), upper=True)
            wanted = (part.target[:, :, block] + made_up.transpose(1, 2)).flatten(0, 1)
            inverse = torch.cholesky_inverse(own, upper=True)
            keep, values = _without(inverse, group, wanted, part.importance.reshape(-1), config, threshold)
            own_kept[:, :, block], own_weight[:, :, block] = keep.view(groups, rows, -1), values.view(groups, rows, -1)
            before = slice(0, block.start)
            miss = part.target[:, :, block] - own_weight[:, :, block]
            missed[:, :, before] += torch.bmm(miss, upper[:, before, block].transpose(1, 2))

    workers.map(run, problem.chunks())
    return kept, weight


def _without(
    inverse: Tensor, group: Tensor, weight: Tensor, importance: Tensor, config: SparseConfig, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return which of the inputs of a block are kept by some outputs, and their weights.

    `H⁻¹` of an output, when some inputs have been dropped, is the one of them all less `Cᵀ C`. Only what is looked at
    is computed: the blocks of runs on its diagonal, and the rows of the run that goes next, which become those of C.

    Args:
        inverse: H⁻¹, `[G, n, n]`.
        group: of each output, `[N]`.
        weight: `[N, n]`, the best one with all inputs.
        importance: `[N]`.
        config: says which may be kept together.
        threshold: of the increase of an output's error.
    """
    outputs, inputs = weight.shape
    size = config.run
    places = torch.arange(inputs).reshape(-1, size)  # [V, u]
    diagonal = inverse[:, places[:, :, None], places[:, None]][group]  # [N, V, u, u], of H⁻¹
    weight = weight.clone()
    kept = torch.ones(outputs, len(places), dtype=torch.bool)
    everyone = torch.arange(outputs)
    gone = weight.new_empty(outputs, inputs, inputs)  # C
    for done in range(0, inputs, size):
        # What it costs to drop each run: wᵀ [H⁻¹]⁻¹ w.
        runs = weight.reshape(outputs, -1, size)
        if size == 1:
            costs = runs[..., 0].square() / diagonal[..., 0, 0]
        else:
            costs = (torch.linalg.solve(diagonal, runs) * runs).sum(2)
        may_go = kept
        if config.of:
            dropped = config.of - kept.reshape(outputs, -1, config.of).sum(2)
            may_go = kept & (dropped < config.of - config.kept_of).repeat_interleave(config.of, 1)
        cost, chosen = torch.where(may_go, costs, torch.inf).min(1)
        going = cost.isfinite() if config.of else cost * importance <= threshold
        if not bool(going.any()):
            break
        at = places[chosen]  # [N, u]
        rows = inverse[group[:, None], at]  # [N, u, n]
        past = gone[:, :done]
        rows = rows.baddbmm(past.gather(2, at[:, None].expand(-1, done, -1)).transpose(1, 2), past, alpha=-1)
        factor = torch.linalg.cholesky(diagonal[everyone, chosen])
        rows = torch.linalg.solve_triangular(factor, rows, upper=False) * going[:, None, None]
        gone[:, done : done + size] = rows
        lost = torch.linalg.solve_triangular(factor, weight.gather(1, at)[..., None], upper=False)
        weight -= (rows * lost).sum(1)
        by_run = rows.reshape(outputs, size, -1, size)
        diagonal -= (by_run[..., None] * by_run[..., None, :]).sum(1)
        kept[everyone, chosen] &= ~going
        weight *= kept.repeat_interleave(size, 1)
        diagonal[everyone[going], chosen[going]] = torch.eye(size)
    return kept.repeat_interleave(size, 1), weight


def exchanged(
    problem: Problem, weight: Tensor, patterns: Tensor, price: float, workers: Workers
) -> tuple[Tensor, Tensor]:
    """Return the mask and the weights when each unit, one after another, takes the best pattern and weights for it.

    Args:
        problem: neighbouring inputs are together in it.
        weight: to begin with.
        patterns: bool `[P, u]`, that a unit may have.
        price: of a weight that is kept.
        workers: do the work.
    """
    size = patterns.shape[1]
    result, kept = weight.clone(), torch.empty_like(weight, dtype=torch.bool)
    prices = price * patterns.sum(1)
    both = patterns[:, :, None] & patterns[:, None]
    # [G, V, P, u, u], of the Gram of the weights that a pattern keeps.
    bends = torch.where(both, own_grams(problem.gram, size)[:, :, None], torch.eye(size))
    (inverses,) = workers.map(torch.linalg.inv, [bends])
    inverses = inverses * both

    def run(piece: tuple[slice, slice]) -> None:
        part, own, own_kept = problem.part(*piece), result[piece], kept[piece]
        slope = torch.bmm(part.target - own, part.gram)  # half the fall of the error with Ŵ
        for panel in panels(part.target.shape[2], size):
            change = torch.zeros_like(slope[:, :, panel])
            for start in range(panel.start, panel.stop, size):
                here, rest = slice(start, start + size), slice(start, panel.stop)
                old = own[:, :, here].clone()
                wanted = slope[:, :, here] + torch.bmm(old, part.gram[:, here, here])
                values = torch.einsum("gru,gpuv->grpv", wanted, inverses[piece[0], start // size])
                gains = (values * wanted[:, :, None]).sum(3) * part.importance[..., None] - prices
                best = gains.argmax(2)
                own_kept[:, :, here] = patterns[best]
                own[:, :, here] = values.gather(2, best[..., None, None].expand(-1, -1, 1, size))[:, :, 0]
                step = own[:, :, here] - old
                slope[:, :, rest] -= torch.bmm(step, part.gram[:, here, rest])
                change[:, :, start - panel.start : start - panel.start + size] = step
            after = slice(panel.stop, part.target.shape[2])
            slope[:, :, after] -= torch.bmm(change, part.gram[:, panel, after])

    workers.map(run, problem.chunks())
    return kept, result


def least_squares(problem: Problem, kept: Tensor, weight: Tensor, steps: int, workers: Workers) -> Tensor:
    """Return the kept weights with the least error, approached from `weight`; all others are 0."""

    def run(piece: tuple[slice, slice]) -> Tensor:
        part, mask = problem.part(*piece), kept[piece].float()
        bend = part.gram.diagonal(dim1=1, dim2=2)[:, None].clamp_min(TINY)
        own = weight[piece] * mask
        residual = torch.bmm(part.target - own, part.gram) * mask
        direction = residual / bend
        fall = (residual * direction).sum(2, keepdim=True)
        for _ in range(steps):
            bent = torch.bmm(direction, part.gram) * mask
            length = fall / (direction * bent).sum(2, keepdim=True).clamp_min(TINY)
            own += length * direction
            residual -= length * bent
            step = residual / bend
            now = (residual * step).sum(2, keepdim=True)
            direction = step + now / fall.clamp_min(TINY) * direction
            fall = now
        return own

    result = torch.empty_like(weight)
    for piece, found in zip(problem.chunks(), workers.map(run, problem.chunks()), strict=True):
        result[piece] = found
    return result


def error(problem: Problem, weight: Tensor, workers: Workers) -> float:
    """Return the error of a weight: the sum over all outputs, each times its importance."""

    def run(piece: tuple[slice, slice]) -> float:
        part = problem.part(*piece)
        missed = part.target - weight[piece]
        return float(((torch.bmm(missed, part.gram) * missed).sum(2) * part.importance).double().sum())

    return sum(workers.map(run, problem.chunks()))


def unit_costs(problem: Problem, weight: Tensor, size: int, workers: Workers) -> Tensor:
    """Return how much less error there is with each run of so many weights than without, `[G, R, V]`.

    All other weights stay as they are; those of the run are then the best ones.
    """
    grams = own_grams(problem.gram, size)
    (inverses,) = workers.map(torch.linalg.inv, [grams])

    def run(piece: tuple[slice, slice]) -> Tensor:
        part, own = problem.part(*piece), weight[piece]
        slope, own = (x.reshape(*own.shape[:2], -1, size) for x in (torch.bmm(part.target - own, part.gram), own))
        wanted = slope + torch.einsum("grvi,gvij->grvj", own, grams[piece[0]])
        values = torch.einsum("grvi,gvij->grvj", wanted, inverses[piece[0]])
        costs: Tensor = (values * wanted).sum(3) * part.importance[..., None]
        return costs

    result = torch.empty_like(weight[:, :, ::size])
    for piece, found in zip(problem.chunks(), workers.map(run, problem.chunks()), strict=True):
        result[piece] = found
    return result


def _threshold(ordered: Ordered, config: SparseConfig, units: int, workers: Workers) -> float:
    """Return the threshold with which about so many runs are kept, as far as some of the outputs tell."""
    problem = ordered.problem
    some = slice(0, None, -(-problem.target.shape[1] // SEARCH_ROWS))
    part = replace(ordered, problem=problem.part(slice(None), some))
    share = units * config.run / problem.target.numel()
    costs = unit_costs(part.problem, part.problem.target, config.run, workers)
    first = FIRST * _price(costs, round(share * costs.numel())) * config.run
    search = Search(log2(max(first, TINY)), *SLOPES)
    for _ in range(SEARCHES):
        kept, _ = greedy(part, config, float(2**search.log), workers)
        excess = int(kept.sum()) / kept.numel() - share
        if abs(excess) <= CLOSE:
            break
        search.move(excess)
    return float(2**search.log)


def _price(costs: Tensor, units: int) -> float:
    """Return the price at which so many units `[G, R, V]` are worth theirs."""
    ordered = costs.flatten().sort(descending=True).values
    return float(ordered[max(0, units - 1) : units + 1].mean())


def _counted(kept: Tensor, costs: Tensor, units: int) -> Tensor:
    """Return a mask that keeps so many units: of those kept, or of the others too, the ones that cost most to drop."""
    size = kept.shape[2] // costs.shape[2]
    order = costs.flatten().argsort(descending=True, stable=True)
    before = kept[..., ::size].flatten()[order].int()
    order = order[before.argsort(descending=True, stable=True)]
    result = torch.zeros(costs.numel(), dtype=torch.bool)
    result[order[:units]] = True
    return result.reshape(costs.shape).repeat_interleave(size, 2)
