"""A network executed by PyTorch: the decoded network as a module, and what the learner walks layer by layer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from pyquant.detector import finding_boxes
from pyquant.errors import ConfigError, InputError
from pyquant.file import read_model
from pyquant.graph import Network, Node
from pyquant.reference_detection import (
    anchor_detections,
    detections,
    halvings_of,
    level_of,
    proposals,
    resampling,
    select_masks,
)


class TorchNetwork(nn.Module):
    """A graph run with PyTorch operations on decoded fp32 weights.

    Every tensor is a parameter that asks for no gradient, called as in the network with `.` written as `/`; they are
    copies, so that changing them leaves the network as it is.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.graph = network.graph
        self.tensors = nn.ParameterDict()
        for node in self.graph.nodes:
            if node.weight is not None and self._get(node.weight.tensor("weight")) is None:
                self._put(node.weight.tensor("weight"), torch.from_numpy(network.weight(node.weight)))
            for role in ("scale", "bias"):
                if (own := network.own(node, role)) is not None:
                    self._put(node.tensor(role), _copied(own))
        last_reader = {name: node.name for node in self.graph.nodes for name in node.inputs}
        self._done_after: dict[str, list[str]] = {node.name: [] for node in self.graph.nodes}
        for value, reader in last_reader.items():
            if value not in self.graph.outputs:
                self._done_after[reader].append(value)

    def forward(self, *inputs: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the output for float32 tensors `[N, C, H, W]`, or a dict by output name where there are several.

        Raises:
            InputError: a tensor does not fit, or is too small for a layer.
        """
        graph = self.graph
        if len(inputs) != len(graph.inputs):
            raise InputError(f"expected {len(graph.inputs)} input tensors, got {len(inputs)}")
        graph.infer_shapes([tuple(x.shape) for x in inputs])
        values = {declared.name: x for declared, x in zip(graph.inputs, inputs, strict=True)}
        for node in graph.nodes:
            values[node.output] = self.run_node(node, [values[name] for name in node.inputs])
            for name in self._done_after[node.name]:
                del values[name]
        if len(graph.outputs) == 1:
            return values[graph.outputs[0]]
        return {name: values[name] for name in graph.outputs}

    def run_node(self, node: Node, inputs: Sequence[Tensor]) -> Tensor:
        """Return what one layer of the graph makes of these inputs."""
        return OPS[node.op](self, node, list(inputs))

    def weight(self, node: Node) -> Tensor:
        """Return the weight of a convolution or linear layer as it stands now."""
        assert node.weight is not None
        weight = self._get(node.weight.tensor("weight"))
        assert weight is not None
        return weight

    def own(self, node: Node, role: str) -> Tensor | None:
        """Return a layer's `scale` or `bias` as it stands now, or None where it has none."""
        return self._get(node.tensor(role))

    def set_weight(self, weight_name: str, weight: Tensor) -> None:
        """Replace the weight of that name, in every layer that shares it.

        Raises:
            ConfigError: there is no such weight, or its shape differs.
        """
        name = f"{weight_name}.weight"
        if (old := self._get(name)) is None:
            raise ConfigError(f"no weight is called '{weight_name}'")
        if old.shape != weight.shape:
            raise ConfigError(f"weight '{weight_name}': expected shape {list(old.shape)}, got {list(weight.shape)}")
        self._put(name, weight.detach().to(old))

    def set_epilogue(self, node_name: str, scale: Tensor | None, bias: Tensor | None) -> None:
        """Replace the scale and bias `[O]` of one layer; None takes one away."""
        node = self.graph.node(node_name)
        for role, tensor in (("scale", scale), ("bias", bias)):
            self._put(node.tensor(role), None if tensor is None else tensor.detach().to(torch.float32))

    def _get(self, tensor_name: str) -> Tensor | None:
        found: Tensor | None = self.tensors.get(_key(tensor_name))
        return found

    def _put(self, tensor_name: str, tensor: Tensor | None) -> None:
        key = _key(tensor_name)
        if tensor is not None:
            self.tensors[key] = nn.Parameter(tensor, requires_grad=False)
        elif key in self.tensors:
            del self.tensors[key]


def found_boxes(network: Network, images: Tensor) -> list[Tensor]:
    """Return the boxes that a detector finds in images without padding: the inputs of its tensor parts after the first.

    Args:
        network: a whole detector.
        images: float32 `[N, 3, H, W]`.
    """
    finder = TorchNetwork(finding_boxes(network)).to(images.device)
    if not finder.graph.outputs:  # a network of one stage: nothing reads the boxes that it finds
        return []
    sizes = images.new_tensor(images.shape[2:]).expand(len(images), 2)
    with torch.no_grad():
        found = finder(images, sizes)
    return list(found.values()) if isinstance(found, dict) else [found]


def to_torch(path: str | Path) -> nn.Module:
    """Return the network of a `.pqmodel` as a PyTorch module, weights decoded to fp32, in eval mode.

    Raises:
        FormatError: the file is not a valid `.pqmodel`.
        InputError: the file cannot be read.
    """
    return TorchNetwork(read_model(path).network).eval()


def _key(tensor_name: str) -> str:
    return tensor_name.replace(".", "/")  # PyTorch allows no dot in the name of a parameter


def _copied(array: NDArray[np.floating]) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


Operation = Callable[[TorchNetwork, Node, list[Tensor]], Tensor]


def _epilogue(network: TorchNetwork, node: Node, x: Tensor) -> Tensor:
    per_channel = (-1,) + (1,) * (x.dim() - 2)
    if (scale := network.own(node, "scale")) is not None:
        x = x * scale.view(per_channel)
    if (bias := network.own(node, "bias")) is not None:
        x = x + bias.view(per_channel)
    return x


def _conv2d(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    a = node.attributes
    top, bottom, left, right = a["padding"]
    x, padding = inputs[0], (top, left)
    if (top, left) != (bottom, right):
        x, padding = F.pad(x, (left, right, top, bottom)), (0, 0)
    out = F.conv2d(x, network.weight(node), None, a["stride"], padding, a["dilation"], a["groups"])
    return _epilogue(network, node, out)


def _linear(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return _epilogue(network, node, F.linear(inputs[0], network.weight(node)))


def _affine(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return _epilogue(network, node, inputs[0])


def _relu(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.relu(inputs[0])


def _relu6(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.relu6(inputs[0])


def _silu(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.silu(inputs[0])


def _hardswish(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.hardswish(inputs[0])


def _hardsigmoid(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.hardsigmoid(inputs[0])


def _sigmoid(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return torch.sigmoid(inputs[0])


def _add(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0] + inputs[1]


def _mul(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return inputs[0] * inputs[1]


def _concat(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return torch.cat(inputs, node.attributes["axis"])


def _flatten(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return torch.flatten(inputs[0], node.attributes["start_axis"])


def _max_pool2d(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    a = node.attributes
    return F.max_pool2d(inputs[0], a["kernel"], a["stride"], a["padding"], a["dilation"], a["ceil_mode"])


def _avg_pool2d(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    a = node.attributes
    divisor = a["divisor"] or None
    return F.avg_pool2d(
        inputs[0], a["kernel"], a["stride"], a["padding"], a["ceil_mode"], a["count_include_pad"], divisor
    )


def _adaptive_avg_pool2d(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    return F.adaptive_avg_pool2d(inputs[0], node.attributes["output_size"])


def _upsample(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    a = node.attributes
    corners = a["align_corners"] if a["mode"] == "bilinear" else None
    size, factor = (a["size"], None) if any(a["size"]) else (None, a["factor"])
    return F.interpolate(inputs[0], size=size, scale_factor=factor, mode=a["mode"], align_corners=corners)


def _upsample_like(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    x, like = inputs
    corners = node.attributes["align_corners"] if node.attributes["mode"] == "bilinear" else None
    return F.interpolate(x, size=like.shape[2:], mode=node.attributes["mode"], align_corners=corners)


def _pixel_shuffle(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    fy, fx = node.attributes["factor"]
    n, _, h, w = inputs[0].shape
    blocks = inputs[0].reshape(n, -1, fy, fx, h, w)
    return blocks.permute(0, 1, 4, 2, 5, 3).reshape(n, -1, h * fy, w * fx)


def _by_reference(operation: Callable[[object, Node, list[NDArray[np.float64]]], NDArray[np.float64]]) -> Operation:
    """Return a choice among boxes or masks: it has no gradient, so the reference may make it."""

    def run(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
        arrays = [x.detach().cpu().double().numpy() for x in inputs]
        return torch.from_numpy(operation(network, node, arrays)).to(inputs[0])

    return run


def _roi_align(network: TorchNetwork, node: Node, inputs: list[Tensor]) -> Tensor:
    images, rows, *levels = inputs
    size, samples = node.attributes["output_size"], node.attributes["samples"]
    halvings = [halvings_of(images.shape[2], level.shape[2]) for level in levels]
    result = []
    for image, *box in rows[:, :5].tolist():
        if not 0 <= image < len(images):
            result.append(images.new_zeros((levels[0].shape[1], *size)))
            continue
        level = level_of(node, box, halvings)
        features = levels[level][int(image)]
        left, top, right, bottom = (side / 2 ** halvings[level] for side in box)
        down = resampling(top, bottom, size[0], features.shape[1], samples)
        across = resampling(left, right, size[1], features.shape[2], samples)
        # Only the pixels that count: a box covers few of a level.
        ys, xs = (_extent(matrix) for matrix in (down, across))
        down_t, across_t = (torch.from_numpy(m).to(features) for m in (down[:, ys], across[:, xs].T))
        result.append(down_t @ features[:, ys, xs] @ across_t)
    return torch.stack(result)


def _extent(matrix: NDArray[np.float64]) -> slice:
    """Return the columns from the first to the last that hold something."""
    used = np.flatnonzero(matrix.any(axis=0))
    return slice(int(used[0]), int(used[-1]) + 1) if len(used) else slice(0, 0)


OPS: dict[str, Operation] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _affine,
    "relu": _relu,
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": _hardswish,
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _sigmoid,
    "add": _add,
    "mul": _mul,
    "concat": _concat,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "upsample": _upsample,
    "upsample_like": _upsample_like,
    "pixel_shuffle": _pixel_shuffle,
    "proposals": _by_reference(proposals),
    "roi_align": _roi_align,
    "anchor_detections": _by_reference(anchor_detections),
    "detections": _by_reference(detections),
    "select_masks": _by_reference(select_masks),
}
