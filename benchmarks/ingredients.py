"""Our method with some of its pieces taken out, to see what each of them gives.

Nothing is written twice: the product's own code runs, with the functions in question replaced while it does.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from pyquant.learn.descent import Problem, Solution
from pyquant.learn.methods import Method, gram
from pyquant.learn.methods.abgd import Abgd
from pyquant.learn.methods.base import Codes, Floats, Layer
from pyquant.learn.workers import Workers


def _target_not_corrected(weight: Floats, squares: torch.Tensor, cross: torch.Tensor) -> Floats:
    return weight


def _codebooks_kept(problem: Problem, solution: Solution, workers: Workers) -> Solution:
    return solution


def _codes_kept(problem: Problem, solution: Solution, workers: Workers) -> Solution:
    return solution


PIECES: dict[str, tuple[str, Any]] = {  # what each name takes out: of pyquant.learn.methods.gram, and what replaces it
    "corrected target": ("_corrected", _target_not_corrected),
    "least squares": ("refit", _codebooks_kept),
    "coordinate descent": ("sweep", _codes_kept),
    "more rounds": ("ROUNDS", 1),
}


class Without(gram.Gram):
    """Our method without some of its pieces."""

    def __init__(self, *pieces: str) -> None:
        self.pieces = pieces

    def code(self, layer: Layer, measured: Any, *, seed: int, workers: Workers) -> tuple[Codes, NDArray[np.floating]]:
        """Return what ours finds without the pieces."""
        with ExitStack() as stack:
            for piece in self.pieces:
                name, replacement = PIECES[piece]
                stack.enter_context(patch.object(gram, name, replacement))
            return super().code(layer, measured, seed=seed, workers=workers)


class Weights(Abgd):
    """ABGD's k-means on the weights alone; pictures give nothing but batch-norm statistics and biases."""

    weighs_inputs = False

    def code(self, layer: Layer, measured: Any, *, seed: int, workers: Workers) -> tuple[Codes, NDArray[np.floating]]:
        """Return what k-means finds where all weights count the same."""
        return super().code(layer, None, seed=seed, workers=workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """One row of the table: a method, and what it is compared with."""

    method: Method | str = "gram"  # its name, where the product has it
    over: str = ""  # the row that has all but one thing of this one
    calibrated: bool = True
    allocated: bool = False  # codecs are chosen for the bytes that the preset gives, not by the preset

    def name(self, row: str) -> str:
        """Return the name under which the method is run."""
        return self.method if isinstance(self.method, str) else row

    def size(self, preset: str) -> str:
        """Return what decides the size, in place of a preset."""
        return f"as:{preset}" if self.allocated else preset


INGREDIENTS: dict[str, Ingredient] = {
    "k-means on weights, no pictures": Ingredient(method=Weights(), calibrated=False),
    "statistics renewed": Ingredient(method=Weights(), over="k-means on weights, no pictures"),
    "blocks weighted by inputs (`abgd`)": Ingredient(method="abgd", over="statistics renewed"),
    "error feedback": Ingredient(
        method=Without("corrected target", "least squares", "coordinate descent", "more rounds"),
        over="statistics renewed",
    ),
    "least squares": Ingredient(
        method=Without("corrected target", "coordinate descent", "more rounds"), over="error feedback"
    ),
    "coordinate descent": Ingredient(method=Without("corrected target", "more rounds"), over="least squares"),
    "more rounds": Ingredient(method=Without("corrected target"), over="coordinate descent"),
    "target corrected for earlier errors (`gram`)": Ingredient(over="more rounds"),
    "codecs chosen by sensitivities": Ingredient(allocated=True, over="target corrected for earlier errors (`gram`)"),
}
