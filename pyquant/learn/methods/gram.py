"""Our own method: codes and codebooks that minimise a layer's output error, all correlations of its inputs included.

Channels change places first, so that blocks vary less (`pyquant.learn.ordering`). k-means on the blocks of the weight
that is aimed at (`pyquant.learn.methods.correlated`) gives first codebooks. Error feedback then chooses codes,
and rounds of least squares (codebooks) and coordinate descent (codes) lower the error further; `pyquant.learn.descent`
has these steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import Choice
from pyquant.codecs import ProductConfig
from pyquant.codecs.product import as_conv_shape, blocks_from_weight, rounded_codebook, tensors_of, weight_from_blocks
from pyquant.console import Progress
from pyquant.graph import Network
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.descent import Problem, Solution, feedback, refit, sweep
from pyquant.learn.methods.base import Floats, Layer, Tensors
from pyquant.learn.methods.correlated import Correlated, FullMoments, aim
from pyquant.learn.ordering import in_best_order
from pyquant.learn.recipes import OURS
from pyquant.learn.workers import Workers

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

Codes = NDArray[np.uint16]

ROUNDS = 3  # of fitting codebooks and choosing codes
MAX_CODEBOOKS = 8


class Gram(Correlated):
    """Error feedback, coordinate descent and least squares on the full Gram."""

    max_codebooks = MAX_CODEBOOKS
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
    if measured is None:
        return _first(layer.weight, config, None, seed=seed, workers=workers)
    target, gram = aim(layer, measured, workers)
    problem = _problem(layer, config, target, gram)
    d = config.dim
    block_gram = torch.stack(
        [problem.gram[:, j : j + d, j : j + d].sum(0) for j in range(0, problem.gram.shape[1], d)]
    ).sum(0)
    codes, codebooks = _first(target, config, block_gram.double().numpy(), seed=seed, workers=workers)
    if config.centroids >= codes[0].size:
        return codes, codebooks  # a centroid for each block: nothing is left to gain
    solution = feedback(problem, torch.from_numpy(codebooks), workers)
    for _ in range(ROUNDS):
        solution = sweep(problem, refit(problem, solution, workers), workers)
    codebooks = rounded_codebook(refit(problem, solution, workers).codebooks.numpy(), config)
    rounded = Solution(codes=solution.codes, codebooks=torch.from_numpy(codebooks))
    chosen = sweep(problem, rounded, workers).codes
    return chosen.reshape(len(codebooks), len(layer.weight), -1).numpy().astype(np.uint16), codebooks


def _first(
    weight: Floats, config: ProductConfig, gram: NDArray[np.float64] | None, *, seed: int, workers: Workers
) -> tuple[Codes, Floats]:
    """Return codes and codebooks by k-means; of additive codebooks, each codes what the ones before it leave."""
    single = replace(config, codebooks=1)
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
