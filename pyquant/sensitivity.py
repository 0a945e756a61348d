"""Sensitivities: how much of a network's output error each layer's coding will cause, measured on a few inputs.

For every weight two things are measured. A rate-distortion curve: the error of the weight itself for a few numbers of
centroids, steps of grids and shares of weights that are kept (`pyquant.distortion`). And a sensitivity: the weight is
coded for the trial, everything after it runs again, and the network's outputs are compared with those before. Errors of
several layers are taken to add up.
Of a detector, on the boxes that the dense network finds, what it would choose among boxes by is compared.

Dimensions: B blocks · K centroids · d weights of a block · N inputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import exp, log, prod
from typing import Any
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import block_count
from pyquant.codecs import CodedConfig, DenseConfig, ScalarConfig, SparseConfig
from pyquant.console import Progress
from pyquant.detector import compared_outputs, is_detector, tensor_parts
from pyquant.distortion import (
    OVERFIT,
    RUN,
    TRIAL_SHARES,
    Block,
    Floats,
    grid_rates,
    rate_distortion,
    share_errors,
    with_centroids,
)
from pyquant.errors import InputError
from pyquant.graph import Graph, Network, Node
from pyquant.learn.moments import squared_norm
from pyquant.learn.workers import Workers
from pyquant.torch_network import TorchNetwork, found_boxes

SAMPLED_OUTPUTS = 32  # of a layer, to compare the shapes of blocks by what they do to its outputs
USUAL_ERROR = 0.2  # relative, of a weight: where sensitivities are measured, as far as the candidates allow
# M additive codebooks do what one of K^(M^0.87) centroids would: measured on 3x3 layers of a ResNet-18, 0.86 to 0.89.
ADDITIVE_EXPONENT = 0.87
K_MEANS_WORK = 10**10  # multiply-accumulates in whose time a weight's curves are measured
WORK_MACS = 5e11  # multiply-accumulates that all trials may take together
ACTIVATION_BYTES = 1 << 30
MIN_INPUTS, MAX_INPUTS = 4, 128
MIN_PICTURES = 3  # of a detector: each has many times the pixels, and many boxes
# Single weights make up for each other's errors better than blocks do: measured on four layers of a ResNet-18 by the
# true error of their outputs at 0.5 to 3 bits per weight, 0.84 to 0.98 of 3x3 ones, about 1 of 1x1 ones.
GRID_FACTOR = 0.95
# Where codes make up for each other's errors, with all correlations of a layer's inputs, about this power of a weight's
# relative error e is left: in layers of a ResNet-18 0.11 to 0.5 times e, more of larger errors, which is e^1.4. Whole
# networks of two sizes came out best with 1.7, of 1, 1.3, 1.7 and 2.3.
MADE_UP_EXPONENT = 1.6
# Of dropping the smallest weights, those that are kept leave about half when they make up for it, however small the
# error was: measured on layers of a ResNet-18 at 25 and 50 %, 0.19 and 0.24 of one, 0.46 to 0.52 of two, 0.76 and 0.79
# of another. The fewer are kept, the less they can do: where all are dropped, all of the error is left.
LEAST_FACTOR = 1e-30  # of an error: of a weight that does not count at all
MIN_VALUES = 32  # of a channel, for its mean and variance to say something


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What coding a weight in blocks of one shape costs, for any number of centroids."""

    num_blocks: int
    log_centroids: tuple[float, ...]  # ascending, the first one 0
    log_errors: tuple[float, ...]  # of the weight, relative, were there endlessly many blocks of its kind
    factor: float  # relative error of the network's outputs for each of the weight's ..
    exponent: float = 1.0  # .. which is raised to this power before
    rates: tuple[float, ...] = ()  # bits per weight, ascending, of blocks of one weight: what their grids take coded ..
    log_rate_errors: tuple[float, ...] = ()  # .. and the errors of these
    shares: tuple[float, ...] = ()  # of weights that are kept, ascending, of blocks of one weight ..
    log_share_errors: tuple[float, ...] = ()  # .. and the errors of dropping the smallest others, anywhere ..
    log_run_errors: tuple[float, ...] = ()  # .. and in runs of neighbours

    def error(self, config: CodedConfig, rounding: float = 0.0) -> float:
        """Return the relative squared error that the network's outputs get from this weight alone.

        Args:
            config: how the weight is coded.
            rounding: more of the weight's own error than coding causes.
        """
        if isinstance(config, SparseConfig) and self.exponent > 1:
            rounded = float(self.weight_error(config.grids) ** self.exponent)
            dropped = self._dropped(config)
            return self.factor * (dropped * (1 + dropped) / 2 + rounded)
        return self.factor * float((self.weight_error(config) + rounding) ** self.exponent)

    def weight_error(self, config: CodedConfig) -> float:
        """Return `||W - Ŵ||² / ||W||²` for a codec that cuts the weight into these blocks.

        The levels of a grid without a rate do about what as many centroids would.
        """
        if isinstance(config, ScalarConfig) and config.rate:
            return GRID_FACTOR * exp(_interpolated(config.rate, self.rates, self.log_rate_errors))
        if isinstance(config, ScalarConfig):
            return exp(_interpolated(log(config.centroids), self.log_centroids, self.log_errors))
        if isinstance(config, SparseConfig):
            return self._dropped(config) + self.weight_error(config.grids)
        if config.centroids >= self.num_blocks:
            return 0.0
        books = config.codebooks
        reach = log(config.centroids) * books**ADDITIVE_EXPONENT
        if config.rate:  # as of so many fewer centroids
            reach *= min(1.0, log(2) * config.rate * config.dim / (books * log(config.centroids)))
        value = _interpolated(reach, self.log_centroids, self.log_errors)
        return exp(value) * float(max(1 - books * config.centroids / self.num_blocks, 1e-3) ** OVERFIT)

    def _dropped(self, config: SparseConfig) -> float:
        """Return the relative squared error of dropping the smallest weights, which nothing makes up for.

        Of N in M, it is near the geometric mean of the others (within 10 % for normal, Laplacian and Student's t5
        numbers at 1:4 and 2:4).
        """
        anywhere = _interpolated(config.kept, self.shares, self.log_share_errors)
        runs = _interpolated(config.kept, self.shares, self.log_run_errors)
        return exp(runs if config.run > 1 else (anywhere + runs) / 2 if config.of else anywhere)


def _interpolated(x: float, xs: Sequence[float], ys: Sequence[float]) -> float:
    """Return the value at x of the line through points, which goes on straight behind the last one."""
    if x <= xs[-1]:
        return float(np.interp(x, xs, ys))
    return ys[-1] + (ys[-1] - ys[-2]) / (xs[-1] - xs[-2]) * (x - xs[-1])


Curves = Mapping[tuple[str, Block], Curve]  # by the weight's name and the shape of a block


def measure_curves(
    network: Network,
    inputs: Floats,
    blocks: Mapping[str, Sequence[Block]],
    *,
    seed: int,
    workers: Workers,
    progress: Progress,
) -> dict[tuple[str, Block], Curve]:
    """Return the curves of a dense network's weights, for all shapes of blocks that are asked for.

    Batch norms and biases are re-estimated, as the learner does: what a coded layer and the layers behind it compute is
    given the means that it had before, and behind batch norms the variances too. The outputs are compared as they are.

    Args:
        network: a classifier or the like, or a detector that finds few boxes (`pyquant.detector.for_learning`).
        inputs: `[N, C, H, W]`; `affordable_inputs` says how many keep to the budget of work and memory.
        blocks: the shapes of blocks by the weight's name; weights that are not named are left alone.

    Raises:
        InputError: the network's outputs are not finite.
    """
    # By a worker, whose one thread gives the same bits everywhere.
    (trials,) = workers.map(lambda seed: _Trials(network, inputs, seed), [seed])
    work = {name: work for name, work in _trial_work(network.graph, inputs.shape).items() if blocks.get(name)}
    names, done = list(work), 0
    result: dict[tuple[str, Block], Curve] = {}
    # A few weights at a time, so that progress shows; results come back in order.
    for start in range(0, len(names), 8):
        progress("measuring sensitivities", done, sum(work.values()))
        part = names[start : start + 8]
        for curves in workers.map(lambda name: trials.curves(name, blocks[name]), part):
            result |= curves
        done += sum(work[name] for name in part)
    progress("measuring sensitivities", done, sum(work.values()))
    return result


def made_up_for(curves: Curves) -> dict[tuple[str, Block], Curve]:
    """Return the curves for methods whose codes make up for each other's errors.

    Of the shapes of blocks, all have the same factor then: the geometric mean of those that were measured.
    """
    factors: dict[str, list[float]] = {}
    for (name, _), curve in curves.items():
        factors.setdefault(name, []).append(curve.factor)
    means = {name: float(np.exp(np.log(np.maximum(some, LEAST_FACTOR)).mean())) for name, some in factors.items()}
    return {
        (name, block): replace(curve, factor=means[name], exponent=MADE_UP_EXPONENT)
        for (name, block), curve in curves.items()
    }


def curves_to_json(curves: Curves) -> dict[str, Any]:
    """Return curves as plain JSON values."""
    return {"curves": [{"name": name, "block": block, **asdict(curve)} for (name, block), curve in curves.items()]}


def curves_from_json(value: Mapping[str, Any]) -> dict[tuple[str, Block], Curve]:
    """Return the curves that `curves_to_json` described."""
    result: dict[tuple[str, Block], Curve] = {}
    for entry in value["curves"]:
        fields: dict[str, Any] = {key: tuple(old) if isinstance(old, list) else old for key, old in entry.items()}
        name, block = fields.pop("name"), fields.pop("block")
        result[name, block] = Curve(**fields)
    return result


def _trial_work(graph: Graph, shape: tuple[int, ...]) -> dict[str, int]:
    """Return the multiply-accumulates of each weight's trial, by its name: the layers after it run again."""
    macs = graph.macs([shape])
    result: dict[str, int] = {}
    total = K_MEANS_WORK
    for node, weight in reversed(list(graph.weighted())):
        total += macs[node.name]
        result[weight.name] = total
    return {weight.name: result[weight.name] for _, weight in graph.weighted()}


def affordable_inputs(graph: Graph, shape: Sequence[int]) -> int:
    """Return how many inputs of `shape` (without the batch) the trials may use."""
    shapes = graph.infer_shapes([(1, *shape)])
    macs = graph.macs([(1, *shape)])
    # Each weight's trial runs the layers after it: on average half of the network, at most all of it.
    work = sum(macs.values()) * (len(macs) + 4) / 2
    held = 4 * sum(prod(value) for value in shapes.values())
    least = MIN_PICTURES if is_detector(graph) else MIN_INPUTS
    return int(max(least, min(MAX_INPUTS, WORK_MACS // max(work, 1), ACTIVATION_BYTES // held)))


class _Trials:
    """The dense network's values on the inputs, and what becomes of its outputs when one weight is coded."""

    def __init__(self, network: Network, images: Floats, seed: int) -> None:
        self._compared = compared_outputs(network.graph)
        inputs = [torch.from_numpy(np.ascontiguousarray(images))]
        if is_detector(network.graph):
            inputs += found_boxes(network, inputs[0])
            network = tensor_parts(network)
        self._network = network
        self._graph = network.graph
        self._seed = seed
        self._runner = TorchNetwork(network)
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}  # of what batch norms and biases give
        self._values = {declared.name: x for declared, x in zip(self._graph.inputs, inputs, strict=True)}
        for node in self._graph.nodes:
            read = [self._values[name] for name in node.inputs]
            self._values[node.output] = out = self._runner.run_node(node, read)
            if self._is_renewed(node) and out[:, 0].numel() >= MIN_VALUES:
                self._moments[node.output] = _moments(out)
        if not all(bool(torch.isfinite(self._values[name]).all()) for name in self._graph.outputs):
            raise InputError("the network's outputs on the calibration inputs are not finite")

    def curves(self, name: str, blocks: Sequence[Block]) -> dict[tuple[str, Block], Curve]:
        """Return the curves of one weight."""
        nodes = [node for node, weight in self._graph.weighted() if weight.name == name]
        assert nodes[0].weight is not None
        weight = self._network.weight(nodes[0].weight)
        rng = np.random.default_rng(crc32(f"{self._seed} {name}".encode()))
        found = {block: rate_distortion(weight, block, rng) for block in blocks}
        # Some outputs are enough to compare the shapes of blocks, by what they do to the weight and to the layer.
        rows = np.sort(rng.permutation(len(weight))[:SAMPLED_OUTPUTS])
        coded = {block: with_centroids(weight[rows], block, found[block].centroids) for block in blocks}
        in_weight = {block: _relative(_square(coded[block] - weight[rows]), _square(weight[rows])) for block in blocks}
        in_layer = {block: self._layer_error(nodes[0], weight, rows, coded[block]) for block in blocks}
        # The trial's error should be like those to come: neither negligible nor all there is.
        usual = min(blocks, key=lambda block: abs(log(max(in_weight[block], 1e-9) / USUAL_ERROR)))
        in_network = self._output_error(nodes, with_centroids(weight, usual, found[usual].centroids))
        result = {}
        for block in blocks:
            here = _relative(in_network * in_layer[block], in_layer[usual])
            rates, log_rate_errors = grid_rates(weight, rng) if prod(block) == 1 else ((), ())
            anywhere, runs = (share_errors(weight, run, rng) if prod(block) == 1 else () for run in (1, RUN))
            result[name, block] = Curve(
                num_blocks=block_count(weight.shape, block),
                log_centroids=found[block].log_centroids,
                log_errors=found[block].log_errors,
                factor=_relative(here, in_weight[block]),
                rates=rates,
                log_rate_errors=log_rate_errors,
                shares=TRIAL_SHARES if anywhere else (),
                log_share_errors=anywhere,
                log_run_errors=runs,
            )
        return result

    def _is_renewed(self, node: Node) -> bool:
        """Say whether a layer is given its means again: by a batch norm, or a bias, save those of the outputs."""
        has_bias = node.weight is not None and node.state.has_bias_of_its_own
        return bool(node.state.norm) or (has_bias and node.output not in self._graph.outputs)

    def _output_error(self, nodes: Sequence[Node], coded: Floats) -> float:
        """Return the relative squared error of the network's outputs when these layers have the weight `coded`.

        Where there are groups of outputs to compare, it is the mean of theirs.
        """
        trial = _WithWeight(self._runner, nodes, torch.from_numpy(coded))
        changed: dict[str, Tensor] = {}
        first = {node.name for node in nodes}
        last_reader = {name: node.name for node in self._graph.nodes for name in node.inputs}
        for node in self._graph.nodes:
            if node.name in first or any(name in changed for name in node.inputs):
                out = trial.run(node, [changed.get(name, self._values[name]) for name in node.inputs])
                if node.output in self._moments:
                    out = _renewed(node, out, *self._moments[node.output])
                changed[node.output] = out
            for name in [name for name in node.inputs if last_reader[name] == node.name]:
                if name not in self._graph.outputs:
                    changed.pop(name, None)
        errors = []
        for group in self._compared:
            pairs = [(self._values[name], changed.get(name, self._values[name])) for name in group]
            errors.append(_relative(sum(squared_norm(a - b) for a, b in pairs), sum(squared_norm(a) for a, _ in pairs)))
        return sum(errors) / len(errors)

    def _layer_error(self, node: Node, weight: Floats, rows: NDArray[np.int64], coded: Floats) -> float:
        """Return the relative squared error of some outputs of a layer, where these rows of its weight are `coded`."""
        whole = weight.copy()
        whole[rows] = coded
        if node.attributes.get("groups", 1) == 1:
            # Only these outputs: the layer without its epilogue, with fewer rows.
            assert node.weight is not None
            node = replace(node, weight=replace(node.weight, shape=(len(rows), *weight.shape[1:])), tensors=())
            before, after = weight[rows], coded
        else:
            before, after = weight, whole
        read = [self._values[name] for name in node.inputs]
        y, z = (_WithWeight(self._runner, [node], torch.from_numpy(w)).run(node, read) for w in (before, after))
        error, signal = z - y, y
        if node.output in self._moments:
            dims = [axis for axis in range(y.dim()) if axis != 1]
            error, signal = (value - value.mean(dim=dims, keepdim=True) for value in (error, signal))
        return _relative(squared_norm(error), squared_norm(signal))


class _WithWeight:
    """Runs layers, some of them with another weight."""

    def __init__(self, runner: TorchNetwork, nodes: Sequence[Node], weight: Tensor) -> None:
        self._runner = runner
        self._nodes = {node.name: node for node in nodes}
        self._weight = weight

    def run(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Return what a layer makes of these inputs."""
        if node.name not in self._nodes:
            return self._runner.run_node(node, inputs)
        own = self._nodes[node.name]
        assert own.weight is not None
        weight = replace(own.weight, codec=DenseConfig())
        graph = Graph(inputs=(), nodes=(replace(own, weight=weight),), outputs=())
        tensors = {weight.tensor("weight"): self._weight.numpy()}
        for role in own.tensors:
            tensor = self._runner.own(own, role)
            assert tensor is not None
            tensors[own.tensor(role)] = tensor.numpy()
        return TorchNetwork(Network(graph=graph, tensors=tensors)).run_node(graph.nodes[0], inputs)


def _renewed(node: Node, out: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Return `out` with channels (axis 1) of this mean and, behind a batch norm, this variance `[C]`."""
    now_mean, now_variance = _moments(out)
    shape = (1, -1) + (1,) * (out.dim() - 2)
    if not node.state.norm:
        return out + (mean - now_mean).view(shape)
    factor = torch.where(now_variance > 0, (variance / now_variance.clamp(min=1e-30)).sqrt(), 1.0)
    return torch.addcmul((mean - now_mean * factor).view(shape), out, factor.view(shape))


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean and the variance of each channel (axis 1), `[C]`."""
    flat = x.flatten(2) if x.dim() > 2 else x[..., None]
    mean = flat.mean(dim=(0, 2))
    # Sums along the last axis first: many times quicker than torch.var_mean over several axes.
    squares = torch.linalg.vector_norm(flat, dim=2).square().sum(dim=0) / (flat.shape[0] * flat.shape[2])
    return mean, (squares - mean.square()).clamp(min=0)


def _square(x: Floats) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _relative(error: float, signal: float) -> float:
    return error / signal if signal > 0 else 0.0
