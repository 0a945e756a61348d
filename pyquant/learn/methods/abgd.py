"""ABGD's clustering: k-means on blocks, weighted by the inputs that meet them ("And the Bit Goes Down", ICLR 2020).

One Gram of d inputs serves all blocks of a layer, so correlations between blocks do not count. `pyquant.learn.cluster`
says why this is ABGD's expectation maximisation.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from pyquant.codecs import CodedConfig, ProductConfig
from pyquant.codecs.product import tensors_of
from pyquant.graph import Node
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.methods.base import Layer, Method, Tensors
from pyquant.learn.moments import InputMoments, block_presence, input_moments
from pyquant.learn.recipes import ABGD
from pyquant.learn.workers import Workers


class Abgd(Method):
    """k-means weighted by the Gram of the inputs that meet a block."""

    max_codebooks = 1
    training = ABGD

    def measure(self, node: Node, config: CodedConfig, dense: Tensor | None, coded: Tensor) -> InputMoments:
        """Return the moments of the inputs in the network compressed so far."""
        return input_moments(node, config.block, coded)

    def add(self, total: InputMoments | None, batch: InputMoments) -> InputMoments:
        """Return the moments of both."""
        return batch if total is None else total.plus(batch)

    def code(self, layer: Layer, measured: InputMoments | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the codes and the codebook that k-means ends with."""
        config = layer.config
        assert isinstance(config, ProductConfig)
        gram = None
        if measured is not None:
            # A weight at the kernel's edge is missing from tail blocks: each entry is a mean over the blocks that have
            # it, scaled from both sides so that the Gram stays positive semidefinite.
            factor = 1 / np.sqrt(block_presence(layer.weight.shape, config.block))
            gram = measured.gram(centred=layer.centred) * np.outer(factor, factor)
            if not np.isfinite(gram).all():
                raise ValueError("its inputs on the calibration inputs are too large or not finite")
        return tensors_of(*learn_codebook(layer.weight, config, gram, seed=seed, workers=workers), config)
