"""Distortion: what coding costs a weight by itself, measured on a sample of it: centroids, grids, shares that are kept.

Dimensions: B blocks · K centroids · d weights of a block.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, prod

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.codecs.product import blocks_from_weight, weight_from_blocks
from pyquant.codecs.sparse import channels_last
from pyquant.learn.moments import squared_norm

Floats = NDArray[np.float32]
Block = tuple[int, int, int]

TRIAL_CENTROIDS = (16, 64, 256)  # at which a weight's curve is measured; it is extrapolated beyond
SAMPLED_BLOCKS = 8192  # of a weight, for its curve
POINTS_AT_ONCE = 8192  # whose distances to all centroids are held in memory
ITERATIONS = 6  # of k-means for a trial
OVERFIT = 1.25  # exponent of (1 - K/B): centroids fit the blocks they were learnt on better than others
TRIAL_STEPS = (4.0, 2.83, 2.0, 1.41, 1.0, 0.5, 0.25, 0.125)  # of a grid, in units of a weight's numbers
ROUNDED_UP = 0.4  # added to steps before they are rounded down: where codes have a price, a level begins at 0.6 of one
SAMPLED_NUMBERS = 65536  # of a weight, for its grids and shares
TRIAL_SHARES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9, 0.98)  # of a weight that are kept
RUN = 4  # neighbours that are kept or dropped together


@dataclass(frozen=True, slots=True)
class Found:
    """A weight's errors at a few numbers of centroids, and the centroids of the last."""

    log_centroids: tuple[float, ...]
    log_errors: tuple[float, ...]
    centroids: Floats  # [K, d]


def rate_distortion(weight: Floats, block: Block, rng: np.random.Generator) -> Found:
    """Return the errors of a weight whose blocks are replaced by a few centroids, by k-means."""
    flat = blocks_from_weight(weight, block).reshape(-1, prod(block))
    sample = torch.from_numpy(flat[np.sort(rng.permutation(len(flat))[:SAMPLED_BLOCKS])])
    energy = squared_norm(sample)
    if energy == 0:  # all weights are 0: coding costs nothing
        return Found((0.0, 1.0), (-50.0, -51.0), np.zeros((1, flat.shape[1]), np.float32))
    log_centroids, log_errors = [0.0], [log(max(squared_norm(sample - sample.mean(dim=0)) / energy, 1e-20))]
    centroids = sample.mean(dim=0, keepdim=True)
    for count in TRIAL_CENTROIDS:
        if 2 * count > len(sample):
            break
        start = sample[torch.from_numpy(np.sort(rng.permutation(len(sample))[:count]))]
        centroids, error = _k_means(sample, start)
        endless = error / energy / (1 - count / len(sample)) ** OVERFIT
        log_centroids.append(log(count))
        # Never more than with fewer centroids: bad luck in a start must not make a curve rise.
        log_errors.append(min(log(max(endless, 1e-20)), log_errors[-1] - 1e-6))
    if len(log_centroids) == 1:  # hardly any blocks: as if each doubling of the centroids halved the error
        log_centroids, log_errors = [0.0, log(2)], [log_errors[0], log_errors[0] - log(2)]
    return Found(tuple(log_centroids), tuple(log_errors), centroids.numpy())


def grid_rates(weight: Floats, rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the bits per weight that grids of some steps take when entropy-coded, and the logarithms of their errors.

    As of entropy-constrained grids with a dead zone (Sullivan, 1996), the levels of whose outputs suit them best.
    """
    flat = weight.reshape(-1)
    some = torch.from_numpy(flat[np.sort(rng.permutation(flat.size)[:SAMPLED_NUMBERS])])
    energy = squared_norm(some)
    if energy == 0:
        return (0.0, 1.0), (-50.0, -51.0)
    unit = (energy / some.numel()) ** 0.5
    rates, log_errors = [0.0], [0.0]
    for factor in TRIAL_STEPS:
        levels = (some.abs() / (factor * unit) + ROUNDED_UP).floor() * some.sign()
        counts = torch.unique(levels, return_counts=True)[1].double()
        rate = float((counts * (counts.sum() / counts).log2()).sum() / counts.sum())
        explained = float((levels * some).sum()) ** 2 / max(squared_norm(levels), 1e-30)
        error = log(max(1 - explained / energy, 1e-20))
        if rate > rates[-1] + 1e-3 and error < log_errors[-1]:
            rates.append(rate)
            log_errors.append(error)
    if len(rates) == 1:
        return (0.0, 1.0), (0.0, -2 * log(2))
    return tuple(rates), tuple(log_errors)


def share_errors(weight: Floats, run: int, rng: np.random.Generator) -> tuple[float, ...]:
    """Return the logarithms of a weight's errors where shares of it are kept, the largest of runs of neighbours."""
    flat = channels_last(weight).reshape(-1)
    squares = np.square(flat[: max(len(flat) // run * run, run)], dtype=np.float64)
    sums = np.add.reduceat(squares, np.arange(0, len(squares), run))
    some = np.sort(sums[rng.permutation(len(sums))[: SAMPLED_NUMBERS // run]])
    below = np.concatenate([[0.0], np.cumsum(some)])  # of so many runs, the smallest ones
    dropped = below[[round((1 - share) * len(some)) for share in TRIAL_SHARES]]
    return tuple(log(max(error / below[-1], 1e-20)) if below[-1] > 0 else -50.0 for error in dropped)


def _k_means(points: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Return the centroids `[K, d]` after a few iterations on points `[n, d]`, and the squared error of the points."""
    error = 0.0
    for _ in range(ITERATIONS):
        nearest = _nearest(points, centroids)
        counts = torch.bincount(nearest, minlength=len(centroids)).to(points.dtype)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        means = sums / counts.clamp(min=1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        error = squared_norm(points - centroids[nearest])
    return centroids, error


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the nearest centroid `[n]` of points `[n, d]`."""
    offset = -0.5 * centroids.square().sum(dim=1)
    parts = torch.split(points, POINTS_AT_ONCE)
    return torch.cat([torch.addmm(offset, part, centroids.T).argmax(dim=1) for part in parts])


def with_centroids(weight: Floats, block: Block, centroids: Floats) -> Floats:
    """Return a weight with each block replaced by the nearest of some centroids `[K, d]`."""
    cut = blocks_from_weight(weight, block)
    nearest = _nearest(torch.from_numpy(cut.reshape(-1, cut.shape[2])), torch.from_numpy(centroids))
    return weight_from_blocks(centroids[nearest.numpy()].reshape(cut.shape), weight.shape, block)
