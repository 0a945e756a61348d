"""The learner: one layer after another, each on the inputs that the layers already compressed give it.

Two streams of activations walk through the graph side by side: X of the dense network, and X̃ of the network compressed
so far. What a method measures and batch-norm statistics come from both; its error is `||W X - Ŵ X̃||² / ||W X||²`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite, prod
from typing import Any, TypeVar
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.checkpoint import NOWHERE, Records
from pyquant.choose import Choice
from pyquant.codecs import CodedConfig, DenseConfig, ProductConfig
from pyquant.codecs.product import codebook_tensors
from pyquant.console import Progress
from pyquant.detector import CHOICES
from pyquant.errors import InputError
from pyquant.graph import Network, Node, Weight
from pyquant.learn.activations import Activations, check_room
from pyquant.learn.calibration import BATCH, Calibration
from pyquant.learn.importance import importance_of_outputs
from pyquant.learn.methods import coder_of
from pyquant.learn.methods.base import Layer, Method
from pyquant.learn.moments import (
    Moments,
    apply_epilogue,
    apply_weight,
    channel_moments,
    combine_moments,
    squared_norm,
)
from pyquant.learn.norms import Norm
from pyquant.learn.stages import Stage, peak_bytes, stages_of
from pyquant.learn.workers import Workers
from pyquant.torch_network import TorchNetwork

Floats = NDArray[np.float32]
Result = TypeVar("Result")
Train = Callable[[Network, Weight], Floats | None]  # network so far, weight -> better codebooks [M, K, d]


@dataclass(frozen=True, slots=True, kw_only=True)
class Learnt:
    """A compressed network, each layer's relative output error, and the batch norms with statistics of their own."""

    network: Network
    errors: Mapping[str, float]  # by layer; empty without calibration
    norms: Mapping[str, Norm]  # by the module path of the batch norm; those re-estimated


def learn(
    network: Network,
    choices: Mapping[str, Choice],
    *,
    seed: int,
    workers: Workers,
    method: Method,
    calibration: Calibration | None,
    norms: Mapping[str, Norm],
    progress: Progress,
    train: Train | None = None,
    records: Records = NOWHERE,
) -> Learnt:
    """Return `network`, which is dense, with its weights in the codecs of `choices` (by the weight's name).

    Without calibration all weights count the same, and batch norms and biases stay. With it, a batch norm takes up what
    coding changed of the mean and variance of its inputs, and the bias of a layer without one the mean of its error.
    They stay where nothing before them is compressed, and where several layers share them, each of which would want
    others. A weight that layers share is learnt at the first of them.

    Args:
        method: how codes are chosen, in layers of its codec; others are coded by the usual method of theirs.
        norms: the batch norms by module path, as `StateNames.norm` of the layers names them.
        train: what trains the codebooks of a layer after it was coded, before the next one is learnt, given the network
            so far; it returns better ones, or None.
        records: where each layer is saved once it is coded; what was coded before is taken from there.

    Raises:
        InputError: an output is not finite, or the temporary folder is full.
    """
    learner = _Learner(
        network, choices, seed=seed, workers=workers, method=method, norms=norms, train=train, records=records
    )
    if calibration is None:
        layers = {weight.name: (node, weight) for node, weight in reversed(list(network.graph.weighted()))}
        for done, (node, weight) in enumerate(reversed(layers.values())):
            progress("learning layers", done, len(layers))
            if learner.config(weight) is not None and not learner.restore(weight):
                learner.code(node, weight, None, centred=False)
                learner.save(weight)
        progress("learning layers", len(layers), len(layers))
    else:
        with Activations() as values:
            _Walk(learner, calibration, values, progress).run()
    return learner.result()


class _Learner:
    """The network as learnt so far, and the one step that changes it: coding a weight."""

    def __init__(
        self,
        network: Network,
        choices: Mapping[str, Choice],
        *,
        seed: int,
        workers: Workers,
        method: Method,
        norms: Mapping[str, Norm],
        train: Train | None,
        records: Records,
    ) -> None:
        self.network = network
        self.workers = workers
        self._method = method
        self.norms = norms
        self.new_norms: dict[str, Norm] = {}
        self.errors: dict[str, float] = {}
        self._choices = choices
        self._seed = seed
        self._train = train
        self._records = records
        self._tensors = dict(network.tensors)
        self._coded: dict[str, Weight] = {}
        self._measured: Mapping[str, Floats] = {}  # how much outputs count, by the weight's name

    def config(self, weight: Weight) -> CodedConfig | None:
        """Return the codec chosen for a weight, or None where it stays dense."""
        codec = self._choices[weight.name].codec
        return None if isinstance(codec, DenseConfig) else codec

    def coder(self, config: CodedConfig) -> Method:
        """Return the method that codes weights in this codec."""
        return coder_of(config, self._method)

    def is_coded(self, weight: Weight) -> bool:
        """Say whether the weight has been coded already."""
        return weight.name in self._coded

    def is_saved(self, weight: Weight) -> bool:
        """Say whether the weight was coded before the job was stopped."""
        return self._records.has(_record(weight))

    def restore(self, weight: Weight) -> bool:
        """Take up the codes and codebooks that were saved before the job was stopped; say whether there are any."""
        record = self._records.load(_record(weight))
        if record is not None:
            self._keep(weight, record.arrays)
        return record is not None

    def save(self, weight: Weight) -> None:
        """Save the codes and codebooks of a weight: with them, all else of its layer can be measured again."""
        coded = Network(graph=self.network.graph, tensors=self._tensors).tensors_of(self._coded[weight.name])
        self._records.save(_record(weight), {}, coded)

    def code(self, node: Node, weight: Weight, measured: Any | None, *, centred: bool) -> None:
        """Learn the codes and codebooks of a layer's weight, unless it stays dense."""
        if (config := self.config(weight)) is None:
            return
        layer = Layer(
            node=node,
            weight=self.network.weight(weight),
            config=config,
            centred=centred,
            importance=self._importance(node, weight),
        )
        # A seed for each layer, so that a layer's codebook does not depend on the layers before it.
        seed = crc32(f"{self._seed} {weight.name}".encode())
        try:
            tensors = self.coder(config).code(layer, measured, seed=seed, workers=self.workers)
        except ValueError as error:
            raise InputError(f"layer '{node.name}': {error}") from error
        self._keep(weight, tensors)

    def weigh_outputs(self, calibration: Calibration, progress: Progress) -> None:
        """Measure how much each output counts, where a method makes use of that in a weight that is to be coded."""
        configs = [self.config(weight) for _, weight in self.network.graph.weighted()]
        if any(config is not None and self.coder(config).weighs_outputs for config in configs):
            network, seed, records = self.network, self._seed, self._records
            self._measured = importance_of_outputs(
                network, calibration, seed=seed, workers=self.workers, records=records, progress=progress
            )

    def _importance(self, node: Node, weight: Weight) -> Floats:
        """Return how much the square of an error counts in each output, before its scale; by default, that scale's."""
        config, scale = self.config(weight), self.network.own(node, "scale")
        if weight.name in self._measured and config is not None and self.coder(config).weighs_outputs:
            return self._measured[weight.name]
        return np.ones(weight.shape[0], np.float32) if scale is None else np.square(scale)

    def refine(self, weight: Weight) -> bool:
        """Have the codebooks trained of a weight that was just coded; say whether they changed."""
        config = self.config(weight)
        if self._train is None or not isinstance(config, ProductConfig):
            return False
        better = self._train(self.result().network, self._coded[weight.name])
        if better is not None:
            kept = codebook_tensors(better, config)
            self._tensors |= {weight.tensor(role): tensor for role, tensor in kept.items()}
        return better is not None

    def _keep(self, weight: Weight, tensors: Mapping[str, NDArray[Any]]) -> None:
        config = self.config(weight)
        assert config is not None
        del self._tensors[weight.tensor("weight")]
        self._tensors |= {weight.tensor(role): tensor for role, tensor in tensors.items()}
        self._coded[weight.name] = replace(weight, codec=config)

    def weight(self, weight: Weight) -> Floats:
        """Return a weight as it is now: decoded where it is coded."""
        coded = self._coded.get(weight.name, weight)
        return Network(graph=self.network.graph, tensors=self._tensors).weight(coded)

    def epilogue(self, node: Node) -> tuple[Floats | None, Floats | None]:
        """Return scale and bias of a layer as they are now."""
        scale, bias = (self._tensors[node.tensor(role)] if role in node.tensors else None for role in ("scale", "bias"))
        return scale, bias

    def set_norm(self, node: Node, norm: Norm) -> None:
        """Give a layer's batch norm new statistics, folded into its scale and bias."""
        for role, tensor in zip(("scale", "bias"), norm.folded(), strict=True):
            self._tensors[node.tensor(role)] = tensor
        self.new_norms[node.state.norm] = norm

    def shift_bias(self, node: Node, shift: NDArray[np.float64]) -> None:
        """Add `shift` `[O]`, an error of the layer's output before its scale, to the bias that the layer came with."""
        scale, bias = self.network.own(node, "scale"), self.network.own(node, "bias")
        assert bias is not None
        self._tensors[node.tensor("bias")] = (bias + (1.0 if scale is None else scale) * shift).astype(np.float32)

    def result(self) -> Learnt:
        """Return the network learnt."""
        nodes = []
        for node in self.network.graph.nodes:
            if node.weight is not None:
                node = replace(node, weight=self._coded.get(node.weight.name, node.weight))
            nodes.append(node)
        graph = replace(self.network.graph, nodes=tuple(nodes))
        return Learnt(network=Network(graph=graph, tensors=self._tensors), errors=self.errors, norms=self.new_norms)


class _Walk:
    """The walk of both streams through the graph, one stage after another, each on all batches."""

    def __init__(self, learner: _Learner, calibration: Calibration, values: Activations, progress: Progress) -> None:
        self._learner = learner
        self._graph = learner.network.graph
        self._calibration = calibration
        self._values = values
        self._progress = progress
        self._runner = TorchNetwork(learner.network)
        self._apart = _values_apart(learner)  # the values whose X̃ differs from X
        counts: dict[str, int] = {}
        for node in self._graph.nodes:
            for name in filter(None, (node.state.norm, node.state.bias)):
                counts[name] = counts.get(name, 0) + 1
        self._shared = {name for name, count in counts.items() if count > 1}

    def run(self) -> None:
        """Learn all layers."""
        stages = stages_of(self._graph, self._is_head)
        check_room(peak_bytes(stages, self._graph, self._calibration, self._apart))
        work, done = [self._work(stage) for stage in stages], 0
        self._learner.weigh_outputs(self._calibration, self._progress)
        self._read_inputs()
        for stage, share in zip(stages, work, strict=True):
            self._progress("learning layers", done, sum(work))
            if stage.head is not None:
                self._learn_head(stage.head)
            self._each_batch(partial(self._run_rest, stage))
            gone = {name for node in self._graph.nodes for name in (*node.inputs, *node.outputs)} - stage.kept
            self._values.drop(key for name in gone for key in (_dense(name), _coded(name)))
            done += share
        self._progress("learning layers", done, sum(work))

    def _is_head(self, node: Node) -> bool:
        if node.weight is not None:
            return node.output in self._apart or self._learner.config(node.weight) is not None
        return node.op == "affine" and node.output in self._apart and bool(node.state.norm)

    def _work(self, stage: Stage) -> int:
        """Return how much work a stage will be: less where its layer was coded before the job was stopped."""
        node, config = stage.head, None
        if node is not None and node.weight is not None and not self._learner.is_saved(node.weight):
            config = self._learner.config(node.weight)
        weighed = 0 if node is None or config is None else self._learner.coder(config).weighed_together(node, config)
        return stage.work(self._graph, self._calibration, config, weighed)

    def _each_batch(self, function: Callable[[int], Result]) -> list[Result]:
        return self._learner.workers.map(function, range(self._calibration.batches))

    def _read_inputs(self) -> None:
        declared, *others = self._graph.inputs
        self._progress("reading calibration inputs", 0, self._calibration.batches)
        for batch in range(self._calibration.batches):
            images = self._calibration.load(batch)
            self._values.put(_dense(declared.name), batch, images)
            for sizes in others:  # a detector's: images without padding
                self._values.put(_dense(sizes.name), batch, np.full((len(images), 2), images.shape[2:], np.float32))
            self._progress("reading calibration inputs", batch + 1, self._calibration.batches)

    def _read(self, name: str, batch: int, *, coded: bool) -> Tensor:
        key = _coded(name) if coded and name in self._apart else _dense(name)
        return torch.from_numpy(self._values.get(key, batch))

    def _learn_head(self, node: Node) -> None:
        if node.weight is None:
            if self._renews_norm(node):
                self._renew_norm(node, *(self._input_moments(node, coded=coded) for coded in (False, True)))
            return
        is_new = self._code(node, node.weight)
        self._measure(node, node.weight)
        if is_new:
            if self._learner.refine(node.weight):
                self._measure(node, node.weight)
            self._learner.save(node.weight)

    def _measure(self, node: Node, weight: Weight) -> None:
        """Compute what a layer makes of its inputs: its error, and the batch norm or the bias that suits it."""
        dense = torch.from_numpy(self._learner.network.weight(weight))
        coded = torch.from_numpy(self._learner.weight(weight))
        results = self._each_batch(partial(self._multiply, node, dense, coded))
        signal, error = sum(result[0] for result in results), sum(result[1] for result in results)
        if not isfinite(signal + error):
            raise InputError(f"layer '{node.name}': its outputs on the calibration inputs are not finite")
        # Outputs that are all 0 have no relative error, unless they stay 0.
        if signal > 0 or error == 0:
            self._learner.errors[node.name] = float(f"{error / signal if signal else 0.0:.6g}")
        before = combine_moments([result[2] for result in results])
        after = combine_moments([result[3] for result in results])
        if self._renews_bias(node):
            self._learner.shift_bias(node, before.mean - after.mean)
        if self._renews_norm(node):
            self._renew_norm(node, before, after)

    def _input_moments(self, node: Node, *, coded: bool) -> Moments:
        parts = self._each_batch(lambda batch: channel_moments(self._read(node.inputs[0], batch, coded=coded)))
        return combine_moments(parts)

    def _code(self, node: Node, weight: Weight) -> bool:
        """Code the weight of a layer, unless it stays dense, or was coded already; say whether it was."""
        config = self._learner.config(weight)
        if config is None or self._learner.is_coded(weight) or self._learner.restore(weight):
            return False
        method, source = self._learner.coder(config), node.inputs[0]

        def read(batches: range, *, coded: bool) -> Tensor:
            return torch.cat([self._read(source, batch, coded=coded) for batch in batches])

        def measure(batches: range) -> Any:
            dense = read(batches, coded=False) if source in self._apart else None
            return method.measure(node, config, dense, read(batches, coded=True))

        step = self._measured_together(node, weight)
        parts = [
            range(start, min(start + step, self._calibration.batches))
            for start in range(0, self._calibration.batches, step)
        ]
        measured = self._learner.workers.fold(measure, parts, method.add)
        centred = self._renews_norm(node) or self._renews_bias(node)
        self._learner.code(node, weight, measured, centred=centred)
        return True

    def _measured_together(self, node: Node, weight: Weight) -> int:
        """Return how many batches are measured at once: adding up sums takes as long for few pixels as for many."""
        pixels = prod(self._graph.infer_shapes([(1, *self._calibration.shape)])[node.output][2:])
        return max(1, prod(weight.shape[1:]) // (4 * BATCH * pixels))

    def _multiply(self, node: Node, dense: Tensor, coded: Tensor, batch: int) -> tuple[float, float, Moments, Moments]:
        """Keep W X and Ŵ X̃ of a batch; return the square sums of signal and error, and the moments of W X and Ŵ X̃."""
        y = apply_weight(node, dense, self._read(node.inputs[0], batch, coded=False))
        z = apply_weight(node, coded, self._read(node.inputs[0], batch, coded=True))
        self._values.put(_dense(node.output), batch, y.numpy())
        self._values.put(_coded(node.output), batch, z.numpy())
        return squared_norm(y), squared_norm(y - z), channel_moments(y), channel_moments(z)

    def _renews_norm(self, node: Node) -> bool:
        """Say whether a layer that is learnt or measured holds a batch norm of its own, to be re-estimated."""
        return bool(node.state.norm) and node.state.norm not in self._shared

    def _renews_bias(self, node: Node) -> bool:
        """Say whether a layer that is learnt or measured has a bias of its own, which no batch norm takes away."""
        has_bias = node.weight is not None and node.state.has_bias_of_its_own
        return has_bias and node.state.bias not in self._shared

    def _renew_norm(self, node: Node, before: Moments, after: Moments) -> None:
        self._learner.set_norm(node, self._learner.norms[node.state.norm].renewed(before, after))

    def _run_rest(self, stage: Stage, batch: int) -> None:
        """Finish a stage on one batch, in both streams, and keep what later stages read."""
        both: dict[str, Tensor] = {}  # what the streams have in common
        for coded in (False, True):
            local = dict(both)
            if stage.head is not None:
                head = stage.head
                source = head.output if head.weight is not None else head.inputs[0]
                local[head.output] = self._epilogue(head, self._read(source, batch, coded=coded), coded=coded)
            for node in stage.rest:
                if coded and node.output not in self._apart:
                    continue
                inputs = [
                    local[name] if name in local else self._read(name, batch, coded=coded) for name in node.inputs
                ]
                local[node.output] = self._runner.run_node(node, inputs)
            for name in stage.kept & (local.keys() - both.keys()):
                self._values.put(_coded(name) if coded else _dense(name), batch, local[name].numpy())
            both = {name: value for name, value in local.items() if name not in self._apart}

    def _epilogue(self, node: Node, x: Tensor, *, coded: bool) -> Tensor:
        if coded:
            return apply_epilogue(*self._learner.epilogue(node), x)
        network = self._learner.network
        return apply_epilogue(network.own(node, "scale"), network.own(node, "bias"), x)


def _values_apart(learner: _Learner) -> set[str]:
    """Return the values that compressed weights come before, so that X̃ is not X.

    A detector's boxes are those of the dense network in both streams: what is found in others could not be compared.
    """
    apart: set[str] = set()
    for node in learner.network.graph.nodes:
        changed = node.weight is not None and learner.config(node.weight) is not None
        if node.op not in CHOICES and (changed or apart.intersection(node.inputs)):
            apart.update(node.outputs)
    return apart


def _record(weight: Weight) -> str:
    return f"layer {weight.name}"


def _dense(value: str) -> str:
    return f"dense {value}"


def _coded(value: str) -> str:
    return f"coded {value}"
