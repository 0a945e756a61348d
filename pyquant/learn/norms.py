"""Batch norms of the user's module, and what becomes of their statistics when layers are coded."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from pyquant.learn.moments import Moments

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Norm:
    """A batch norm of the user's module; all arrays `[O]`. `weight` is 1 and the biases are 0 where there is none."""

    weight: Floats
    bias: Floats
    input_bias: Floats  # of the layer that the norm follows; part of what it normalises
    mean: Floats
    variance: Floats
    eps: float

    def renewed(self, before: Moments, after: Moments) -> Norm:
        """Return the norm with the statistics with which its outputs keep their mean and variance.

        Only what coding changed counts, so statistics need not be those of the calibration inputs: few inputs do no
        harm, nor do statistics that were folded into the weights, with a mean of 0 and a variance of 1 in their place.

        Args:
            before: the moments of its inputs in the dense network, without `input_bias`.
            after: those in the compressed network.
        """
        # A channel that never varies on these inputs says nothing about how it varies.
        varies = (before.variance > 0) & (after.variance > 0)
        variance = self.variance * np.where(varies, after.variance / np.where(varies, before.variance, 1), 1)
        factor = np.sqrt((variance + self.eps) / (self.variance + self.eps))
        mean = after.mean - (before.mean - (self.mean.astype(np.float64) - self.input_bias)) * factor + self.input_bias
        return replace(self, mean=mean.astype(np.float32), variance=variance.astype(np.float32))

    def folded(self) -> tuple[Floats, Floats]:
        """Return the scale and bias `[O]` that do what it does, without `input_bias` in its inputs."""
        scale = self.weight.astype(np.float64) / np.sqrt(self.variance.astype(np.float64) + self.eps)
        bias = self.bias + (self.input_bias.astype(np.float64) - self.mean) * scale
        return scale.astype(np.float32), bias.astype(np.float32)
