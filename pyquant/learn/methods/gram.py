"""Our own method: codes and codebooks that minimise a layer's output error, all correlations of its inputs included.

Channels change places first, so that blocks vary less (`pyquant.learn.ordering`). k-means on the blocks of the weight
that is aimed at (`pyquant.learn.methods.correlated`) gives first codebooks. Error feedback then chooses codes,
and rounds of least squares (codebooks) and coordinate descent (codes) lower the error further; `pyquant.learn.descent`
has these steps. Where the codec has a rate, more such rounds follow, with a price for each centroid that rises until
the entropy-coded codes are short enough.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping
from dataclasses import replace
from math import log, prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import Choice
from pyquant.codecs import ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.product import as_conv_shape, blocks_from_weight, rounded_codebook, tensors_of, weight_from_blocks
from pyquant.console import Progress
from pyquant.declared import PackedCodes
from pyquant.entropy import stored_bytes
from pyquant.graph import Network
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.descent import CORRELATIONS, SWEEPS, Problem, Solution, error, feedback, own_grams, refit, sweep
from pyquant.learn.grids import code_lengths
from pyquant.learn.methods.base import Floats, Layer, Tensors
from pyquant.learn.methods.correlated import Correlated, FullMoments, aim, unmeasured
from pyquant.learn.ordering import in_best_order
from pyquant.learn.recipes import OURS
from pyquant.learn.workers import Workers

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

Codes = NDArray[np.uint16]

MAX_CODEBOOKS = 8
RATE_ROUNDS = 32  # of them, at most, on the way to a rate
GAIN = 0.5  # exponent of how many times too long codes are, by which the worth of a bit then grows ..
LEAST_GAIN, MOST_GAIN = 1.02, 1.5  # .. at least and at most so many times
SMALLEST_GAIN = 1.001  # below which codes that become too short do so all at once
LAST_RESORTS, LAST_RESORT = 20, 1.3  # more rounds where codes still are too long, in each of which it grows so much
CLOSE = 0.005  # relative, of the bytes that a rate allows, may stay unused


class Gram(Correlated):
    """Error feedback, coordinate descent and least squares on the full Gram."""

    weighs_outputs = True
    max_codebooks = MAX_CODEBOOKS
    reaches_rates = True
    training = OURS

    def prepare(
        self,
        network: Network,
        norms: Mapping[str, Norm],
        choices: Mapping[str, Choice],
        *,
        seed: int,
        workers: Workers,
        progress: Progress,
    ) -> tuple[Network, Mapping[str, Norm]]:
        """Return the network with its channels in the order whose blocks vary least, as PQF does.

        Of a ResNet-18 in blocks of (2, 3, 3), the output errors of layers are 4 to 8 % smaller for it. Weights scaled
        by the size of their inputs gave no better order.
        """
        return in_best_order(network, norms, choices, seed=seed, workers=workers, progress=progress)

    def code(self, layer: Layer, measured: FullMoments | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the codes and codebooks that the descent ends with."""
        config = layer.config
        assert isinstance(config, ProductConfig)
        codes, codebooks = _learnt(layer, config, measured, seed=seed, workers=workers)
        return tensors_of(codes, codebooks, config)


def _learnt(
    layer: Layer, config: ProductConfig, measured: FullMoments | None, *, seed: int, workers: Workers
) -> tuple[Codes, Floats]:
    """Return codes `[M, O, J]` and codebooks `[M, K, d]`, these with the numbers that a file would keep."""
    if measured is None and not config.rate:
        return _first(layer.weight, config, None, seed=seed, workers=workers)
    target, gram = (layer.weight, unmeasured(layer)) if measured is None else aim(layer, measured, workers)
    problem = _problem(layer, config, target, gram)
    block_gram = own_grams(problem.gram, config.dim).sum(0).sum(0)
    codes, codebooks = _first(target, config, block_gram.double().numpy(), seed=seed, workers=workers)
    if config.centroids >= codes[0].size and not config.rate:
        return codes, codebooks  # a centroid for each block: nothing is left to gain
    solution = feedback(problem, torch.from_numpy(codebooks), workers)
    for share in CORRELATIONS:
        eased = problem.with_correlations(share)
        solution = _refit(eased, solution, config, workers)
        for _ in range(SWEEPS):
            solution = sweep(eased, solution, workers)
    if config.rate:
        solution = _at_rate(problem, solution, config, layer.weight.shape, workers)
    return _codes(solution, config, len(layer.weight)), solution.codebooks.numpy()


def _at_rate(
    problem: Problem, solution: Solution, config: ProductConfig, shape: tuple[int, ...], workers: Workers
) -> Solution:
    """Return the solution for a weight of `shape` whose entropy-coded codes take the bytes that the config allows.

    A bit of each of the blocks, of d weights, is worth as much error as it takes away where errors fall as 2^(-2 r)
    with the bits r of a weight: 2 ln(2) / d of it. From there the worth goes up until codes are as short as they must
    be; where they get shorter than that, from the last ones that are too long once more, by less. The commonest code
    is the cheapest, and may draw in others without end: then only some blocks get the shorter codes.
    """
    count = prod(solution.codes.shape[1:])
    packed = PackedCodes(models=config.codebooks, count=count, bits=config.code_bits)

    def fitted(found: Solution) -> tuple[Solution, Tensor]:
        lengths = torch.stack([code_lengths(codes, config.centroids) for codes in found.codes])
        return _refit(problem, found, config, workers), lengths

    def taken(tried: Solution) -> int:
        return stored_bytes(pack_codes(_codes(tried, config, shape[0]), config.code_bits), packed)

    most = config.planned_bytes(shape)["codes"]
    if taken(solution) <= most:
        return solution
    aim = (1 - CLOSE / 2) * most
    worth, gain = 2 * log(2) / config.dim * error(problem, solution, workers) / count, 1.0
    fitting: list[Solution] = []  # those whose codes are short enough
    start, lengths = fitted(solution)
    for trial in range(RATE_ROUNDS + LAST_RESORTS):
        tried = sweep(problem, start, workers, gain * worth * lengths)
        size = taken(tried)
        if size > most:
            solution, worth = tried, gain * worth
            start, lengths = fitted(solution)
            gain = LAST_RESORT if trial >= RATE_ROUNDS else min(max((size / aim) ** GAIN, LEAST_GAIN), MOST_GAIN)
            continue
        fitting.append(tried)
        if size >= (1 - CLOSE) * most:
            break
        if trial >= RATE_ROUNDS or gain < SMALLEST_GAIN:
            fitting.append(_with_codes_of(tried, start, lambda mixed: taken(mixed) <= most))
            break
        gain **= 0.5
    if not fitting:
        return solution
    return _refit(problem, min(fitting, key=lambda found: error(problem, found, workers)), config, workers)


def _with_codes_of(shorter: Solution, start: Solution, fits: Callable[[Solution], bool]) -> Solution:
    """Return the start with the first of the shorter codes, about as few of them as make it fit: a part of a sweep."""
    old, new = start.codes.flatten(1), shorter.codes.flatten(1)

    def mixed(count: int) -> Solution:
        codes = torch.cat([new[:, :count], old[:, count:]], dim=1)
        return replace(start, codes=codes.view_as(start.codes))

    return mixed(bisect_left(range(old.shape[1]), True, key=lambda count: fits(mixed(count))))


def _refit(problem: Problem, solution: Solution, config: ProductConfig, workers: Workers) -> Solution:
    """Return the solution with the codebooks that fit its codes best, their numbers as a file would keep them."""
    codebooks = rounded_codebook(refit(problem, solution, workers).codebooks.numpy(), config)
    return replace(solution, codebooks=torch.from_numpy(codebooks))


def _codes(solution: Solution, config: ProductConfig, outputs: int) -> Codes:
    return solution.codes.reshape(config.codebooks, outputs, -1).numpy().astype(np.uint16)


def _first(
    weight: Floats, config: ProductConfig, gram: NDArray[np.float64] | None, *, seed: int, workers: Workers
) -> tuple[Codes, Floats]:
    """Return codes and codebooks by k-means; of additive codebooks, each codes what the ones before it leave."""
    single = replace(config, codebooks=1, rate=0.0)
    rest, codes, codebooks = weight, [], []
    for m in range(config.codebooks):
        code, codebook = learn_codebook(rest, single, gram, seed=seed + m, workers=workers)
        blocks = codebook[0][code[0]]
        rest = rest - weight_from_blocks(blocks, weight.shape, config.block)
        codes.append(code[0])
        codebooks.append(codebook[0])
    return np.stack(codes), np.stack(codebooks)


def _problem(layer: Layer, config: ProductConfig, target: Floats, gram: Tensor) -> Problem:
    """Return the descent's problem: targets and Grams in the order of blocks, padding in place."""
    groups, depth, _ = gram.shape
    _, c, kh, kw = as_conv_shape(layer.weight.shape)
    numbers = np.arange(1, depth + 1, dtype=np.float32).reshape(1, c, kh, kw)
    order = torch.from_numpy(blocks_from_weight(numbers, config.block).reshape(-1).astype(np.int64))  # 0: padding
    padded = torch.zeros(groups, depth + 1, depth + 1)
    padded[:, 1:, 1:] = gram
    blocks = torch.from_numpy(blocks_from_weight(target, config.block))
    return Problem(
        target=blocks.reshape(groups, -1, len(order)),
        gram=padded[:, order][:, :, order].contiguous(),
        importance=torch.from_numpy(layer.importance).reshape(groups, -1),
    )
