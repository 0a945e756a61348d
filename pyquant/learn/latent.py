"""Weights on a grid while they are trained: numbers of which each step rounds to levels, as if that did nothing.

The gradient of a level is given to the number that was rounded to it (the straight-through estimator; Bengio, Léonard
and Courville, "Estimating or propagating gradients through stochastic neurons", 2013), so that a number may wander from
one level to the next. At a rate, levels have prices, the lengths of their codes times what a bit is worth, and the
worth of a bit is such that codes are no longer than at first: distillation under a bound on the rate.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyquant.codecs import ScalarConfig
from pyquant.codecs.scalar import grid_levels
from pyquant.learn.grids import cheapest, code_lengths, mean_length

SOME = 1 << 16  # weights, of which the worth of a bit is found
MOST_WORTH = 64.0  # of a bit, in squares of a step: nearly all become zeros
HALVINGS = 16  # of the interval in which it is looked for


class Latent(nn.Module):
    """The grids of one weight: steps and zeros of its outputs, which stay, and the longest that codes may become."""

    step: Tensor  # [O, 1]
    zero: Tensor  # [O, 1], a level, maybe between two
    kept: Tensor | None  # [O, D], 1 or 0

    def __init__(
        self,
        config: ScalarConfig,
        codes: Tensor,
        step: NDArray[np.float32],
        zero: NDArray[np.uint8],
        kept: NDArray[np.bool_] | None = None,
    ) -> None:
        """Prepare to train a weight.

        Args:
            config: its codec.
            codes: those at first, `[O, D]`.
            step: `[O]`.
            zero: `[O]`, in half steps.
            kept: which weights `[O, D]` are on the grids, while the others stay zero; None: all.
        """
        super().__init__()
        self.levels = grid_levels(config)
        self.most_bits = mean_length(codes, self.levels) if config.rate else None
        self.register_buffer("step", torch.from_numpy(step.copy())[:, None], persistent=False)
        self.register_buffer("zero", torch.from_numpy(zero.astype(np.float32))[:, None] / 2, persistent=False)
        self.register_buffer("kept", None if kept is None else torch.from_numpy(kept).float(), persistent=False)

    def forward(self, numbers: Tensor) -> Tensor:
        """Return numbers `[O, D]` rounded to levels; gradients pass, save to those beyond the last level."""
        with torch.no_grad():
            at = self._at(numbers)
            inside = (at > -0.5) & (at < self.levels - 0.5)
            rounded = self.step * (self._codes(at, self.most_bits) - self.zero)
        result = rounded + (numbers - numbers.detach()) * inside
        return result if self.kept is None else result * self.kept

    @torch.no_grad()
    def codes(self, numbers: Tensor, spared: float = 0.0) -> Tensor:
        """Return the codes `[O, D]` of numbers; at a rate, this share of the bits that are allowed stays unused."""
        return self._codes(self._at(numbers), None if self.most_bits is None else self.most_bits * (1 - spared))

    def _at(self, numbers: Tensor) -> Tensor:
        """Return where numbers are among the levels."""
        return numbers / torch.where(self.step > 0, self.step, 1.0) + self.zero

    def _codes(self, at: Tensor, most_bits: float | None) -> Tensor:
        nearest = at.round().clamp_(0, self.levels - 1)
        if most_bits is None or mean_length(nearest, self.levels) <= most_bits:
            return nearest
        prices = code_lengths(nearest, self.levels)
        stride = -(-at.shape[1] // max(1, SOME // at.shape[0]))
        some = at[:, ::stride]
        low, high = 0.0, MOST_WORTH
        for _ in range(HALVINGS):
            worth = (low + high) / 2
            codes = cheapest(some, torch.ones(()), self.zero, self.levels, worth * prices)
            low, high = (worth, high) if mean_length(codes, self.levels) > most_bits else (low, worth)
        return cheapest(at, torch.ones(()), self.zero, self.levels, high * prices)
