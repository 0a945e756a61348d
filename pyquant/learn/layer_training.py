"""Training of a layer's codebooks by distillation right after the layer is coded, before the next one is."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyquant.checkpoint import NOWHERE, Records
from pyquant.choose import Choice
from pyquant.codecs import ProductConfig
from pyquant.graph import Network, Weight
from pyquant.learn.calibration import Calibration
from pyquant.learn.effort import Effort
from pyquant.learn.lesson import Lesson
from pyquant.learn.schedule import TrainingRecipe
from pyquant.learn.training import Training, training_mode

RECORD = "layers"
WARM_UP_STEPS = 3  # timed, after one that is not
MANY_STEPS = 10**6
JUDGEMENTS = 1  # a layer: the network is judged again after the next one


def layer_training(
    dense: Network,
    calibration: Calibration | None,
    choices: Mapping[str, Choice],
    recipe: TrainingRecipe,
    *,
    effort: Effort,
    seed: int,
    threads: int,
    records: Records = NOWHERE,
) -> LayerTraining | None:
    """Return the training of the layers that `choices` has coded; None where the recipe has none, or nothing is asked.

    Args:
        dense: the network whose outputs are to be given.
        effort: that of the whole recipe.
    """
    if recipe.each_layer is None or not effort or calibration is None:
        return None
    return LayerTraining(
        Lesson(dense, calibration, device=torch.device(effort.device), seed=seed, mixed=recipe.mixed),
        recipe,
        effort=effort,
        layers=sum(isinstance(choice.codec, ProductConfig) for choice in choices.values()),
        threads=threads,
        records=records,
    )


class LayerTraining:
    """Training of one layer after another; how many steps each has, and the learning rate, are settled at the first."""

    def __init__(
        self,
        lesson: Lesson,
        recipe: TrainingRecipe,
        *,
        effort: Effort,
        layers: int,
        threads: int,
        records: Records,
    ) -> None:
        """Prepare to train each of so many layers; the effort is that of the whole recipe."""
        assert recipe.each_layer is not None
        self.lesson = lesson
        self.seconds = 0.0  # spent so far
        self._stage = recipe.each_layer
        self._threads = threads
        self._records = records
        self._steps: int | None = None  # of each layer
        if effort.steps is not None:
            self._steps = int(recipe.part_of_a_layer(effort.steps, layers))
        self._limit = recipe.part_of_a_layer(60 * (effort.minutes or 0.0), layers)  # seconds for each layer
        self._rate: float | None = None
        self._layers: list[str] = []
        if (record := records.load(RECORD)) is not None:
            self.seconds = record.values["seconds"]
            self._steps, self._rate = record.values["steps"], record.values["rate"]
            self._layers = list(record.values["layers"])

    @property
    def steps(self) -> int:
        """How many steps were done on all layers so far, trials not counted."""
        return (self._steps or 0) * len(self._layers)

    @property
    def rates(self) -> tuple[float, ...]:
        """The learning rate of the layers; nothing before the first one was trained."""
        return () if self._rate is None else (self._rate,)

    def train(self, network: Network, weight: Weight) -> NDArray[np.float32] | None:
        """Return better codebooks `[M, K, d]` of a weight; None where none were found.

        Args:
            network: coded up to this weight, dense from there.
        """
        with training_mode(self._threads):
            return self._train(network, weight)

    def _train(self, network: Network, weight: Weight) -> NDArray[np.float32] | None:
        began = time.monotonic()
        if weight.name not in self._layers:
            self._layers.append(weight.name)
        if self._steps is None:
            self._steps = self._affordable_steps(network, weight)
        if self._steps == 0:
            return None
        training = self._training(network, weight, self._steps)
        while not training.finished:
            training.step()
        if training.rates:
            self._rate = training.rates[0]
        self.seconds += time.monotonic() - began
        values: dict[str, Any] = {
            "steps": self._steps,
            "rate": self._rate,
            "layers": self._layers,
            "seconds": self.seconds,
        }
        self._records.save(RECORD, values, {})
        return training.result().codebook(weight) if training.kept < training.losses[0] else None

    def _training(self, network: Network, weight: Weight, steps: int) -> Training:
        # Its batches follow those of the layers before it, whoever trained them.
        first = self._layers.index(weight.name) * steps
        stage = self._stage if self._rate is None else replace(self._stage, rates=(self._rate,), usual=self._rate)
        return Training(
            self.lesson, self.lesson.part(network), [stage], steps, first=first, only=weight, judgements=JUDGEMENTS
        )

    def _affordable_steps(self, network: Network, weight: Weight) -> int:
        training = self._training(network, weight, MANY_STEPS)
        training.step()  # the first one allocates and plans
        began = time.monotonic()
        for _ in range(WARM_UP_STEPS):
            training.step()
        return max(1, int(self._limit * WARM_UP_STEPS / (time.monotonic() - began)))
