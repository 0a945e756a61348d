"""What methods share that weigh a layer's inputs with all their correlations: its moments, and the weight to aim at.

The weight aimed at is not W but the one whose outputs on the compressed network's inputs X̃ come nearest to W X: it
makes up for the errors of the layers before, as far as a linear layer can.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from math import prod

import numpy as np
import torch
from torch import Tensor

from pyquant.codecs import CodedConfig
from pyquant.graph import Node
from pyquant.learn.descent import Problem
from pyquant.learn.methods.base import Floats, Layer, Method
from pyquant.learn.moments import MOST_OF_A_PICTURE, independent_values, unfold
from pyquant.learn.workers import Workers
from pyquant.shapes import SHAPE_RULES

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


class Correlated(Method):
    """A method that measures the second moments of all inputs that meet an output's weights."""

    makes_up = True

    def weighed_together(self, node: Node, config: CodedConfig) -> int:
        """Return the number of all inputs that meet an output's weights."""
        assert node.weight is not None
        return prod(node.weight.shape[1:])

    def measure(self, node: Node, config: CodedConfig, dense: Tensor | None, coded: Tensor) -> FullMoments:
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


def unmeasured(layer: Layer) -> Tensor:
    """Return the Gram, float64 `[G, D, D]`, of inputs of which nothing is known."""
    groups = 1 if layer.node.op == "linear" else layer.node.attributes["groups"]
    return torch.eye(layer.weight[0].size, dtype=torch.float64).repeat(groups, 1, 1)


def aim(layer: Layer, measured: FullMoments, workers: Workers) -> tuple[Floats, Tensor]:
    """Return the weight to aim at, and the damped Gram of the inputs `[G, D, D]`, float64, its mean diagonal about 1.

    Raises:
        ValueError: what was measured is not finite.
    """
    squares, cross = measured.grams(centred=layer.centred)
    if not bool(torch.isfinite(squares).all() and torch.isfinite(cross).all()):
        raise ValueError("its inputs on the calibration inputs are too large or not finite")
    # By a worker, whose one thread gives the same bits everywhere.
    (target,) = workers.map(partial(_corrected, layer.weight, squares, damping=measured.damping), [cross])
    mean = squares.diagonal(dim1=1, dim2=2).mean()
    # A scale of its own, so that float32 serves for inputs of any size.
    eye = torch.eye(squares.shape[1], dtype=torch.float64)
    return target, squares / (mean if mean > 0 else 1) + measured.damping * eye


def problem_of(layer: Layer, measured: FullMoments | None, workers: Workers) -> Problem:
    """Return the problem whose blocks are single weights, in the order in which they are in memory."""
    target, gram = (layer.weight, unmeasured(layer)) if measured is None else aim(layer, measured, workers)
    groups = len(gram)
    return Problem(
        target=torch.from_numpy(target).reshape(groups, len(target) // groups, -1),
        gram=gram.float(),
        importance=torch.from_numpy(layer.importance).reshape(groups, -1),
    )


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
