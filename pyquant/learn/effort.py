"""How much fine-tuning is asked for: a number of steps, or minutes that a timed warm-up turns into one; and where."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pyquant.errors import ConfigError

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
