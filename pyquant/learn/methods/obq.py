"""OBQ: levels of uniform grids, chosen with error feedback ("Optimal Brain Compression", NeurIPS 2022).

Each weight's rounding error is made up for by the weights that are rounded after it, as the inverse of the full Gram
says; order and arithmetic are GPTQ's (`pyquant.learn.grids`), and coordinate descent and least squares for the steps
follow. Where the codec has a rate, the same is done with a price for each code, and steps as wide as the rate wants.
"""

from __future__ import annotations

from dataclasses import replace
from math import log, log2

import numpy as np
import torch
from torch import Tensor

from pyquant.codecs import ScalarConfig
from pyquant.codecs.scalar import rounded_steps, tensors_of
from pyquant.learn.descent import Problem
from pyquant.learn.grids import Grids, Ordered, code_lengths, feedback, fitted, mean_length, refit, sweep
from pyquant.learn.methods.base import Layer, Tensors
from pyquant.learn.methods.correlated import Correlated, FullMoments, aim
from pyquant.learn.recipes import OURS
from pyquant.learn.workers import Workers

ROUNDS = 6  # of fitting steps and choosing codes
SIGNED_BYTES = 255  # levels, -127 to 127 steps: all that grids of 8 bits use, so that the runtime's bytes hold them
# A bit is worth as much error as it would take away by halving steps: the derivative of step² / 12 with the rate ..
BIT = 2 * log(2) / 12
ZEAL = 1.2  # .. times this, which is best at 1 to 3 bits, where more weights than that formula says should be zero
SEARCH_ROWS = 96  # outputs of a group, on which steps are searched for a rate at first
SEARCHES, LAST_SEARCHES = 6, 3  # steps that are tried on these, and on all
FIRST_STEP = 1.9  # log2 of the first one at 0 bits, in units of the weights
LEAST_SLOPE, MOST_SLOPE = 0.5, 3.0  # of log2 of a step, for each bit
CLOSE = 0.005  # relative, to the rate


class Obq(Correlated):
    """Error feedback, coordinate descent and least squares on uniform grids."""

    codec = ScalarConfig
    preset = "int4"
    training = OURS

    def code(self, layer: Layer, measured: FullMoments | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the codes, steps and zeros that the descent ends with."""
        config = layer.config
        assert isinstance(config, ScalarConfig)
        problem = _problem(layer, measured, workers)
        ordered = Ordered.of(problem, workers)
        if config.rate:
            grids, codes = _at_rate(ordered, config, workers)
        else:
            grids, codes = _at_bits(problem, ordered, config, workers)
        outputs = len(layer.weight)
        return tensors_of(
            ordered.restored(codes).reshape(outputs, -1).numpy().astype(np.uint8),
            grids.step.reshape(outputs).numpy(),
            grids.zero.reshape(outputs).numpy(),
            config,
        )


def _problem(layer: Layer, measured: FullMoments | None, workers: Workers) -> Problem:
    groups = 1 if layer.node.op == "linear" else layer.node.attributes["groups"]
    target, gram = layer.weight, torch.eye(layer.weight[0].size).repeat(groups, 1, 1)
    if measured is not None:
        target, gram = aim(layer, measured, workers)
    return Problem(
        target=torch.from_numpy(target).reshape(groups, len(target) // groups, -1),
        gram=gram.float(),
        importance=torch.from_numpy(layer.importance).reshape(groups, -1),
    )


def _at_bits(problem: Problem, ordered: Ordered, config: ScalarConfig, workers: Workers) -> tuple[Grids, Tensor]:
    """Return grids and codes with the least error."""
    levels = _levels(config)
    # In the middle, between two levels or on one of them; of signed bytes on the one that is there.
    zeros = (levels - 1,) if levels == SIGNED_BYTES else (levels - 2, levels - 1, levels)
    grids = _kept(fitted(problem, levels, zeros, workers))
    codes = feedback(ordered, grids, None, workers)
    for _ in range(ROUNDS):
        grids = _kept(refit(ordered, grids, codes, workers))
        codes = sweep(ordered, grids, codes, None, workers)
    return grids, codes


def _at_rate(ordered: Ordered, config: ScalarConfig, workers: Workers) -> tuple[Grids, Tensor]:
    """Return grids and codes with the least error of those whose codes take so many bits per weight.

    Steps are searched on some of the rows, and then on all. To begin with, a bit is worth half a step; later, what the
    secant through the last two says.
    """
    rows = ordered.problem.target.shape[1]
    some = slice(0, None, -(-rows // SEARCH_ROWS))
    part = replace(ordered, problem=ordered.problem.part(slice(None), some))
    log_unit, slope = log2(_unit(ordered)) + FIRST_STEP - config.rate, 1.0
    for tried, searches in ((part, SEARCHES), (ordered, LAST_SEARCHES)):
        before: tuple[float, float] | None = None
        for _ in range(searches):
            grids, codes = _coded(tried, config, 2.0**log_unit, workers)
            bits = mean_length(codes, grids.levels)
            if abs(bits - config.rate) <= CLOSE * config.rate:
                break
            if before is not None and bits != before[1]:
                slope = min(max((before[0] - log_unit) / (bits - before[1]), LEAST_SLOPE), MOST_SLOPE)
            before = log_unit, bits
            log_unit += slope * (bits - config.rate)
    return grids, codes


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
    levels = _levels(config)
    zero = (levels - 1) // 2  # the level
    narrowest = largest / zero
    step = torch.minimum(torch.maximum(wanted, narrowest), 4 * largest)
    step = torch.where(largest > 0, step, 1.0)
    grids = _kept(Grids(step=step, zero=torch.full_like(step, 2 * zero), levels=levels))
    worth = ZEAL * BIT * unit**2 * ordered.curvature
    codes = grids.nearest(problem.target)

    def prices() -> Tensor:
        return worth * code_lengths(codes, levels)

    codes = feedback(ordered, grids, prices(), workers)
    for _ in range(ROUNDS):
        grids = _kept(refit(ordered, grids, codes, workers))
        codes = sweep(ordered, grids, codes, prices(), workers)
    return grids, codes


def _levels(config: ScalarConfig) -> int:
    return min(config.centroids, SIGNED_BYTES)


def _kept(grids: Grids) -> Grids:
    """Return grids with the steps that a file keeps."""
    return replace(grids, step=torch.from_numpy(rounded_steps(grids.step.numpy())))
