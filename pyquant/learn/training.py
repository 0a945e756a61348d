"""The training of one compressed network, step by step: its whole state can be saved between any two steps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import inf, isfinite
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.graph import Network, Weight
from pyquant.learn.lesson import Lesson
from pyquant.learn.schedule import Stage, stage_ends
from pyquant.learn.trainable import Trainable

NEARLY = 0.6  # of the best trial's gain
JUDGEMENTS = 10  # times that the state is judged while it is trained

Arrays = Mapping[str, NDArray[Any]]


class Training:
    """Stages, one after the other, each a few short trials of learning rates and then its steps.

    The best state that a judgement on the pictures held back has met is kept.
    """

    def __init__(
        self,
        lesson: Lesson,
        start: Network,
        stages: Sequence[Stage],
        steps: int,
        *,
        first: int = 0,
        only: Weight | None = None,
        judgements: int = JUDGEMENTS,
    ) -> None:
        """Prepare to train `start` for `steps` steps, those of trials not counted.

        Args:
            first: the number of the first step's batch.
            only: the weight whose codebooks alone are trained; None: all that can be.
            judgements: how many times the state is judged while it is trained.
        """
        self.steps = steps
        self.done = 0  # steps, those of trials not counted
        self.rates: list[float] = []  # chosen so far, one a stage
        self._lesson = lesson
        self._start = start
        self._stages = stages
        self._ends = stage_ends(stages, steps)
        self._first_batch = first
        self._only = only
        self._judgements = judgements
        self._student = Trainable(start, only).to(lesson.device)
        self._base = self._student.values()  # what the stage begins with
        self._best = self._base
        self.losses = [lesson.judge(self._student)]  # on the pictures held back: at first, then at regular intervals
        self._trials: list[float] = []  # the losses after the trials of this stage
        self._step = 0  # of the trial, or of the stage
        self._begin()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.done == self.steps

    @property
    def kept(self) -> float:
        """The loss of the best state met."""
        return min(self.losses)

    @property
    def doing(self) -> tuple[str, int, int]:
        """What is being done, how much of it is done, and of how much."""
        if self._is_trial:
            return "choosing a learning rate", len(self._trials), len(self._stages[self._index].rates)
        return "fine-tuning", self.done, self.steps

    @property
    def trials(self) -> int:
        """How many learning rates were tried for the present stage, or the last one that had trials."""
        return len(self._trials)

    def change_steps(self, steps: int) -> None:
        """Do so many steps instead; so far none may be done but those of the first stage's trials, which are over."""
        assert self.done == 0, "steps are done"
        assert self.rates, "trials are not over"
        self.steps = steps
        self._ends = stage_ends(self._stages, steps)

    def step(self) -> None:
        """Do one step of a trial or of a stage, and what becomes due with it."""
        stage, index = self._stages[self._index], self._index
        length = self._trial_steps(index) if self._is_trial else self._length(index)
        rate = stage.rates[len(self._trials)] if self._is_trial else self.rates[index]
        stage.set_rate(self._optimizer, rate, self._step, length)
        self._optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self._lesson.loss(self._student, self._number(index)))
        if stage.mean_gradient:
            self._student.average_gradients()
        self._optimizer.step()
        self._step += 1
        if self._is_trial:
            if self._step == length:
                self._end_trial(stage)
            return
        self.done += 1
        if self.done * self._judgements // self.steps > (self.done - 1) * self._judgements // self.steps:
            self._judge()
        if self._step == length and not self.finished:
            self._judge()
            self._base = self._student.values()
            self._trials = []
            self._begin()

    def _judge(self) -> None:
        self.losses.append(self._lesson.judge(self._student))
        if self.losses[-1] < min(self.losses[:-1]):
            self._best = self._student.values()

    def result(self) -> Network:
        """Return the network in the best state met."""
        student = Trainable(self._start, self._only)
        student.load(self._best)
        return student.result()

    def state(self) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
        """Return all that another Training of the same network needs to go on from here: plain JSON values, and arrays.

        On the CPU it then goes on bit for bit as this one.
        """
        values = {
            "steps": self.steps,
            "done": self.done,
            "rates": list(self.rates),
            "losses": _without_inf(self.losses),
            "trials": _without_inf(self._trials),
            "step": self._step,
        }
        optimizer = {
            f"{key}/{name}": value
            for key, parameter in self._student.trained().items()
            for name, value in self._optimizer.state[parameter].items()
            if isinstance(value, Tensor)
        }
        parts = {"base": self._base, "best": self._best, "now": self._student.values(), "optimizer": optimizer}
        arrays = {
            f"{part} {key}": np.array(tensor.detach().cpu().numpy())
            for part, tensors in parts.items()
            for key, tensor in tensors.items()
        }
        return values, arrays

    def restore(self, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Go on from what `state` returned."""
        parts: dict[str, dict[str, Tensor]] = {"base": {}, "best": {}, "now": {}, "optimizer": {}}
        for name, array in arrays.items():
            part, _, key = name.partition(" ")
            parts[part][key] = torch.from_numpy(np.array(array))
        self.done = values["done"]
        self.rates = list(values["rates"])
        self.losses, self._trials = _with_inf(values["losses"]), _with_inf(values["trials"])
        self._base, self._best = parts["base"], parts["best"]
        self._begin()
        self._step = values["step"]
        self._student.load(parts["now"])
        trained = self._student.trained()
        for entry, value in parts["optimizer"].items():
            key, _, name = entry.rpartition("/")
            # Adam counts its steps in a tensor that stays on the CPU.
            self._optimizer.state[trained[key]][name] = value if name == "step" else value.to(self._lesson.device)

    @property
    def _index(self) -> int:
        """The stage that is being done, or the last one."""
        return next((index for index, end in enumerate(self._ends) if self.done < end), len(self._ends) - 1)

    @property
    def _is_trial(self) -> bool:
        return len(self.rates) == self._index

    def _first(self, index: int) -> int:
        return self._ends[index - 1] if index else 0

    def _number(self, index: int) -> int:
        """Return the number of the next batch; trials take those that their stage begins with."""
        return self._first_batch + self._first(index) + self._step

    def _length(self, index: int) -> int:
        return self._ends[index] - self._first(index)

    def _trial_steps(self, index: int) -> int:
        return self._stages[index].trial_steps(self._length(index))

    def _begin(self) -> None:
        """Begin the next trial of a stage, or the stage itself, from what the stage began with."""
        stage = self._stages[self._index]
        while len(self.rates) < self._index:  # a stage too short for any step
            self.rates.append(self._stages[len(self.rates)].usual)
        if self._is_trial and not self._trial_steps(self._index):
            self.rates.append(stage.usual)
        self._student.load(self._base)
        self._optimizer = stage.build(self._student.trained(), self._student.units())
        self._step = 0

    def _end_trial(self, stage: Stage) -> None:
        """Judge a trial; once a higher learning rate does clearly worse than a lower one, choose.

        The highest rate is taken whose trial gained nearly as much as the best one's: the noise of a high rate hurts at
        once, and its progress shows later, so that short trials favour rates that are too low for long ones. Where all
        diverge, it is the lowest.
        """
        self._trials.append(self._lesson.judge(self._student))
        gains = [self.losses[-1] - loss if isfinite(loss) else -inf for loss in self._trials]
        best = max(gains)
        good = [index for index, gain in enumerate(gains) if gain > -inf and gain >= NEARLY * best]
        good = good or [gains.index(best)]
        if len(gains) == len(stage.rates) or good[-1] < len(gains) - 1:
            self.rates.append(stage.rates[good[-1]])
        self._begin()


def _without_inf(losses: Sequence[float]) -> list[float | None]:
    """Return losses as JSON has them: those of states that have diverged are None."""
    return [loss if isfinite(loss) else None for loss in losses]


def _with_inf(losses: Sequence[float | None]) -> list[float]:
    return [inf if loss is None else loss for loss in losses]


@contextmanager
def training_mode(threads: int) -> Iterator[None]:
    """Train on `threads` threads, whatever the caller's modes; give back PyTorch's own number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        torch.set_num_threads(before)
