"""How a network is compressed, apart from what it is, how large it becomes and where it goes."""

from __future__ import annotations

from dataclasses import dataclass, field

from pyquant.choose import Recipe
from pyquant.classes import ClassName
from pyquant.detector import DetectorPreprocessing
from pyquant.errors import ConfigError, InputError
from pyquant.learn.methods import DEFAULT_METHOD
from pyquant.preprocessing import Preprocessing
from pyquant.runtime import MAX_THREADS


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of a compression, as `pyquant.compress` explains them."""

    recipe: Recipe = field(default_factory=Recipe)
    method: str = DEFAULT_METHOD
    input_shape: tuple[int, int, int] | None = None  # C, H, W
    preprocessing: Preprocessing | DetectorPreprocessing | None = None
    classes: tuple[ClassName, ...] = ()
    samples: int = 1024  # calibration inputs at most
    seed: int = 0
    threads: int | None = None  # None: as many as the process may use
    # The most bit operations for one input, or below 1 the share of those of the network in fp32; None: any number.
    max_bit_operations: float | None = None
    finetune_steps: int | None = None
    finetune_minutes: float | None = None
    device: str = "cpu"  # of fine-tuning

    def __post_init__(self) -> None:
        if not isinstance(self.recipe, Recipe):
            raise ConfigError(f"recipe must be a Recipe, got {type(self.recipe).__name__}")
        for name, value, low, high in (
            ("samples", self.samples, 1, 2**31),
            ("seed", self.seed, 0, 2**63),
            ("threads", 1 if self.threads is None else self.threads, 1, MAX_THREADS),
        ):
            if not isinstance(value, int) or not low <= value <= high:
                raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")
        if self.max_bit_operations is not None and not 0 < self.max_bit_operations < float("inf"):
            raise ConfigError(
                f"max_bit_operations must be a positive number, or a share below 1, got {self.max_bit_operations!r}"
            )
        if self.input_shape is not None:
            checked_shape(self.input_shape)


def checked_shape(shape: object) -> tuple[int, int, int]:
    """Return the shape of one input; raise InputError unless it is three sizes."""
    if not isinstance(shape, (tuple, list)) or len(shape) != 3:
        raise InputError(f"input_shape must be three sizes (C, H, W), got {shape!r}")
    if not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"input_shape must be three sizes (C, H, W), got {shape!r}")
    channels, height, width = shape
    return channels, height, width
