"""PQF: channels in the order whose blocks are easiest to code, then annealed k-means ("Permute, Quantize", CVPR 2021).

Martinez, Shewakramani, Liu, Bârsan, Zeng, Urtasun, "Permute, Quantize, and Fine-tune: Efficient Compression of Neural
Networks". The weights alone count. `pyquant.learn.ordering` has the first step, `pyquant.learn.cluster` the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import Tensor

from pyquant.choose import Choice
from pyquant.codecs import CodedConfig, ProductConfig
from pyquant.codecs.product import tensors_of
from pyquant.console import Progress
from pyquant.graph import Network, Node
from pyquant.learn.cluster import learn_codebook
from pyquant.learn.methods.base import Layer, Method, Tensors
from pyquant.learn.ordering import in_best_order
from pyquant.learn.recipes import PQF
from pyquant.learn.workers import Workers

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm


class Pqf(Method):
    """Reordered channels and k-means with noise, on the weights alone."""

    weighs_inputs = False
    max_codebooks = 1
    training = PQF

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
        """Return the network with its channels in another order."""
        return in_best_order(network, norms, choices, seed=seed, workers=workers, progress=progress)

    def measure(self, node: Node, config: CodedConfig, dense: Tensor | None, coded: Tensor) -> tuple[()]:
        """Return nothing: inputs do not count."""
        return ()

    def add(self, total: tuple[()] | None, batch: tuple[()]) -> tuple[()]:
        """Return nothing."""
        return ()

    def code(self, layer: Layer, measured: tuple[()] | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the codes and the codebook that k-means ends with."""
        config = layer.config
        assert isinstance(config, ProductConfig)
        codes, codebook = learn_codebook(layer.weight, config, None, seed=seed, workers=workers, annealed=True)
        return tensors_of(codes, codebook, config)
