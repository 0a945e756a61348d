"""Our method with some of its pieces taken out, to see what each of them gives.

Nothing is written twice: the product's own code runs, with the functions in question replaced while it does.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch

from pyquant import candidates
from pyquant.codecs import SparseConfig
from pyquant.graph import Network
from pyquant.learn import descent, grids
from pyquant.learn.descent import Problem, Solution
from pyquant.learn.grids import Grids, Ordered
from pyquant.learn.methods import METHODS, Method, correlated, exactobs, gram
from pyquant.learn.methods.abgd import Abgd
from pyquant.learn.methods.base import Floats, Layer, Tensors
from pyquant.learn.methods.pqf import Pqf
from pyquant.learn.pruning import FIRST_STEPS, least_squares
from pyquant.learn.workers import Workers


def _target_not_corrected(weight: Floats, squares: torch.Tensor, cross: torch.Tensor, *, damping: float) -> Floats:
    return weight


def _codebooks_kept(problem: Problem, solution: Solution, workers: Workers) -> Solution:
    return solution


def _codes_kept(problem: Problem, solution: Solution, workers: Workers) -> Solution:
    return solution


def _nearest(ordered: Ordered, own: Grids, prices: torch.Tensor | None, workers: Workers) -> torch.Tensor:
    return own.nearest(ordered.problem.target)


def _largest(ordered: Ordered, config: SparseConfig, count: int, workers: Workers) -> tuple[torch.Tensor, torch.Tensor]:
    target = ordered.problem.target
    units = target.square().unflatten(2, (-1, config.unit))
    if config.of:
        kept = units.argsort(dim=3, descending=True).argsort(dim=3) < config.kept_of
    else:
        sums = units.sum(3)
        chosen = torch.zeros(sums.numel(), dtype=torch.bool)
        chosen[sums.flatten().topk(count // config.run).indices] = True
        kept = chosen.reshape(sums.shape)[..., None].expand_as(units)
    return kept.flatten(2), target * kept.flatten(2)


def _largest_fitted(
    ordered: Ordered, config: SparseConfig, count: int, workers: Workers
) -> tuple[torch.Tensor, torch.Tensor]:
    kept, weight = _largest(ordered, config, count, workers)
    return kept, least_squares(ordered.problem, kept, weight, FIRST_STEPS, workers)


PIECES: dict[str, tuple[ModuleType | type, str, Any]] = {  # what takes each of them out: a name, and what replaces it
    "corrected target": (correlated, "_corrected", _target_not_corrected),
    "least squares": (gram, "refit", _codebooks_kept),
    "coordinate descent": (gram, "sweep", _codes_kept),
    "more rounds": (gram, "CORRELATIONS", (1.0,)),
    "correlations in steps": (gram, "CORRELATIONS", (1.0,) * len(descent.CORRELATIONS)),
    "order of channels": (gram.Gram, "prepare", Method.prepare),
    "weighed outputs": (gram.Gram, "weighs_outputs", False),
    "int8 codebooks": (candidates, "CODEBOOK_DTYPES", ("float",)),
    "additive codebooks": (candidates, "CANDIDATE_ADDITIVE", ()),
    "beams": (descent, "BEAM", 1),
    "error feedback": (grids, "feedback", _nearest),
    "rounds of least squares and sweeps": (grids, "ROUNDS", 0),
    "greedy removal": (exactobs, "pruned", _largest_fitted),
    "greedy removal and least squares": (exactobs, "pruned", _largest),
}
LAST_PIECES = ("corrected target", "order of channels", "weighed outputs")


class Weights(Abgd):
    """ABGD's k-means on the weights alone; pictures give nothing but batch-norm statistics and biases."""

    weighs_inputs = False

    def code(self, layer: Layer, measured: Any, *, seed: int, workers: Workers) -> Tensors:
        """Return what k-means finds where all weights count the same."""
        return super().code(layer, None, seed=seed, workers=workers)


class Unordered(Pqf):
    """PQF's annealed k-means, the channels in their own order."""

    def prepare(self, network: Network, norms: Any, choices: Any, **_: Any) -> tuple[Network, Any]:
        """Return the network as it is."""
        return network, norms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingredient:
    """One row of the table: a method, and what it is compared with."""

    over: str = ""  # the row that has all but one thing of this one
    method: Method | str = "gram"  # its name, where the product has it
    without: tuple[str, ...] = ()  # pieces
    calibrated: bool = True
    allocated: bool = False  # codecs are chosen for the bytes that the preset gives, not by the preset

    def name(self, row: str) -> str:
        """Return the name under which the method is run."""
        return self.method if isinstance(self.method, str) and not self.without else row

    def size(self, preset: str) -> str:
        """Return what decides the size, in place of a preset."""
        return f"as:{preset}" if self.allocated else preset

    @contextmanager
    def known(self, row: str) -> Iterator[None]:
        """Let the product know the method by this name, and be without the pieces."""
        method = METHODS[self.method] if isinstance(self.method, str) else self.method
        with ExitStack() as stack:
            stack.enter_context(patch.dict(METHODS, {row: method}))
            for piece in self.without:
                stack.enter_context(patch.object(*PIECES[piece]))
            yield


INGREDIENTS: dict[str, Ingredient] = {
    "k-means on weights, no pictures": Ingredient(method=Weights(), calibrated=False),
    "statistics renewed": Ingredient(over="k-means on weights, no pictures", method=Weights()),
    "k-means annealed": Ingredient(over="statistics renewed", method=Unordered()),
    "channels reordered (`pqf`)": Ingredient(over="k-means annealed", method="pqf"),
    "blocks weighted by inputs (`abgd`)": Ingredient(over="statistics renewed", method="abgd"),
    "error feedback": Ingredient(
        over="statistics renewed",
        without=("least squares", "coordinate descent", "more rounds", *LAST_PIECES),
    ),
    "least squares": Ingredient(
        over="error feedback",
        without=("coordinate descent", "more rounds", *LAST_PIECES),
    ),
    "coordinate descent": Ingredient(over="least squares", without=("more rounds", *LAST_PIECES)),
    "more rounds": Ingredient(over="coordinate descent", without=("correlations in steps", *LAST_PIECES)),
    "correlations that come in step by step": Ingredient(over="more rounds", without=LAST_PIECES),
    "target corrected for earlier errors": Ingredient(
        over="correlations that come in step by step", without=("order of channels", "weighed outputs")
    ),
    "channels ordered": Ingredient(over="target corrected for earlier errors", without=("weighed outputs",)),
    "outputs weighed by gradients (`gram`)": Ingredient(over="channels ordered"),
    "codecs chosen by sensitivities": Ingredient(
        over="outputs weighed by gradients (`gram`)",
        without=("int8 codebooks", "additive codebooks"),
        allocated=True,
    ),
    "int8 codebooks": Ingredient(
        over="codecs chosen by sensitivities", without=("additive codebooks",), allocated=True
    ),
    "additive codebooks": Ingredient(over="int8 codebooks", without=("beams",), allocated=True),
    "codes of several codebooks sought by beams": Ingredient(over="additive codebooks", allocated=True),
}

ROUNDERS: dict[str, Ingredient] = {
    "nearest levels": Ingredient(
        method="obq", without=("corrected target", "error feedback", "rounds of least squares and sweeps")
    ),
    "error feedback alone": Ingredient(
        over="nearest levels", method="obq", without=("corrected target", "rounds of least squares and sweeps")
    ),
    "error feedback, least squares and sweeps": Ingredient(
        over="error feedback alone", method="obq", without=("corrected target",)
    ),
    "obq": Ingredient(over="error feedback, least squares and sweeps", method="obq"),
}

PRUNERS: dict[str, Ingredient] = {
    "largest weights": Ingredient(method="exactobs", without=("corrected target", "greedy removal and least squares")),
    "largest weights, least squares": Ingredient(
        over="largest weights", method="exactobs", without=("greedy removal",)
    ),
    "exactobs": Ingredient(over="largest weights, least squares", method="exactobs"),
}
