"""Our own method: codes and codebooks that minimise a layer's output error, all correlations of its inputs included.

Channels change places first, so that blocks vary less (`pyquant.learn.ordering`). The weight aimed at is not W but the
one whose outputs on the compressed network's inputs X̃ come nearest to W X: it makes up for the errors of the layers
before, as far as a linear layer can. k-means on its blocks gives first codebooks. Error feedback then chooses codes,
and rounds of least squares (codebooks) and coordinate descent (codes) lower the error further; `pyquant.learn.descent`
has these steps.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import Choice
from pyquant.codecs import ProductConfig
from pyquant.codecs.product import as_conv_shape, blocks_from_weight, rounded_codebook, weight_from_blocks
from pyquant.console import Progress
from pyquant.graph import Network, Node
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.descent import Problem, Solution, feedback, refit, sweep
from pyquant.learn.methods.base import Codes, Floats, Layer, Method
from pyquant.learn.moments import MOST_OF_A_PICTURE, independent_values, unfold
from pyquant.learn.ordering import in_best_order
from pyquant.learn.recipes import OURS
from pyquant.learn.workers import Workers
from pyquant.shapes import SHAPE_RULES

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

ROUNDS = 3  # of fitting codebooks and choosing codes
MAX_CODEBOOKS = 8
UNFOLDED = 1 << 24  # numbers at a time: unfolding a 3x3 layer's inputs takes nine times their memory
PIXELS = MOST_OF_A_PICTURE**2  # of a picture, at most: more would not be worth more


@dataclass(slots=True, kw_only=True)
class FullMoments:
    """Sums over `count` images and pixels, of the unfolded inputs x (dense network) and x̃ (compressed so far).

    G groups of D inputs each, as the weights of an output are ordered in memory.
    """

    count: int
    independent: float  # of the count
    squares: Tensor  # [G, D, D], of x̃ x̃ᵀ
    sums: Tensor  # [G, D], of x̃
    cross: Tensor | None  # [G, D, D], of x x̃ᵀ; None: x is x̃
    dense_sums: Tensor | None  # [G, D], of x

    def accumulate(self, other: FullMoments) -> None:
        """Add the sums of `other` to these, which are float64 from then on."""
        self.count += other.count
        self.independent += other.independent
        for name in ("squares", "sums", "cross", "dense_sums"):
            mine, theirs = getattr(self, name), getattr(other, name)
            if mine is not None:
                setattr(self, name, mine.double().add_(theirs))

    def grams(self, *, centred: bool) -> tuple[Tensor, Tensor]:
        """Return the means of x̃ x̃ᵀ and x x̃ᵀ, float64 `[G, D, D]`; `centred` takes the inputs' own means away first."""

        def mean(products: Tensor, left: Tensor, right: Tensor) -> Tensor:
            result = products.double() / self.count
            if centred:
                result -= left.double()[:, :, None] * right.double()[:, None] / self.count**2
            return result

        squares = mean(self.squares, self.sums, self.sums)
        if self.cross is None or self.dense_sums is None:
            return squares, squares
        return squares, mean(self.cross, self.dense_sums, self.sums)

    @property
    def damping(self) -> float:
        """What is to be added to the diagonals, in units of their mean: D / n, n being the independent values.

        The squared errors of a mean of n products of D inputs sum up to D / n times the squares on its diagonal
        (Ledoit and Wolf, "A well-conditioned estimator for large-dimensional covariance matrices", 2004). Undamped,
        codes and corrections fit these errors, too, and do worse on other inputs.
        """
        return self.squares.shape[1] / self.independent


class Gram(Method):
    """Error feedback, coordinate descent and least squares on the full Gram."""

    max_codebooks = MAX_CODEBOOKS
    training = OURS

    def weighed_together(self, node: Node, config: ProductConfig) -> int:
        """Return the number of all inputs that meet an output's weights."""
        assert node.weight is not None
        return prod(node.weight.shape[1:])

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

    def measure(self, node: Node, config: ProductConfig, dense: Tensor | None, coded: Tensor) -> FullMoments:
        """Return the second moments of both networks' inputs."""
        pixels = prod(SHAPE_RULES[node.op](node, [tuple(coded.shape)])[2:])
        assert node.weight is not None
        pictures = max(1, UNFOLDED // (prod(node.weight.shape[1:]) * _groups(node) * pixels))
        total: FullMoments | None = None
        for start in range(0, len(coded), pictures):
            rows = slice(start, start + pictures)
            x = _columns(node, coded[rows])
            y = None if dense is None else _columns(node, dense[rows])
            part = FullMoments(
                count=x.shape[2],
                independent=len(coded[rows]) * independent_values(pixels),
                squares=x @ x.transpose(1, 2),
                sums=x.sum(2),
                cross=None if y is None else y @ x.transpose(1, 2),
                dense_sums=None if y is None else y.sum(2),
            )
            if total is None:
                total = part
            else:
                total.accumulate(part)
        assert total is not None
        return total

    def add(self, total: FullMoments | None, batch: FullMoments) -> FullMoments:
        """Return the moments of both."""
        if total is None:
            return batch
        total.accumulate(batch)
        return total

    def code(self, layer: Layer, measured: FullMoments | None, *, seed: int, workers: Workers) -> tuple[Codes, Floats]:
        """Return the codes and codebooks that the descent ends with."""
        if measured is None:
            return _first(layer.weight, layer.config, None, seed=seed, workers=workers)
        squares, cross = measured.grams(centred=layer.centred)
        if not bool(torch.isfinite(squares).all() and torch.isfinite(cross).all()):
            raise ValueError("its inputs on the calibration inputs are too large or not finite")
        # By a worker, whose one thread gives the same bits everywhere.
        (target,) = workers.map(partial(_corrected, layer.weight, squares, damping=measured.damping), [cross])
        problem = _problem(layer, target, squares, measured.damping)
        d = layer.config.dim
        block_gram = torch.stack(
            [problem.gram[:, j : j + d, j : j + d].sum(0) for j in range(0, problem.gram.shape[1], d)]
        ).sum(0)
        codes, codebooks = _first(target, layer.config, block_gram.double().numpy(), seed=seed, workers=workers)
        if layer.config.centroids >= codes[0].size:
            return codes, codebooks  # a centroid for each block: nothing is left to gain
        solution = feedback(problem, torch.from_numpy(codebooks), workers)
        for _ in range(ROUNDS):
            solution = sweep(problem, refit(problem, solution, workers), workers)
        codebooks = rounded_codebook(refit(problem, solution, workers).codebooks.numpy(), layer.config)
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


def _groups(node: Node) -> int:
    return 1 if node.op == "linear" else node.attributes["groups"]


def _columns(node: Node, x: Tensor) -> Tensor:
    """Return the inputs that meet the weights of an output, `[G, D, N * P]`, at some pixels of each picture."""
    unfolded = x[..., None] if node.op == "linear" else unfold(node, x)
    n, depth, pixels = unfolded.shape
    if pixels > PIXELS:
        # Evenly spaced, and others in each picture.
        chosen = (torch.arange(PIXELS) * pixels // PIXELS + torch.arange(n)[:, None]) % pixels
        unfolded = unfolded.gather(2, chosen[:, None].expand(-1, depth, -1))
    groups = _groups(node)
    return unfolded.permute(1, 0, 2).reshape(groups, depth // groups, -1)


def _corrected(weight: Floats, squares: Tensor, cross: Tensor, *, damping: float) -> Floats:
    """Return the weight that gives W X from X̃ best, `W E[x x̃ᵀ] E[x̃ x̃ᵀ]⁻¹`, damped towards W."""
    groups, depth, _ = squares.shape
    rows = torch.from_numpy(weight).double().reshape(groups, -1, depth)
    # Inputs that are all 0 leave the weight as it is.
    added = damping * squares.diagonal(dim1=1, dim2=2).mean(dim=1) + torch.finfo(torch.float64).tiny
    ridge = added[:, None, None] * torch.eye(depth, dtype=torch.float64)
    wanted = torch.bmm(rows, cross + ridge)
    factor: Tensor = torch.linalg.cholesky(squares + ridge)
    result = torch.cholesky_solve(wanted.transpose(1, 2), factor).transpose(1, 2)
    return np.asarray(result.float().reshape(weight.shape).numpy())


def _problem(layer: Layer, target: Floats, squares: Tensor, damping: float) -> Problem:
    """Return the descent's problem: targets and Grams in the order of blocks, padding in place."""
    groups, depth, _ = squares.shape
    _, c, kh, kw = as_conv_shape(layer.weight.shape)
    numbers = np.arange(1, depth + 1, dtype=np.float32).reshape(1, c, kh, kw)
    order = torch.from_numpy(blocks_from_weight(numbers, layer.config.block).reshape(-1).astype(np.int64))  # 0: padding
    mean = squares.diagonal(dim1=1, dim2=2).mean()
    # A scale of its own, so that float32 serves for inputs of any size.
    damped = squares / (mean if mean > 0 else 1) + damping * torch.eye(depth, dtype=torch.float64)
    padded = torch.zeros(groups, depth + 1, depth + 1)
    padded[:, 1:, 1:] = damped
    blocks = torch.from_numpy(blocks_from_weight(target, layer.config.block))
    return Problem(
        target=blocks.reshape(groups, -1, len(order)),
        gram=padded[:, order][:, :, order].contiguous(),
        importance=torch.from_numpy(layer.importance).reshape(groups, -1),
    )
