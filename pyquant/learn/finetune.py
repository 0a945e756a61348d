"""Fine-tuning without labels: what a compressed network holds is trained to give the outputs of the dense network.

All of it at once, as in "Permute, Quantize, and Fine-tune" (Martinez et al., CVPR 2021), with the dense network's
outputs in place of labels; the optimizer and its schedule are the recipe's. Part of the calibration pictures is held
back: the learning rate is chosen by short runs judged on them, and so is the state that is kept.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch

from pyquant import console
from pyquant.checkpoint import NOWHERE, Records
from pyquant.console import Progress
from pyquant.errors import InputError
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.effort import MAX_STEPS, Effort
from pyquant.learn.layer_training import LayerTraining
from pyquant.learn.layerwise import Learnt
from pyquant.learn.lesson import HELD_BACK_SHARE, LEAST_PICTURES, Lesson
from pyquant.learn.norms import Norm
from pyquant.learn.pace import Pace, Timing
from pyquant.learn.recipes import OURS
from pyquant.learn.schedule import Stage, TrainingRecipe, affordable_steps
from pyquant.learn.trainable import Trainable
from pyquant.learn.training import JUDGEMENTS, Training, training_mode

WARM_UP_STEPS = 3  # timed, after one that is not
RECORD = "training"


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
    recipe: TrainingRecipe = OURS,
    after: LayerTraining | None = None,
    records: Records = NOWHERE,
) -> Finetuned:
    """Return `compressed`, all that it holds trained to give the outputs of `dense`.

    On the held-back pictures the result is never worse than `compressed` itself. Equal steps, seed and threads give the
    same result on one machine's CPU, also where training stopped and goes on from `records`.

    Args:
        recipe: the stages of the training.
        after: what was spent on single layers, of which the effort is the whole.

    Raises:
        InputError: there are too few calibration pictures to hold any back, or one is corrupt.
    """
    check_enough(calibration)
    with training_mode(threads):
        device = torch.device(effort.device)
        lesson = after.lesson if after else Lesson(dense, calibration, device=device, seed=seed, mixed=recipe.mixed)
        return _Tuner(lesson, compressed, recipe.stages, progress).run(effort, after, records)


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
    recipe: TrainingRecipe = OURS,
    after: LayerTraining | None = None,
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
        recipe=recipe,
        after=after,
        records=records,
    )
    steps, rates = (
        result.steps + (after.steps if after else 0),
        [*(after.rates if after else ()), *result.learning_rates],
    )
    console.note(
        f"fine-tuning: {steps:,} steps, learning rate {', '.join(f'{rate:g}' for rate in rates)}, {result.precision}; "
        f"loss on pictures held back {result.losses[0]:.4g} before, {result.kept:.4g} after"
    )
    how = {
        "steps": steps,
        "learning_rates": rates,
        "precision": result.precision,
        "pictures": calibration.count,
    }
    new_norms = norms_after(result.network, {**norms, **learnt.norms})
    return replace(learnt, network=result.network, norms=new_norms), how


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
        self._whole = start
        self._start = lesson.part(start)
        self._stages = stages
        self._progress = progress
        self._timing: Timing | None = None  # while the number of steps may yet change

    def run(self, effort: Effort, after: LayerTraining | None, records: Records) -> Finetuned:
        """Train, from where the records say, and return the result."""
        self._first = after.steps if after else 0
        if (record := records.load(RECORD)) is not None:
            self._lesson.bfloat16 = record.values["bfloat16"]
            training = self._training(record.values["steps"])
            training.restore(record.values, record.arrays)
            if record.values["timing"] is not None:
                self._timing = Timing.from_json(record.values["timing"])
        elif effort.steps is not None:
            training = self._training(max(1, effort.steps - self._first))
            self._save(training, records)
        else:
            assert effort.minutes is not None
            training = self._timed(60 * effort.minutes - (after.seconds if after else 0.0))
            self._save(training, records)
        if self._timing is not None:
            self._settle(training, self._timing, records)
        while not training.finished:
            self._step(training)
            self._save_if_due(training, records)
        self._progress(*training.doing)
        return Finetuned(
            network=replace(self._whole, tensors=training.result().tensors),
            steps=training.steps,
            learning_rates=tuple(training.rates),
            precision="bfloat16" if self._lesson.bfloat16 else "float32",
            losses=tuple(training.losses),
        )

    def _training(self, steps: int) -> Training:
        return Training(self._lesson, self._start, self._stages, steps, first=self._first)

    def _step(self, training: Training) -> None:
        self._progress(*training.doing)
        training.step()

    def _save_if_due(self, training: Training, records: Records) -> None:
        if records.is_due() or training.finished:
            self._save(training, records)

    def _save(self, training: Training, records: Records) -> None:
        values, arrays = training.state()
        timing = None if self._timing is None else asdict(self._timing)
        records.save(RECORD, {**values, "bfloat16": self._lesson.bfloat16, "timing": timing}, arrays)

    def _timed(self, seconds: float) -> Training:
        """Return the training that takes so many seconds at the pace of a few steps: it decides how long trials are."""
        end = self._began + seconds
        pace = self._pace()
        training = self._training(self._affordable_steps(end - time.monotonic(), pace))
        self._timing = Timing(pace=pace, seconds=end - time.monotonic())
        return training

    def _settle(self, training: Training, timing: Timing, records: Records) -> None:
        """Choose the first learning rate, and as many steps as fit into the time left at the pace of its trials."""
        while not training.rates:
            began = time.monotonic()
            self._step(training)
            timing.count(time.monotonic() - began)
            self._save_if_due(training, records)
        pace = timing.pace.corrected(timing.spent, timing.steps, training.trials)
        training.change_steps(self._affordable_steps(timing.seconds, pace, tried=1))
        self._timing = None
        self._save(training, records)

    def _pace(self) -> Pace:
        """Time a few steps; the precision becomes the faster one of those that the device has."""
        lesson = self._lesson
        # Timed twice: the first time, the dense network runs, too; then its outputs are known.
        new, known = self._seconds_of_a_step(), self._seconds_of_a_step()
        if lesson.bfloat16:
            lesson.bfloat16 = False
            slow = self._seconds_of_a_step(), self._seconds_of_a_step()
            lesson.bfloat16 = known <= slow[1]
            new, known = (new, known) if lesson.bfloat16 else slow
        judging = _seconds(lambda: lesson.judge(Trainable(self._start).to(lesson.device)))
        return Pace(new=new, known=known, judging=judging)

    def _affordable_steps(self, seconds: float, pace: Pace, *, tried: int = 0) -> int:
        """Return how many steps fit into so many seconds, the trials of later stages and the judgements taken off.

        The first `tried` stages have their learning rates.
        """
        judgements = JUDGEMENTS + sum(len(stage.rates) for stage in self._stages[tried:])
        steps = pace.steps(seconds - judgements * pace.judging, self._lesson.new_batches)
        return affordable_steps(self._stages, steps, tried=tried)

    def _seconds_of_a_step(self) -> float:
        training = self._training(MAX_STEPS)
        training.step()  # the first one allocates and plans
        return _seconds(training.step, WARM_UP_STEPS)


def _seconds(function: Callable[[], object], times: int = 1) -> float:
    """Return how long a call takes, on average."""
    began = time.monotonic()
    for _ in range(times):
        function()
    return (time.monotonic() - began) / times
