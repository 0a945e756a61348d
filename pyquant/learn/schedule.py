"""How a method trains: stages, each with an optimizer, a schedule, learning rates to try and a share of the steps."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import cos, pi
from typing import Any

import torch
from torch import nn

from pyquant.errors import ConfigError

LEAST_TRIAL = 8  # steps; below it nothing can be told, and the usual rate is taken
TELLING_TRIAL = 40  # steps
LARGEST_TRIAL_SHARE = 0.15  # of a stage's steps, unless the stage says more


@dataclass(frozen=True, slots=True, kw_only=True)
class Adam:
    """Adam (Kingma and Ba, ICLR 2015)."""

    betas: tuple[float, float] = (0.9, 0.999)

    def build(self, groups: Iterable[Mapping[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of groups of parameters; each learning rate is set before each step."""
        return torch.optim.Adam([dict(group) for group in groups], lr=0.0, betas=self.betas)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sgd:
    """Stochastic gradient descent with momentum and weight decay."""

    momentum: float = 0.9
    weight_decay: float = 1e-4

    def build(self, groups: Iterable[Mapping[str, Any]]) -> torch.optim.Optimizer:
        """Return the optimizer of groups of parameters; each learning rate is set before each step."""
        return torch.optim.SGD(
            [dict(group) for group in groups], lr=0.0, momentum=self.momentum, weight_decay=self.weight_decay
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cosine:
    """The learning rate rises in the first share `rise` of the steps and falls along a cosine to `end` times itself."""

    rise: float = 0.0
    end: float = 0.0

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at a step, the first of which is 0."""
        risen = min(1.0, (step + 1) / (self.rise * steps)) if self.rise else 1.0
        return risen * (self.end + (1 - self.end) * (1 + cos(pi * step / steps)) / 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Staircase:
    """The learning rate is constant but for `drops`, spread evenly over the steps, each of which divides it by ten."""

    drops: int = 0

    def factor(self, step: int, steps: int) -> float:
        """Return what the learning rate is multiplied by at a step, the first of which is 0."""
        return float(0.1 ** (step * (self.drops + 1) // steps))


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """Training of one kind.

    `rates` are the learning rates tried, lowest first, absolute or, if `relative`, in units of each parameter's root
    mean square; `usual` is the one taken where steps are too few to try any. The gradient of a centroid is the sum over
    the blocks that use it, or, if `mean_gradient`, their mean.
    """

    optimizer: Adam | Sgd
    schedule: Cosine | Staircase
    rates: tuple[float, ...]
    usual: float
    relative: bool = False
    mean_gradient: bool = False
    share: float = 1.0  # of the steps, in proportion to the shares of the other stages
    trial_share: float = 0.05  # of the stage's steps, for each learning rate tried, where steps are many

    def __post_init__(self) -> None:
        if not self.rates or list(self.rates) != sorted(self.rates):
            raise ConfigError(f"a training stage needs learning rates, lowest first; got {self.rates}")
        if self.usual not in self.rates:
            raise ConfigError(f"the usual learning rate {self.usual:g} is not one of those tried: {self.rates}")
        if not self.share > 0:
            raise ConfigError(f"a training stage's share of the steps must be above 0, got {self.share}")

    def trial_steps(self, steps: int) -> int:
        """Return for how many steps each learning rate is tried in a stage of so many; 0: there is none to try.

        Short stages give them a larger share: the harm of a high rate shows in a few steps, its progress does not.
        """
        trial = max(int(steps * self.trial_share), min(TELLING_TRIAL, int(steps * LARGEST_TRIAL_SHARE)))
        return trial if len(self.rates) > 1 and trial >= LEAST_TRIAL else 0

    def steps_with_trials(self, steps: int) -> int:
        """Return how many steps a stage of so many takes at most, those of its trials counted."""
        return steps + len(self.rates) * self.trial_steps(steps)

    def build(self, parameters: Mapping[str, nn.Parameter], units: Mapping[str, float]) -> torch.optim.Optimizer:
        """Return the optimizer of parameters, given the root mean square of each."""
        unit = units if self.relative else dict.fromkeys(parameters, 1.0)
        return self.optimizer.build({"params": [value], "unit": unit[key]} for key, value in parameters.items())

    def set_rate(self, optimizer: torch.optim.Optimizer, rate: float, step: int, steps: int) -> None:
        """Give an optimizer built by this stage the learning rate of a step."""
        now = rate * self.schedule.factor(step, steps)
        for group in optimizer.param_groups:
            group["lr"] = now * group["unit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRecipe:
    """The stages of a whole coded network's training, and the one that each layer has before the next is coded.

    In the latter a layer's codebooks alone are trained; it counts once for each layer. If `mixed`, batches are of
    mixtures of pictures.
    """

    stages: tuple[Stage, ...]
    each_layer: Stage | None = None
    mixed: bool = False

    def part_of_a_layer(self, effort: float, layers: int) -> float:
        """Return how much of an effort (in steps, or seconds) is spent on each of so many layers."""
        if self.each_layer is None:
            return 0.0
        whole = sum(stage.share for stage in self.stages) + layers * self.each_layer.share
        return effort * self.each_layer.share / whole


def stage_ends(stages: Sequence[Stage], steps: int) -> list[int]:
    """Return after which step each stage ends, the steps shared out among them."""
    shares = list(accumulate(stage.share for stage in stages))
    return [round(steps * share / shares[-1]) for share in shares]


def affordable_steps(stages: Sequence[Stage], steps: int, *, tried: int = 0) -> int:
    """Return how many steps the stages can have, at least 1, if they and their trials may take `steps` together.

    The trials of the first `tried` stages are over and take none.
    """

    def needed(count: int) -> int:
        lengths = (end - start for start, end in pairwise([0, *stage_ends(stages, count)]))
        return sum(
            length if index < tried else stage.steps_with_trials(length)
            for index, (stage, length) in enumerate(zip(stages, lengths, strict=True))
        )

    low, high = 1, max(1, steps)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if needed(middle) <= steps else (low, middle - 1)
    return low
