"""What a method is: how it measures a layer's inputs, and how it codes a weight with what it has measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import DEFAULT_PRESET, Choice
from pyquant.codecs import CodedConfig, ProductConfig
from pyquant.console import Progress
from pyquant.graph import Network, Node
from pyquant.learn.schedule import TrainingRecipe
from pyquant.learn.workers import Workers

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

Floats = NDArray[np.float32]
Tensors = Mapping[str, NDArray[Any]]  # of a weight, by role


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """A layer whose weight is to be coded.

    `centred` says that a constant added to an output does not count: the layer's batch norm, or its own bias, is
    renewed afterwards and takes it away. `importance` `[O]` is how much the square of an output's error counts, before
    the layer's scale: measured where the method asks for it, or else the square of that scale.
    """

    node: Node
    weight: Floats  # [O, C, kh, kw] or [O, C]
    config: CodedConfig
    centred: bool
    importance: Floats


class Method(Protocol):
    """A way to choose codes. `measured` is whatever `measure` makes of the inputs and `add` adds up."""

    codec: type[CodedConfig] = ProductConfig  # the one whose codes it chooses
    preset: str = DEFAULT_PRESET  # what is coded, and how, where nothing else is said
    weighs_inputs: bool = True  # says whether codes depend on calibration inputs
    weighs_outputs: bool = False  # says whether it wants to know how much each output counts for those of the network
    reaches_rates: bool = False  # says whether it can aim at the length of entropy-coded codes
    makes_up: bool = False  # says whether codes make up for the errors of others, with all correlations of the inputs
    max_codebooks: int = 0  # the most additive codebooks of a layer that it can learn

    @property
    def training(self) -> TrainingRecipe:
        """How networks that the method has coded are fine-tuned."""

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
        """Return a network that computes the same and is easier to code, and its batch norms; by default as they are.

        Args:
            network: dense.
            norms: by module path, as `StateNames.norm` of the layers names them.
            choices: the codecs by the weight's name.
        """
        return network, norms

    def weighed_together(self, node: Node, config: CodedConfig) -> int:
        """Return how many inputs of a layer are weighed with all their correlations; by default, those of a block."""
        return prod(config.block) if self.weighs_inputs else 0

    def measure(self, node: Node, config: CodedConfig, dense: Tensor | None, coded: Tensor) -> Any:
        """Return what the method needs to know of one batch of a layer's inputs.

        Args:
            dense: the inputs in the dense network, `[N, C, H, W]` or `[N, C]`; None where they are `coded`.
            coded: the inputs in the network compressed so far.
        """

    def add(self, total: Any | None, batch: Any) -> Any:
        """Return what was measured on all batches so far and one more; `total` may be changed in place."""

    def code(self, layer: Layer, measured: Any | None, *, seed: int, workers: Workers) -> Tensors:
        """Return the tensors of the layer's weight in its codec, by role.

        Args:
            measured: what `add` returned last; None without calibration: all weights count the same.

        Raises:
            ValueError: what was measured is not finite.
        """
