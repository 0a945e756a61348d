"""Uniform quantization, the baseline that everybody has: integers, and one scale for each output channel.

Symmetric: a weight is `s q` with whole q from -(2^(b-1) - 1) to 2^(b-1) - 1, and s (fp16) the scale of its output
channel with the least squared error of the weights. The first convolution stays dense, as in our presets; batch norms
and biases are renewed as pyquant's learner does it, layer by layer on the inputs of the network quantized so far.
Bytes are those of a `.pqmodel` with b bits for each weight and two bytes for each scale, header and all else included.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import Choice, Recipe, parse_rule
from pyquant.codecs import CodecConfig, ProductConfig
from pyquant.graph import Network, Node
from pyquant.learn.calibration import Calibration
from pyquant.learn.moments import apply_epilogue, apply_weight, channel_moments, combine_moments
from pyquant.learn.norms import Norm
from pyquant.planning import Plan
from pyquant.torch_network import TorchNetwork

Floats = NDArray[np.float32]

SCALES = np.linspace(0.2, 1.0, 81)  # tried, relative to the one at which the largest weight is met
FP16_BYTES = 2


def quantized(weight: Floats, bits: int) -> Floats:
    """Return a weight `[O, ...]` as it comes back from whole numbers of `bits` bits."""
    most = 2 ** (bits - 1) - 1
    rows = weight.reshape(len(weight), -1).astype(np.float64)
    largest = np.abs(rows).max(axis=1, keepdims=True) / most
    best, least = rows * 0, np.full((len(rows), 1), np.inf)
    for share in SCALES:
        scale = largest * share
        whole = np.clip(np.rint(rows / np.where(scale > 0, scale, 1)), -most, most)
        # With these whole numbers, the best scale is that of least squares.
        square = np.square(whole).sum(axis=1, keepdims=True)
        scale = ((rows * whole).sum(axis=1, keepdims=True) / np.maximum(square, 1)).astype(np.float16)
        error = np.square(rows - scale * whole).sum(axis=1, keepdims=True)
        best, least = np.where(error < least, scale * whole, best), np.minimum(error, least)
    return best.reshape(weight.shape).astype(np.float32)


def recipe_for(network: Network, bits: int) -> Recipe:
    """Return the recipe whose files have the bytes of `bits` bits a weight: blocks of one weight."""
    first = next(node.name for node in network.graph.nodes if node.op == "conv2d")
    return Recipe(rules=(parse_rule(f"*=block:1,1,1;centroids:{2**bits}"), parse_rule(f"{first}=dense")))


def file_bytes(network: Network, plan: Plan) -> int:
    """Return the bytes that a file would have, from the plan of `recipe_for`: scales in place of fp16 codebooks."""
    total = plan.bytes
    for weight in {weight.name: weight for _, weight in network.graph.weighted()}.values():
        codec = plan.choices[weight.name].codec
        if isinstance(codec, ProductConfig):
            total += FP16_BYTES * (weight.shape[0] - codec.centroids)
    return total


def is_coded(codec: CodecConfig) -> bool:
    """Say whether a weight is quantized."""
    return isinstance(codec, ProductConfig)


@torch.inference_mode()
def quantize(
    network: Network, choices: Mapping[str, Choice], norms: Mapping[str, Norm], calibration: Calibration, bits: int
) -> TorchNetwork:
    """Return the network with the weights quantized that are coded in `choices`, its batch norms and biases renewed."""
    dense, result = TorchNetwork(network), TorchNetwork(network)
    batches = [torch.from_numpy(calibration.load(batch)) for batch in range(calibration.batches)]
    (declared,) = network.graph.inputs
    values: dict[str, list[tuple[Tensor, Tensor]]] = {declared.name: [(x, x) for x in batches]}  # dense, quantized
    last = {name: node.name for node in network.graph.nodes for name in node.inputs}
    for node in network.graph.nodes:
        inputs = list(zip(*(values[name] for name in node.inputs), strict=True))
        if node.weight is not None and is_coded(choices[node.weight.name].codec):
            wanted = torch.from_numpy(network.weight(node.weight))
            coded = torch.from_numpy(quantized(network.weight(node.weight), bits))
            result.set_weight(node.weight.name, coded)
            outputs = [(apply_weight(node, wanted, x), apply_weight(node, coded, z)) for ((x, z),) in inputs]
            scale, bias = _renewed(network, node, norms, outputs)
            result.set_epilogue(node.name, *(None if v is None else torch.from_numpy(v) for v in (scale, bias)))
            own = partial(apply_epilogue, network.own(node, "scale"), network.own(node, "bias"))
            values[node.output] = [(own(y), apply_epilogue(scale, bias, z)) for y, z in outputs]
        else:
            values[node.output] = [
                (dense.run_node(node, [x for x, _ in pairs]), result.run_node(node, [z for _, z in pairs]))
                for pairs in inputs
            ]
        for name in node.inputs:
            if last[name] == node.name and name not in network.graph.outputs:
                values.pop(name, None)
    return result


def _renewed(
    network: Network, node: Node, norms: Mapping[str, Norm], outputs: list[tuple[Tensor, Tensor]]
) -> tuple[Floats | None, Floats | None]:
    """Return scale and bias for outputs before them, of the dense and the quantized network."""
    scale, bias = network.own(node, "scale"), network.own(node, "bias")
    before, after = (combine_moments([channel_moments(x) for x in pairs]) for pairs in zip(*outputs, strict=True))
    if node.state.norm:
        return norms[node.state.norm].renewed(before, after).folded()
    if bias is not None:
        bias = (bias + (1 if scale is None else scale) * (before.mean - after.mean)).astype(np.float32)
    return scale, bias
