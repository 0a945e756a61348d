"""Fine-tuning without labels: centroids, scales and biases are trained so that outputs are those of the dense network.

Adam with a cosine schedule on all parameters at once, as in "Permute, Quantize, and Fine-tune" (Martinez et al., CVPR
2021), with the dense network's outputs in place of labels. Part of the calibration pictures is held back: the learning
rate is chosen by short runs judged on them, and so is the state that is kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from math import cos, inf, isfinite, pi
from typing import Any

import numpy as np
import torch

from pyquant import console
from pyquant.console import Progress
from pyquant.errors import ConfigError, InputError
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.distillation import distillation_loss
from pyquant.learn.layerwise import Learnt, Norm
from pyquant.learn.targets import Pictures, Rows, Targets, as_tuple
from pyquant.learn.trainable import Trainable
from pyquant.torch_network import TorchNetwork

BATCH = 32  # pictures of a step
BETAS = (0.9, 0.99)  # Adam's; steps are few, so squared gradients are forgotten sooner than usual
RISE = 0.1  # of the steps, in which the learning rate rises: Adam's first steps, on few gradients, are the worst ones
RATES = (0.001, 0.003, 0.01, 0.02)  # tried in this order, per step, relative to the root mean square of each parameter
PROBE_SHARE = 0.05  # of the steps, for each rate tried
LEAST_PROBE = 8  # steps; below it nothing can be told, and the lowest rate is taken
HARM = 1.1  # the loss after a short run, relative to the loss before, at which a rate is too high
HELD_BACK = 512  # pictures at most
HELD_BACK_SHARE = 8  # one picture in so many, where there are few
LEAST_PICTURES = 2 * HELD_BACK_SHARE
JUDGEMENTS = 10  # times that the state is judged while it is trained
WARM_UP_STEPS = 3  # timed, after one that is not
MAX_MINUTES = 60 * 24 * 30
MAX_STEPS = 10**8

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
    learning_rate: float  # relative to the root mean square of each parameter
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
) -> Finetuned:
    """Return `compressed` with centroids, scales, biases and dense weights trained to give the outputs of `dense`.

    On the held-back pictures the result is never worse than `compressed` itself. Equal steps, seed and threads give the
    same result on one machine's CPU.

    Raises:
        InputError: there are too few calibration pictures to hold any back, or one is corrupt.
    """
    check_enough(calibration)
    with _settings(threads):
        return _Tuner(dense, compressed, calibration, effort, seed, progress).run()


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
) -> tuple[Learnt, dict[str, Any]]:
    """Return what was learnt, fine-tuned, and how, as plain JSON values; `norms` are all those of the module."""
    result = finetune(dense, learnt.network, calibration, effort=effort, seed=seed, threads=threads, progress=progress)
    console.note(
        f"fine-tuning: {result.steps:,} steps, learning rate {result.learning_rate:g}, {result.precision}; "
        f"loss on pictures held back {result.losses[0]:.4g} before, {result.kept:.4g} after"
    )
    how = {
        "steps": result.steps,
        "learning_rate": result.learning_rate,
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
    """The training of one network."""

    def __init__(
        self,
        dense: Network,
        compressed: Network,
        calibration: Calibration,
        effort: Effort,
        seed: int,
        progress: Progress,
    ) -> None:
        self._began = time.monotonic()
        self._effort = effort
        self._seed = seed
        self._progress = progress
        self._device = torch.device(effort.device)
        self._bfloat16 = _has_bfloat16(self._device)
        self._start = compressed
        self._pictures = Pictures(calibration, self._device)
        self._targets = Targets(TorchNetwork(dense).to(self._device))
        order = np.random.default_rng(seed).permutation(calibration.count)
        held_back = min(HELD_BACK, calibration.count // HELD_BACK_SHARE)
        self._held_back, self._trained_on = order[:held_back], order[held_back:]

    def run(self) -> Finetuned:
        """Choose the number of steps and the learning rate, then train."""
        losses, best = [self._judge(self._student())], self._start
        steps = self._affordable_steps() if self._effort.steps is None else self._effort.steps
        rate = self._best_rate(int(steps * PROBE_SHARE), losses[0])
        student = self._student()
        for done in self._train(student, steps, rate, "fine-tuning"):
            if done * JUDGEMENTS // steps > (done - 1) * JUDGEMENTS // steps:
                losses.append(self._judge(student))
                if losses[-1] < min(losses[:-1]):
                    best = student.result()
        return Finetuned(network=best, steps=steps, learning_rate=rate, precision=self._precision, losses=tuple(losses))

    @property
    def _precision(self) -> str:
        return "bfloat16" if self._bfloat16 else "float32"

    def _student(self) -> Trainable:
        return Trainable(self._start).to(self._device)

    def _affordable_steps(self) -> int:
        """Return how many steps fit into the minutes that are left, the probe and the judgements taken off.

        The precision becomes the faster one of those that the device has.
        """
        assert self._effort.minutes is not None
        seconds = {self._bfloat16: self._seconds_of_a_step()}
        if self._bfloat16:
            self._bfloat16 = False
            seconds[False] = self._seconds_of_a_step()
            self._bfloat16 = seconds[True] < seconds[False]
        judging = _seconds(lambda: self._judge(self._student()))
        left = 60 * self._effort.minutes - (time.monotonic() - self._began) - (JUDGEMENTS + len(RATES)) * judging
        return max(1, int(left / seconds[self._bfloat16] / (1 + len(RATES) * PROBE_SHARE)))

    def _seconds_of_a_step(self) -> float:
        steps = self._train(self._student(), 1 + WARM_UP_STEPS, 0.0, "warming up")
        next(steps)  # the first one allocates and plans
        return _seconds(lambda: deque(steps, maxlen=0)) / WARM_UP_STEPS

    def _best_rate(self, steps: int, before: float) -> float:
        """Return the highest learning rate with which `steps` steps do little harm, if any.

        Not the one with the lowest loss: the noise of a high rate hurts at once, and its progress shows later, so that
        short runs favour rates that are too low for long ones.
        """
        if steps < LEAST_PROBE:
            return RATES[0]
        best = RATES[0]
        for tried, rate in enumerate(RATES):
            self._progress("choosing a learning rate", tried, len(RATES))
            student = self._student()
            deque(self._train(student, steps, rate, None), maxlen=0)
            if self._judge(student) > HARM * before:
                break
            best = rate
        self._progress("choosing a learning rate", len(RATES), len(RATES))
        return best

    def _train(self, student: Trainable, steps: int, rate: float, label: str | None) -> Iterator[int]:
        """Train for `steps` steps, the learning rate falling from `rate` to 0 along a cosine; yield after each step."""
        units = student.units()
        groups = [{"params": [value], "unit": units[key]} for key, value in student.trained().items()]
        optimizer = torch.optim.Adam(groups, lr=rate, betas=BETAS)
        batches = self._batches()
        for step in range(steps):
            if label is not None:
                self._progress(label, step, steps)
            now = rate * min(1.0, (step + 1) / (RISE * steps)) * (1 + cos(pi * step / steps)) / 2
            for group in optimizer.param_groups:
                group["lr"] = now * group["unit"]
            rows, mirrored = next(batches)
            student.train()
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._bfloat16):
                x = self._pictures.read(rows, mirrored)
                targets = self._targets.read(rows, mirrored, x)
                outputs = as_tuple(student(x))
            torch.autograd.backward(distillation_loss(outputs, targets))
            optimizer.step()
            yield step + 1
        if label is not None:
            self._progress(label, steps, steps)

    def _batches(self) -> Iterator[tuple[Rows, bool]]:
        """Yield the pictures of each step, and whether they are mirrored: at random, once each was seen as it is."""
        rng = np.random.default_rng((self._seed, 1))
        size = min(BATCH, len(self._trained_on))
        for passes in count():
            order = rng.permutation(self._trained_on)
            for start in range(0, len(order) - size + 1, size):
                yield order[start : start + size], passes > 0 and bool(rng.integers(2))

    @torch.no_grad()
    def _judge(self, student: Trainable) -> float:
        """Return the loss on the pictures held back, in float32, of the network as it would be written."""
        student.eval()
        total = 0.0
        for start in range(0, len(self._held_back), BATCH):
            rows = self._held_back[start : start + BATCH]
            x = self._pictures.read(rows, mirrored=False)
            loss = distillation_loss(as_tuple(student(x)), self._targets.read(rows, False, x))
            total += float(loss) * len(rows)
        mean = total / len(self._held_back)
        return mean if isfinite(mean) else inf


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


def _has_bfloat16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 in instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def _seconds(function: Callable[[], Any]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began
