"""ExactOBS: weights that are dropped, and grids for those that are kept ("Optimal Brain Compression", NeurIPS 2022).

The weights that are kept make up for those that are dropped, as the full Gram says (`pyquant.learn.pruning`), and then
for their own rounding (`pyquant.learn.grids`).
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from pyquant.codecs import SparseConfig
from pyquant.codecs.sparse import channels_last, from_channels_last, tensors_of
from pyquant.learn.grids import Ordered, solved
from pyquant.learn.methods.base import Layer, Tensors
from pyquant.learn.methods.correlated import Correlated, FullMoments, problem_of
from pyquant.learn.pruning import pruned
from pyquant.learn.recipes import OURS
from pyquant.learn.workers import Workers


class ExactObs(Correlated):
    """Greedy removal with the inverse of the full Gram, exchanges and least squares, then uniform grids."""

    codec = SparseConfig
    preset = "half"
    training = OURS

    def code(self, layer: Layer, measured: FullMoments | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the mask, codes, steps and zeros that the descent ends with."""
        config, shape = layer.config, layer.weight.shape
        assert isinstance(config, SparseConfig)
        problem = problem_of(layer, measured, workers)
        # Neighbours are the channels of one kernel position.
        own = np.arange(problem.target.shape[2]).reshape(1, *shape[1:])
        order = torch.from_numpy(channels_last(own)[0])
        problem = replace(problem, target=problem.target[:, :, order], gram=problem.gram[:, order][:, :, order])
        ordered = Ordered.of(problem, workers, unit=config.unit)
        kept, weight = pruned(ordered, config, config.kept_weights(shape), workers)
        # With the same inputs dropped, to come near these weights is to come near those aimed at.
        ordered = replace(ordered, problem=replace(ordered.problem, target=weight))
        grids, codes = solved(ordered, config.grids, workers, kept)

        def rows(values: Tensor) -> np.ndarray:
            return from_channels_last(ordered.restored(values).reshape(shape[0], -1).numpy(), shape).reshape(
                shape[0], -1
            )

        return tensors_of(
            rows(kept),
            rows(codes).astype(np.uint8),
            grids.step.reshape(-1).numpy(),
            grids.zero.reshape(-1).numpy(),
            config,
            shape,
        )
