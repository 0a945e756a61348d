"""Sensitivities: how much of a network's output error each layer's coding will cause, measured on a few inputs.

For every weight two things are measured. A rate-distortion curve: the error of the weight itself for a few numbers of
centroids, by k-means on a sample of its blocks, and for grids of a few steps. And a sensitivity: the weight is coded
for the trial, everything after it runs again, and the network's outputs are compared with those before. Errors of
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
from pyquant.codecs import CodedConfig, DenseConfig, ProductConfig, ScalarConfig
from pyquant.codecs.product import blocks_from_weight, weight_from_blocks
from pyquant.console import Progress
from pyquant.detector import compared_outputs, is_detector, tensor_parts
from pyquant.errors import InputError
from pyquant.graph import Graph, Network, Node
from pyquant.learn.workers import Workers
from pyquant.torch_network import TorchNetwork, found_boxes

Floats = NDArray[np.float32]
Block = tuple[int, int, int]

TRIAL_CENTROIDS = (16, 64, 256)  # at which a weight's curve is measured; it is extrapolated beyond
SAMPLED_BLOCKS = 8192  # of a weight, for its curve
POINTS_AT_ONCE = 8192  # whose distances to all centroids are held in memory
ITERATIONS = 6  # of k-means for a trial
SAMPLED_OUTPUTS = 32  # of a layer, to compare the shapes of blocks by what they do to its outputs
USUAL_ERROR = 0.2  # relative, of a weight: where sensitivities are measured, as far as the candidates allow
OVERFIT = 1.25  # exponent of (1 - K/B): centroids fit the blocks they were learnt on better than others
# M additive codebooks do what one of K^(M^0.87) centroids would: measured on 3x3 layers of a ResNet-18, 0.86 to 0.89.
ADDITIVE_EXPONENT = 0.87
K_MEANS_WORK = 10**10  # multiply-accumulates in whose time a weight's curves are measured
WORK_MACS = 5e11  # multiply-accumulates that all trials may take together
ACTIVATION_BYTES = 1 << 30
MIN_INPUTS, MAX_INPUTS = 4, 128
MIN_PICTURES = 3  # of a detector: each has many times the pixels, and many boxes
TRIAL_STEPS = (4.0, 2.83, 2.0, 1.41, 1.0, 0.5, 0.25, 0.125)  # of a grid, in units of a weight's numbers
ROUNDED_UP = 0.4  # added to steps before they are rounded down: where codes have a price, a level begins at 0.6 of one
SAMPLED_NUMBERS = 65536  # of a weight, for its grids
# Single weights make up for each other's errors better than blocks do: measured on four layers of a ResNet-18 by the
# true error of their outputs at 0.5 to 3 bits per weight, 0.84 to 0.98 of 3x3 ones, about 1 of 1x1 ones.
GRID_FACTOR = 0.95
MIN_VALUES = 32  # of a channel, for its mean and variance to say something


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """What coding a weight in blocks of one shape costs, for any number of centroids."""

    num_blocks: int
    log_centroids: tuple[float, ...]  # ascending, the first one 0
    log_errors: tuple[float, ...]  # of the weight, relative, were there endlessly many blocks of its kind
    factor: float  # relative error of the network's outputs for each of the weight's
    rates: tuple[float, ...] = ()  # bits per weight, ascending, of blocks of one weight: what their grids take coded ..
    log_rate_errors: tuple[float, ...] = ()  # .. and the errors of these

    def error(self, config: CodedConfig) -> float:
        """Return the relative squared error that the network's outputs get from this weight alone."""
        return self.factor * self.weight_error(config)

    def weight_error(self, config: CodedConfig) -> float:
        """Return `||W - Ŵ||² / ||W||²` for a codec that cuts the weight into these blocks.

        The levels of a grid without a rate do about what as many centroids would.
        """
        if isinstance(config, ScalarConfig) and config.rate:
            return GRID_FACTOR * exp(_interpolated(config.rate, self.rates, self.log_rate_errors))
        if config.centroids >= self.num_blocks:
            return 0.0
        books = config.codebooks if isinstance(config, ProductConfig) else 1
        reach = log(config.centroids) * books**ADDITIVE_EXPONENT
        if isinstance(config, ProductConfig) and config.rate:  # as of so many fewer centroids
            reach *= min(1.0, log(2) * config.rate * config.dim / (books * log(config.centroids)))
        value = _interpolated(reach, self.log_centroids, self.log_errors)
        return exp(value) * float(max(1 - books * config.centroids / self.num_blocks, 1e-3) ** OVERFIT)


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
        found = {block: _rate_distortion(weight, block, rng) for block in blocks}
        # Some outputs are enough to compare the shapes of blocks, by what they do to the weight and to the layer.
        rows = np.sort(rng.permutation(len(weight))[:SAMPLED_OUTPUTS])
        coded = {block: _coded(weight[rows], block, found[block].centroids) for block in blocks}
        in_weight = {block: _relative(_square(coded[block] - weight[rows]), _square(weight[rows])) for block in blocks}
        in_layer = {block: self._layer_error(nodes[0], weight, rows, coded[block]) for block in blocks}
        # The trial's error should be like those to come: neither negligible nor all there is.
        usual = min(blocks, key=lambda block: abs(log(max(in_weight[block], 1e-9) / USUAL_ERROR)))
        in_network = self._output_error(nodes, _coded(weight, usual, found[usual].centroids))
        result = {}
        for block in blocks:
            here = _relative(in_network * in_layer[block], in_layer[usual])
            rates, log_rate_errors = _grid_rates(weight, rng) if prod(block) == 1 else ((), ())
            result[name, block] = Curve(
                num_blocks=block_count(weight.shape, block),
                log_centroids=found[block].log_centroids,
                log_errors=found[block].log_errors,
                factor=_relative(here, in_weight[block]),
                rates=rates,
                log_rate_errors=log_rate_errors,
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
            errors.append(_relative(sum(_energy(a - b) for a, b in pairs), sum(_energy(a) for a, _ in pairs)))
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
        return _relative(_energy(error), _energy(signal))


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


@dataclass(frozen=True, slots=True)
class _Found:
    """A weight's errors at a few numbers of centroids, and the centroids of the last."""

    log_centroids: tuple[float, ...]
    log_errors: tuple[float, ...]
    centroids: Floats  # [K, d]


def _rate_distortion(weight: Floats, block: Block, rng: np.random.Generator) -> _Found:
    flat = blocks_from_weight(weight, block).reshape(-1, prod(block))
    sample = torch.from_numpy(flat[np.sort(rng.permutation(len(flat))[:SAMPLED_BLOCKS])])
    energy = _energy(sample)
    if energy == 0:  # all weights are 0: coding costs nothing
        return _Found((0.0, 1.0), (-50.0, -51.0), np.zeros((1, flat.shape[1]), np.float32))
    log_centroids, log_errors = [0.0], [log(max(_energy(sample - sample.mean(dim=0)) / energy, 1e-20))]
    centroids = sample.mean(dim=0, keepdim=True)
    for count in TRIAL_CENTROIDS:
        if 2 * count > len(sample):
            break
        start = sample[torch.from_numpy(np.sort(rng.permutation(len(sample))[:count]))]
        centroids, error = _k_means(sample, start)
        endless = error / energy / (1 - count / len(sample)) ** OVERFIT
        log_centroids.append(log(count))
        # Never more than with fewer centroids: bad luck in a start must not make a curve rise.
        log_errors.append(min(log(max(endless, 1e-20)), log_errors[-1] - 1e-6))
    if len(log_centroids) == 1:  # hardly any blocks: as if each doubling of the centroids halved the error
        log_centroids, log_errors = [0.0, log(2)], [log_errors[0], log_errors[0] - log(2)]
    return _Found(tuple(log_centroids), tuple(log_errors), centroids.numpy())


def _grid_rates(weight: Floats, rng: np.random.Generator) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the bits per weight that grids of some steps take when entropy-coded, and the logarithms of their errors.

    As of entropy-constrained grids with a dead zone (Sullivan, 1996), the levels of whose outputs suit them best.
    """
    flat = weight.reshape(-1)
    some = torch.from_numpy(flat[np.sort(rng.permutation(flat.size)[:SAMPLED_NUMBERS])])
    energy = _energy(some)
    if energy == 0:
        return (0.0, 1.0), (-50.0, -51.0)
    unit = (energy / some.numel()) ** 0.5
    rates, log_errors = [0.0], [0.0]
    for factor in TRIAL_STEPS:
        levels = (some.abs() / (factor * unit) + ROUNDED_UP).floor() * some.sign()
        counts = torch.unique(levels, return_counts=True)[1].double()
        rate = float((counts * (counts.sum() / counts).log2()).sum() / counts.sum())
        explained = float((levels * some).sum()) ** 2 / max(_energy(levels), 1e-30)
        error = log(max(1 - explained / energy, 1e-20))
        if rate > rates[-1] + 1e-3 and error < log_errors[-1]:
            rates.append(rate)
            log_errors.append(error)
    if len(rates) == 1:
        return (0.0, 1.0), (0.0, -2 * log(2))
    return tuple(rates), tuple(log_errors)


def _k_means(points: Tensor, centroids: Tensor) -> tuple[Tensor, float]:
    """Return the centroids `[K, d]` after a few iterations on points `[n, d]`, and the squared error of the points."""
    error = 0.0
    for _ in range(ITERATIONS):
        nearest = _nearest(points, centroids)
        counts = torch.bincount(nearest, minlength=len(centroids)).to(points.dtype)
        sums = torch.zeros_like(centroids).index_add_(0, nearest, points)
        means = sums / counts.clamp(min=1)[:, None]
        centroids = torch.where(counts[:, None] > 0, means, centroids)
        error = _energy(points - centroids[nearest])
    return centroids, error


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """Return the index of the nearest centroid `[n]` of points `[n, d]`."""
    offset = -0.5 * centroids.square().sum(dim=1)
    parts = torch.split(points, POINTS_AT_ONCE)
    return torch.cat([torch.addmm(offset, part, centroids.T).argmax(dim=1) for part in parts])


def _coded(weight: Floats, block: Block, centroids: Floats) -> Floats:
    """Return a weight with each block replaced by the nearest of some centroids `[K, d]`."""
    cut = blocks_from_weight(weight, block)
    nearest = _nearest(torch.from_numpy(cut.reshape(-1, cut.shape[2])), torch.from_numpy(centroids))
    return weight_from_blocks(centroids[nearest.numpy()].reshape(cut.shape), weight.shape, block)


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


def _energy(x: Tensor) -> float:
    return float(torch.linalg.vector_norm(x, dtype=torch.float64).square())


def _square(x: Floats) -> float:
    return float(np.square(x, dtype=np.float64).sum())


def _relative(error: float, signal: float) -> float:
    return error / signal if signal > 0 else 0.0
