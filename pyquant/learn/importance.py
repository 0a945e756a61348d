"""How much each output of a layer counts: how fast the network's outputs leave those of the dense one with its error.

For a small error δ of its logits, the divergence of a network's shares of classes p is half of `δᵀ F δ`, where F =
`diag(p) - p pᵀ` is their Fisher information (Amari, "Natural gradient works efficiently in learning", 1998). With a
random v of covariance F, the square of the gradient of `vᵀ (logits)` at a number inside the network is, on average, how
much the square of an error there adds to that. Errors of different numbers are taken to be independent of each other.
"""

from __future__ import annotations

from itertools import islice
from math import prod
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.checkpoint import NOWHERE, Records
from pyquant.console import Progress
from pyquant.detector import is_detector, tensor_parts
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.distillation import are_logits
from pyquant.learn.workers import Workers
from pyquant.torch_network import TorchNetwork, found_boxes

MEASURED_INPUTS = 256  # at most: each is one draw of v, and a layer's numbers are means over all of its pixels too
INPUTS = 4  # of a worker at a time, at most, and no more than ..
VALUES = 1 << 27  # .. have so many values in all layers together, which are kept for the gradients
TOGETHER = 8  # pieces of work
RECORD = "importance of outputs"
LEAST = 0.05  # of a layer's mean: few inputs do not show that an output never counts


def importance_of_outputs(
    network: Network,
    calibration: Calibration,
    *,
    seed: int,
    workers: Workers,
    progress: Progress,
    records: Records = NOWHERE,
) -> dict[str, NDArray[np.float32]]:
    """Return how much the square of an error of W x counts in each output of a layer, by the weight's name.

    Numbers `[O]` are relative to each other: the mean of a weight's is about 1. Outputs that are no logits have a
    squared error, relative to themselves; a detector's are those of its parts, on the boxes that it finds.

    Args:
        network: dense; a detector is one that finds few boxes (`pyquant.detector.for_learning`).
        calibration: of which some are used.
        records: where they are saved, and taken from. A layer that was coded, and whose record is damaged, is coded
            again with the same.
    """
    if (record := records.load(RECORD)) is not None:
        return dict(record.arrays)
    count = min(calibration.count, MEASURED_INPUTS)
    shapes = network.graph.infer_shapes([(1, *calibration.shape)])
    values = sum(prod(shapes[name]) for node in network.graph.nodes for name in node.outputs)
    piece = max(1, min(INPUTS, VALUES // values))
    measured = _Measured(network, seed)
    totals: dict[str, Tensor] = {}
    batches = calibration.evenly(count, piece)
    # Some at a time, so that progress shows; results come back in order.
    for first in range(0, count, piece * TOGETHER):
        progress("weighing outputs", first, count)
        for part in workers.map(measured.squares, islice(batches, TOGETHER)):
            for name, squares in part.items():
                totals[name] = totals[name] + squares if name in totals else squares
    progress("weighing outputs", count, count)
    result = {name: _relative(squares) for name, squares in totals.items()}
    records.save(RECORD, {}, result)
    return result


class _Measured:
    """The dense network, and how its outputs bend with those of its layers."""

    def __init__(self, network: Network, seed: int) -> None:
        self._whole = network
        self._parts = tensor_parts(network) if is_detector(network.graph) else network
        self._runner = TorchNetwork(self._parts)
        self._seed = seed

    @torch.enable_grad()
    def squares(self, images: NDArray[np.float32]) -> dict[str, Tensor]:
        """Return the sums of squared gradients at the outputs of each weight, float64 `[O]`."""
        graph, images = self._parts.graph, np.ascontiguousarray(images)
        inputs = [torch.from_numpy(images).requires_grad_()]
        if self._whole is not self._parts:
            inputs += found_boxes(self._whole, inputs[0].detach())
        values = {declared.name: x for declared, x in zip(graph.inputs, inputs, strict=True)}
        for node in graph.nodes:
            values[node.output] = self._runner.run_node(node, [values[name] for name in node.inputs])
        random = torch.Generator().manual_seed(self._seed + crc32(images.data))  # other numbers for other inputs
        drawn = [
            (values[name] * self._direction(values[name].detach(), random)).sum()
            for name in graph.outputs
            if values[name].requires_grad
        ]
        weighted = [(node, weight) for node, weight in graph.weighted() if values[node.output].requires_grad]
        gradients = torch.autograd.grad(
            drawn, [values[node.output] for node, _ in weighted], allow_unused=True, materialize_grads=True
        )
        result: dict[str, Tensor] = {}
        for (node, weight), gradient in zip(weighted, gradients, strict=True):
            found = gradient.transpose(0, 1).flatten(1).double().square().sum(1)
            if (scale := self._runner.own(node, "scale")) is not None:
                found = found * scale.double().square()
            result[weight.name] = result[weight.name] + found if weight.name in result else found
        return result

    def _direction(self, output: Tensor, random: torch.Generator) -> Tensor:
        noise = torch.randn(output.shape, generator=random)
        if self._whole is self._parts and are_logits(output):
            root = output.softmax(1).sqrt()
            noise = root * noise
            return noise - root.square() * noise.sum(1, keepdim=True)
        size: Tensor = torch.linalg.vector_norm(output)
        return noise / size.clamp_min(torch.finfo(torch.float32).tiny)


def _relative(squares: Tensor) -> NDArray[np.float32]:
    """Return squared gradients relative to their mean; where they say nothing, all outputs count the same."""
    mean = float(squares.mean())
    if not 0 < mean < float("inf"):
        return np.ones(len(squares), np.float32)
    return np.asarray((squares / mean).clamp_min(LEAST).float().numpy())
