"""OBQ: levels of uniform grids, chosen with error feedback ("Optimal Brain Compression", NeurIPS 2022).

Each weight's rounding error is made up for by the weights that are rounded after it, as the inverse of the full Gram
says; order and arithmetic are GPTQ's (`pyquant.learn.grids`), and coordinate descent and least squares for the steps
follow. Where the codec has a rate, the same is done with a price for each code, and steps as wide as the rate wants.
"""

from __future__ import annotations

from dataclasses import replace
from math import inf, log, log2, prod

import numpy as np
import torch
from torch import Tensor

from pyquant.codecs import ScalarConfig
from pyquant.codecs.scalar import grid_levels, tensors_of
from pyquant.declared import PackedCodes
from pyquant.entropy import weight_bytes
from pyquant.learn.descent import CORRELATIONS, SWEEPS
from pyquant.learn.grids import (
    Grids,
    Ordered,
    code_lengths,
    error,
    feedback,
    mean_length,
    refit,
    rounded,
    solved,
    sweep,
)
from pyquant.learn.methods.base import Layer, Tensors
from pyquant.learn.methods.correlated import Correlated, FullMoments, problem_of
from pyquant.learn.recipes import OURS
from pyquant.learn.search import Search
from pyquant.learn.workers import Workers

# A bit is worth as much error as it would take away by halving steps: the derivative of step² / 12 with the rate ..
BIT = 2 * log(2) / 12
ZEAL = 1.2  # .. times this, which is best at 1 to 3 bits, where more weights than that formula says should be zero
SEARCH_ROWS = 96  # outputs of a group, on which steps are searched for a rate at first
SEARCHES, LAST_SEARCHES = 6, 8  # steps that are tried on these, and on all, at most
FIRST_STEP = 1.9  # log2 of the first one at 0 bits, in units of the weights
SLOPES = 0.5, 3.0  # of log2 of a step, for each bit, at least and at most; to begin with, a bit is worth half a step
CLOSE = 0.003  # relative, to what is aimed at: as much less than the rate
LAST_RESORTS = 20  # more trials where codes still are too long, with steps larger ..
LAST_RESORT = 0.1  # .. by this or more, in log2


class Obq(Correlated):
    """Error feedback, coordinate descent and least squares on uniform grids."""

    codec = ScalarConfig
    reaches_rates = True
    preset = "int4"
    training = OURS

    def code(self, layer: Layer, measured: FullMoments | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the codes, steps and zeros that the descent ends with."""
        config = layer.config
        assert isinstance(config, ScalarConfig)
        ordered = Ordered.of(problem_of(layer, measured, workers), workers)
        if config.rate:
            return _at_rate(ordered, config, layer.weight.shape, workers)
        return _tensors(ordered, *solved(ordered, config, workers), config)


def _at_rate(ordered: Ordered, config: ScalarConfig, shape: tuple[int, ...], workers: Workers) -> Tensors:
    """Return the tensors with the least error of those that take the bytes that the config allows a weight of `shape`.

    Steps are searched on some of the rows, by the length that codes should have, and then on all, by the bytes that
    their stream has.
    """
    rows = ordered.problem.target.shape[1]
    some = slice(0, None, -(-rows // SEARCH_ROWS))
    part = replace(ordered, problem=ordered.problem.part(slice(None), some))
    aim = config.rate * (1 - CLOSE)
    search = Search(log2(_unit(ordered)) + FIRST_STEP - config.rate, 1.0, *SLOPES)
    for _ in range(SEARCHES):
        grids, codes = _coded(part, config, 2.0**search.log, workers)
        excess = mean_length(codes, grids.levels) - aim
        if abs(excess) <= CLOSE * aim:
            break
        search.move(excess)
    search = Search(search.log, search.slope, *SLOPES)
    count, most = prod(shape), config.coded_bytes(shape)
    fitting: tuple[float, Tensors] | None = None  # the best tensors that fit, and their error
    for trial in range(LAST_SEARCHES + LAST_RESORTS):
        grids, codes = _coded(ordered, config, 2.0**search.log, workers)
        tensors = _tensors(ordered, grids, codes, config)
        taken = weight_bytes(tensors, PackedCodes(models=1, count=count, bits=config.bits))
        if taken <= most:
            missed = error(ordered, grids, codes, workers)
            if fitting is None or missed < fitting[0]:
                fitting = missed, tensors
        excess = 8 * (taken - most) / count + config.rate - aim
        if fitting is not None and (trial >= LAST_SEARCHES or abs(excess) <= CLOSE * aim):
            break
        search.move(excess, least=-inf if trial < LAST_SEARCHES else LAST_RESORT)
    return tensors if fitting is None else fitting[1]


def _tensors(ordered: Ordered, grids: Grids, codes: Tensor, config: ScalarConfig) -> Tensors:
    outputs = grids.step.numel()
    return tensors_of(
        ordered.restored(codes).reshape(outputs, -1).numpy().astype(np.uint8),
        grids.step.reshape(outputs).numpy(),
        grids.zero.reshape(outputs).numpy(),
        config,
    )


def _unit(ordered: Ordered) -> float:
    """Return the root mean square of all weights, times what their output's error counts."""
    problem = ordered.problem
    return float((problem.target.square().mean(2) * problem.importance).mean().sqrt()) or 1.0


def _coded(ordered: Ordered, config: ScalarConfig, unit: float, workers: Workers) -> tuple[Grids, Tensor]:
    """Return grids and codes for steps that cost as much error as `unit` does where the importance is 1."""
    problem = ordered.problem
    largest = problem.target.abs().amax(2)
    wanted = unit / problem.importance.sqrt()
    # No weight may lie outside its grid, and a grid that is wider than all weights makes them zeros in any case.
    levels = grid_levels(config)
    zero = (levels - 1) // 2  # the level
    narrowest = largest / zero
    step = torch.minimum(torch.maximum(wanted, narrowest), 4 * largest)
    step = torch.where(largest > 0, step, 1.0)
    grids = rounded(Grids(step=step, zero=torch.full_like(step, 2 * zero), levels=levels))
    worth = ZEAL * BIT * unit**2 * ordered.curvature
    codes = grids.nearest(problem.target)

    def prices() -> Tensor:
        return worth * code_lengths(codes, levels)

    codes = feedback(ordered, grids, prices(), workers)
    for share in CORRELATIONS:
        eased = ordered.with_correlations(share)
        grids = rounded(refit(eased, grids, codes, workers))
        for _ in range(SWEEPS):
            codes = sweep(eased, grids, codes, prices(), workers)
    return grids, codes
