"""Plans: what compressing is to give, before it is done: each layer's codec, the file's size and the outputs' error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.allocate import (
    allocate,
    check_operations,
    drafted,
    errors_by_codec,
    possible_sizes,
    predicted_errors,
)
from pyquant.candidates import Candidates, candidate_blocks
from pyquant.checkpoint import NOWHERE, Records
from pyquant.choose import Choice, Recipe
from pyquant.codecs import DenseConfig
from pyquant.console import Progress
from pyquant.distortion import Block
from pyquant.file import ModelFile, planned_bytes, planned_tensors
from pyquant.graph import Graph, Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.workers import Workers
from pyquant.rates import sharing, with_shared_rates
from pyquant.report import LayerRow, bit_operations, dense_bytes, layer_rows
from pyquant.sensitivity import Curve, affordable_inputs, curves_from_json, curves_to_json, made_up_for, measure_curves

NOISE_INPUTS = 32  # inputs of noise that stand in for calibration inputs where there are none
SENSITIVITIES = "sensitivities"  # a record
LONGEST_ERROR = 0.000123456  # no error of a layer takes more characters in a file

# Of a network, its choices and the layers' errors, both by name, and the target's bytes.
ModelOf = Callable[[Network, Mapping[str, Choice], Mapping[str, float], int | None], ModelFile]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What compressing with certain choices is to give."""

    choices: Mapping[str, Choice]  # by the weight's name
    bit_operations: int  # for one input
    bytes: int  # of the file, or some more than it will have: codes at a rate and masks alone count entropy-coded
    dense_bytes: int
    layers: tuple[LayerRow, ...]
    errors: Mapping[str, float]  # relative squared error of the network's outputs, that each layer is to cause
    # The same by codec, of the best that each could do in as many bytes; {} where the recipe alone decided.
    errors_by_codec: Mapping[str, Mapping[str, float]]

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
            row["predicted_error_by_codec"] = dict(self.errors_by_codec.get(row["name"], {}))
        return {
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "bit_operations": self.bit_operations,
            "predicted_output_error": self.output_error,
            "layers": rows,
        }


class Planner:
    """Makes plans for one network; sensitivities are measured once, for all plans, when the first one is made."""

    def __init__(
        self,
        network: Network,
        recipe: Recipe,
        inputs: Calibration | None,
        *,
        lesson: Network,
        shape: tuple[int, int, int],
        candidates: Candidates,
        max_operations: int | None,
        makes_up: bool,
        model_of: ModelOf,
        seed: int,
        progress: Progress,
    ) -> None:
        """Prepare to make plans.

        Args:
            network: dense.
            recipe: of which only the rules count where a target is given.
            inputs: sensitivities are measured on some of them; None: on noise.
            lesson: on which sensitivities are measured: `network`, or a detector that finds less.
            shape: of the noise, `C, H, W`.
            candidates: what a target chooses from.
            max_operations: the most bit operations for one input; None: any number.
            makes_up: whether codes are to make up for each other's errors.
            model_of: makes the file to be written.
            seed: of every random choice.
            progress: called while they are measured.

        Raises:
            ConfigError: so few bit operations are not possible.
        """
        self._network = network
        self._recipe = recipe
        self._inputs = inputs
        self._lesson = lesson
        self._shape = shape
        self._candidates = candidates
        self._max_operations = max_operations
        self._makes_up = makes_up
        self._model_of = model_of
        self._seed = seed
        self._progress = progress
        self.records: Records = NOWHERE  # where sensitivities are saved
        self._curves: dict[tuple[str, Block], Curve] = {}
        self._plans: dict[int | None, Plan] = {}  # by target
        if max_operations is not None:
            check_operations(network, recipe, candidates, max_operations)

    def possible_sizes(self) -> tuple[int, int]:
        """Return the bytes of the smallest and of the largest file that a size target can give; nothing is measured."""
        largest = dense_bytes(self._network.graph)  # a target takes up its digits in the file
        return possible_sizes(self._network, self._recipe, self._candidates, partial(self._size, target_bytes=largest))

    def plan(self, target_bytes: int | None, workers: Workers) -> Plan:
        """Return the plan that the recipe gives, or the one with the least output error that keeps to its targets.

        Raises:
            ConfigError: the recipe does not fit the network, or no such plan is possible.
        """
        if target_bytes not in self._plans:
            self._plans[target_bytes] = self._made(target_bytes, workers)
        return self._plans[target_bytes]

    def choices(self, workers: Workers) -> dict[str, Choice]:
        """Return what the recipe chooses, by the weight's name; rates that layers share are shared out.

        Where bit operations are bounded, it is the plan's choices.
        """
        if self._max_operations is not None:
            return dict(self.plan(None, workers).choices)
        choices = self._recipe.choose(self._network.graph)
        blocks = {name: (config.block,) for config, names in sharing(choices) for name in names}
        return with_shared_rates(choices, self._network.graph, self._measured(blocks, workers)) if blocks else choices

    def _made(self, target_bytes: int | None, workers: Workers) -> Plan:
        by_codec: dict[str, dict[str, float]] = {}
        if target_bytes is None and self._max_operations is None:
            choices = self.choices(workers)
            configs = {name: choice.codec for name, choice in choices.items()}
            curves = self._measured(
                {name: (codec.block,) for name, codec in configs.items() if not isinstance(codec, DenseConfig)}, workers
            )
        else:
            curves = self._measured(candidate_blocks(self._recipe, self._network.graph), workers)
            size_of = partial(self._size, target_bytes=target_bytes)
            choices = allocate(
                self._network,
                self._recipe,
                curves,
                target_bytes=target_bytes,
                candidates=self._candidates,
                size_of=size_of,
                max_operations=self._max_operations,
            )
            by_codec = errors_by_codec(self._network, self._recipe, curves, self._candidates, choices)
        model = self._draft(choices, target_bytes)
        sizes = {name: tensor.nbytes for name, tensor in model.network.tensors.items()} | planned_tensors(model.network)
        by_weight = predicted_errors(choices, curves)
        # What a shared weight causes is said of its first layer.
        first = {weight.name: node.name for node, weight in reversed(list(self._network.graph.weighted()))}
        return Plan(
            choices=choices,
            bit_operations=bit_operations(model.network.graph),
            bytes=planned_bytes(model),
            dense_bytes=dense_bytes(self._network.graph),
            layers=tuple(layer_rows(model, sizes)),
            errors={first[name]: error for name, error in by_weight.items()},
            errors_by_codec={first[name]: errors for name, errors in by_codec.items()},
        )

    def _measured(self, blocks: Mapping[str, Sequence[Block]], workers: Workers) -> dict[tuple[str, Block], Curve]:
        """Return the curves of these shapes of blocks, all measured together, unless they were before."""
        wanted = {(name, block) for name, shapes in blocks.items() for block in shapes}
        if not self._curves and (record := self.records.load(SENSITIVITIES)) is not None:
            self._curves = curves_from_json(record.values)
        if not wanted <= self._curves.keys():
            self._curves = measure_curves(
                self._lesson,
                some_inputs(self._lesson.graph, self._inputs, self._shape, self._seed),
                blocks,
                seed=self._seed,
                workers=workers,
                progress=self._progress,
            )
            self.records.save(SENSITIVITIES, curves_to_json(self._curves), {})
        curves = {key: self._curves[key] for key in self._curves if key in wanted}
        return made_up_for(curves) if self._makes_up else curves

    def _draft(self, choices: Mapping[str, Choice], target_bytes: int | None) -> ModelFile:
        """Return the file of these choices, with zeros for codes and codebooks."""
        errors = {node.name: LONGEST_ERROR for node, _ in self._network.graph.weighted()}
        network = drafted(self._network, choices)
        return self._model_of(network, choices, errors if self._inputs is not None else {}, target_bytes)

    def _size(self, choices: Mapping[str, Choice], *, target_bytes: int | None) -> int:
        return planned_bytes(self._draft(choices, target_bytes))


def some_inputs(
    graph: Graph, inputs: Calibration | None, shape: tuple[int, int, int], seed: int
) -> NDArray[np.float32]:
    """Return the inputs `[N, C, H, W]` on which sensitivities are measured: as many as may be, or noise of `shape`."""
    if inputs is None:
        count = min(NOISE_INPUTS, affordable_inputs(graph, shape))
        return np.random.default_rng(seed).standard_normal((count, *shape), dtype=np.float32)
    count = affordable_inputs(graph, inputs.shape)
    return next(inputs.evenly(count, count))
