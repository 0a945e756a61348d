"""Fine-tuning without labels: centroids, scales and biases are trained so that outputs are those of the dense network.

Adam with a cosine schedule on all parameters at once, as in "Permute, Quantize, and Fine-tune" (Martinez et al., CVPR
2021), with the dense network's outputs in place of labels. Part of the calibration pictures is held back: the learning
rate is chosen by short runs judged on them, and so is the state that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pyquant import console
from pyquant.checkpoint import NOWHERE, Records
from pyquant.console import Progress
from pyquant.errors import ConfigError, InputError
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.layerwise import Learnt, Norm
from pyquant.learn.lesson import HELD_BACK_SHARE, LEAST_PICTURES, Lesson
from pyquant.learn.schedule import Adam, Cosine, Stage
from pyquant.learn.trainable import Trainable
from pyquant.learn.training import JUDGEMENTS, TRIAL_SHARE, Training

WARM_UP_STEPS = 3  # timed, after one that is not
MAX_MINUTES = 60 * 24 * 30
MAX_STEPS = 10**8
RECORD = "training"

# One stage for all parameters. Steps are few, so squared gradients are forgotten sooner than usual; at first, on few
# gradients, Adam is at its worst, so the learning rate rises.
STAGES = (
    Stage(
        optimizer=Adam(betas=(0.9, 0.99)),
        schedule=Cosine(rise=0.1),
        rates=(0.001, 0.003, 0.01, 0.02),
        relative=True,
    ),
)

DEVICES = ("cpu", "cuda")


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much fine-tuning is asked for: a number of steps, or minutes that a timed warm-up turns into one."""

    steps: int | None = None
    minutes: float | None = None
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.steps is not None and self.minutes is not None:
            raise ConfigError("fine-tuning takes a number of steps or minutes, not both")
        if self.steps is not None and (type(self.steps) is not int or not 0 <= self.steps <= MAX_STEPS):
            raise ConfigError(f"fine-tuning steps must be a whole number from 0 to {MAX_STEPS:,}, got {self.steps!r}")
        if self.minutes is not None and (
            type(self.minutes) not in (int, float) or not 0 <= self.minutes <= MAX_MINUTES
        ):
            raise ConfigError(f"fine-tuning minutes must be a number from 0 to {MAX_MINUTES:,}, got {self.minutes!r}")
        if self.device not in DEVICES:
            raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {self.device!r}")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ConfigError("device 'cuda': PyTorch finds no CUDA device here; use cpu")

    def __bool__(self) -> bool:
        return bool(self.steps or self.minutes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finetuned:
    """A network that was fine-tuned, and how: what another run needs to come to the same."""

    network: Network
    steps: int
    learning_rates: tuple[float, ...]  # one a stage
    precision: str
    losses: tuple[float, ...]  # on the pictures held back: before the first step, then at regular intervals

    @property
    def kept(self) -> float:
        """The loss of the state that is kept."""
        return min(self.losses)


def finetune(
    dense: Network,
    compressed: Network,
    calibration: Calibration,
    *,
    effort: Effort,
    seed: int,
    threads: int,
    progress: Progress,
    stages: Sequence[Stage] = STAGES,
    records: Records = NOWHERE,
) -> Finetuned:
    """Return `compressed` with centroids, scales, biases and dense weights trained to give the outputs of `dense`.

    On the held-back pictures the result is never worse than `compressed` itself. Equal steps, seed and threads give the
    same result on one machine's CPU, also where training stopped and goes on from `records`.

    Raises:
        InputError: there are too few calibration pictures to hold any back, or one is corrupt.
    """
    check_enough(calibration)
    with _settings(threads):
        lesson = Lesson(dense, calibration, device=torch.device(effort.device), seed=seed)
        return _Tuner(lesson, compressed, stages, progress).run(effort, records)


def finetuned(
    dense: Network,
    learnt: Learnt,
    calibration: Calibration,
    norms: Mapping[str, Norm],
    *,
    effort: Effort,
    seed: int,
    threads: int,
    progress: Progress,
    records: Records = NOWHERE,
) -> tuple[Learnt, dict[str, Any]]:
    """Return what was learnt, fine-tuned, and how, as plain JSON values; `norms` are all those of the module."""
    result = finetune(
        dense,
        learnt.network,
        calibration,
        effort=effort,
        seed=seed,
        threads=threads,
        progress=progress,
        records=records,
    )
    rates = ", ".join(f"{rate:g}" for rate in result.learning_rates)
    console.note(
        f"fine-tuning: {result.steps:,} steps, learning rate {rates}, {result.precision}; "
        f"loss on pictures held back {result.losses[0]:.4g} before, {result.kept:.4g} after"
    )
    how = {
        "steps": result.steps,
        "learning_rates": list(result.learning_rates),
        "precision": result.precision,
        "pictures": calibration.count,
    }
    after = norms_after(result.network, {**norms, **learnt.norms})
    return replace(learnt, network=result.network, norms=after), how


def check_enough(calibration: Calibration | None) -> None:
    """Raise InputError unless there are calibration pictures to train on, and some to hold back."""
    if calibration is None:
        raise InputError("fine-tuning needs calibration inputs; give some, or leave it out")
    if calibration.count < LEAST_PICTURES:
        raise InputError(
            f"fine-tuning holds back one calibration input in {HELD_BACK_SHARE}, so it needs at least "
            f"{LEAST_PICTURES}; got {calibration.count}"
        )


def norms_after(network: Network, norms: Mapping[str, Norm]) -> dict[str, Norm]:
    """Return the module's batch norms with the weights and biases that give the scales and biases of `network`.

    Means and variances stay, save that a norm without a bias of its own gets another mean.
    """
    result = {}
    for node in network.graph.nodes:
        scale, bias = network.own(node, "scale"), network.own(node, "bias")
        if not node.state.norm or scale is None or bias is None:
            continue
        norm = norms[node.state.norm]
        scale64, bias64 = scale.astype(np.float64), bias.astype(np.float64)
        if node.state.norm_affine:
            weight = scale64 * np.sqrt(norm.variance.astype(np.float64) + norm.eps)
            shift = bias64 - (norm.input_bias.astype(np.float64) - norm.mean) * scale64
            norm = replace(norm, weight=weight.astype(np.float32), bias=shift.astype(np.float32))
        else:
            norm = replace(norm, mean=(norm.input_bias - bias64 / scale64).astype(np.float32))
        result[node.state.norm] = norm
    return result


class _Tuner:
    """Fine-tuning of one network: minutes become steps, and steps are done and saved."""

    def __init__(self, lesson: Lesson, start: Network, stages: Sequence[Stage], progress: Progress) -> None:
        self._began = time.monotonic()
        self._lesson = lesson
        self._start = start
        self._stages = stages
        self._progress = progress

    def run(self, effort: Effort, records: Records) -> Finetuned:
        """Train, from where the records say, and return the result."""
        if (record := records.load(RECORD)) is not None:
            self._lesson.bfloat16 = record.values["bfloat16"]
            training = self._training(record.values["steps"])
            training.restore(record.values, record.arrays)
        else:
            training = self._training(self._affordable_steps(effort) if effort.steps is None else effort.steps)
            self._save(training, records)
        while not training.finished:
            self._progress(*training.doing)
            training.step()
            if records.is_due() or training.finished:
                self._save(training, records)
        self._progress(*training.doing)
        return Finetuned(
            network=training.result(),
            steps=training.steps,
            learning_rates=tuple(training.rates),
            precision="bfloat16" if self._lesson.bfloat16 else "float32",
            losses=tuple(training.losses),
        )

    def _training(self, steps: int) -> Training:
        return Training(self._lesson, self._start, self._stages, steps)

    def _save(self, training: Training, records: Records) -> None:
        values, arrays = training.state()
        records.save(RECORD, {**values, "bfloat16": self._lesson.bfloat16}, arrays)

    def _affordable_steps(self, effort: Effort) -> int:
        """Return how many steps fit into the minutes that are left, the trials and the judgements taken off.

        The precision becomes the faster one of those that the device has.
        """
        assert effort.minutes is not None
        lesson = self._lesson
        seconds = {lesson.bfloat16: self._seconds_of_a_step()}
        if lesson.bfloat16:
            lesson.bfloat16 = False
            seconds[False] = self._seconds_of_a_step()
            lesson.bfloat16 = seconds[True] < seconds[False]
        judging = _seconds(lambda: lesson.judge(Trainable(self._start).to(lesson.device)))
        trials = sum(len(stage.rates) for stage in self._stages)
        left = 60 * effort.minutes - (time.monotonic() - self._began) - (JUDGEMENTS + trials) * judging
        longer = sum(stage.share * (1 + len(stage.rates) * TRIAL_SHARE) for stage in self._stages)
        longer /= sum(stage.share for stage in self._stages)
        return max(1, int(left / seconds[lesson.bfloat16] / longer))

    def _seconds_of_a_step(self) -> float:
        training = self._training(MAX_STEPS)
        training.step()  # the first one allocates and plans
        return _seconds(training.step, WARM_UP_STEPS)


@contextmanager
def _settings(threads: int) -> Iterator[None]:
    """Train on `threads` threads, whatever the caller's modes; give back PyTorch's own number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)


def _seconds(function: Callable[[], object], times: int = 1) -> float:
    """Return how long a call takes, on average."""
    began = time.monotonic()
    for _ in range(times):
        function()
    return (time.monotonic() - began) / times
