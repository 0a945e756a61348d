"""Plans: what compressing is to give, before it is done: each layer's codec, the file's size and the outputs' error."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.allocate import allocate, candidate_blocks, placeholder, predicted_errors
from pyquant.choose import Choice, Recipe
from pyquant.codecs import ProductConfig
from pyquant.console import Progress
from pyquant.errors import ConfigError
from pyquant.file import ModelFile, dumps
from pyquant.graph import Graph, Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.workers import Workers
from pyquant.report import LayerRow, dense_bytes, layer_rows
from pyquant.sensitivity import affordable_inputs, measure_curves

NOISE_INPUTS = 32  # inputs of noise that stand in for calibration inputs where there are none
LONGEST_ERROR = 0.000123456  # no error of a layer takes more characters in a file

ModelOf = Callable[[Network, Mapping[str, Choice], Mapping[str, float]], ModelFile]  # choices and errors by name


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What compressing with certain choices is to give."""

    choices: Mapping[str, Choice]  # by the weight's name
    bytes: int  # of the file, header included, or some bytes more than it will have
    dense_bytes: int
    layers: tuple[LayerRow, ...]
    errors: Mapping[str, float]  # relative squared error of the network's outputs, that each layer is to cause

    @property
    def output_error(self) -> float:
        """The relative squared error `||y - y'||² / ||y||²` of the network's outputs, all layers together."""
        return sum(self.errors.values())

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the network in fp32."""
        return self.dense_bytes / self.bytes

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values, as `compress --dry-run --json` prints it."""
        rows = [row.to_json() for row in self.layers]
        for row in rows:
            del row["relative_output_error"]
            row["predicted_error"] = self.errors.get(row["name"], 0.0)
        return {
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "predicted_output_error": self.output_error,
            "layers": rows,
        }


def target_size(graph: Graph, target_bytes: int | None, target_ratio: float | None) -> int | None:
    """Return the bytes that a file may have: as given, or so many times fewer than the network has in fp32.

    Raises:
        ConfigError: both are given, or one is not positive.
    """
    if target_bytes is not None and target_ratio is not None:
        raise ConfigError("give a target size or a target ratio, not both")
    for name, value in (("size", target_bytes), ("ratio", target_ratio)):
        if value is not None and not value > 0:
            raise ConfigError(f"the target {name} must be positive, got {value}")
    return target_bytes if target_ratio is None else int(dense_bytes(graph) / target_ratio)


def make_plan(
    network: Network,
    recipe: Recipe,
    inputs: Calibration | None,
    *,
    target_bytes: int | None,
    model_of: ModelOf,
    seed: int,
    workers: Workers,
    progress: Progress,
) -> Plan:
    """Return the plan that a recipe gives, or the one with the least output error whose file has `target_bytes`.

    Args:
        network: dense.
        inputs: sensitivities are measured on some of them; None: on noise.
        model_of: makes the file to be written of a network, its choices and the layers' errors.

    Raises:
        ConfigError: the recipe does not fit the network, or no such file is possible.
    """
    choices = recipe.choose(network.graph)
    blocks = candidate_blocks(recipe, network.graph)
    if target_bytes is None:
        configs = {name: choice.codec for name, choice in choices.items()}
        blocks = {name: (codec.block,) for name, codec in configs.items() if isinstance(codec, ProductConfig)}
    some = _some_inputs(network.graph, inputs, seed)
    curves = measure_curves(network, some, blocks, seed=seed, workers=workers, progress=progress)

    def drafted(choices: Mapping[str, Choice]) -> ModelFile:
        errors = {node.name: LONGEST_ERROR for node, _ in network.graph.weighted()}
        return model_of(placeholder(network, choices), choices, errors if inputs is not None else {})

    if target_bytes is not None:
        choices = allocate(
            network, recipe, curves, target_bytes=target_bytes, size_of=lambda choices: len(dumps(drafted(choices)))
        )
    model = drafted(choices)
    by_weight = predicted_errors(choices, curves)
    # What a shared weight causes is said of its first layer.
    first = {weight.name: node.name for node, weight in reversed(list(network.graph.weighted()))}
    return Plan(
        choices=choices,
        bytes=len(dumps(model)),
        dense_bytes=dense_bytes(network.graph),
        layers=tuple(layer_rows(model)),
        errors={first[name]: error for name, error in by_weight.items()},
    )


def _some_inputs(graph: Graph, inputs: Calibration | None, seed: int) -> NDArray[np.float32]:
    if inputs is None:
        (declared,) = graph.inputs
        count = min(NOISE_INPUTS, affordable_inputs(graph, declared.default))
        return np.random.default_rng(seed).standard_normal((count, *declared.default), dtype=np.float32)
    count = min(inputs.count, affordable_inputs(graph, inputs.shape))
    step = inputs.count // count  # pictures are sorted by class: take some of many
    return inputs.read(slice(0, step * count, step))
