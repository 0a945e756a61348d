"""The subject of fine-tuning: what a dense network shows a student of pictures, and how far the student is from that.

Of most networks these are the outputs. A detector's are boxes, which cannot be compared number by number: of it they
are the features of all levels, and what boxes and masks are chosen by, on the boxes that the dense network finds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from pyquant.detector import compared_outputs, finding_boxes, is_detector, rows_of_values, tensor_parts
from pyquant.graph import Network
from pyquant.learn.distillation import distillation_loss, relative_error
from pyquant.learn.targets import Shown, as_tuple
from pyquant.torch_network import TorchNetwork


class Subject(Shown, Protocol):
    """What is taught of a dense network."""

    def part(self, network: Network) -> Network:
        """Return the part of a compressed network that is a student; it has the same tensors."""

    def loss(self, student: TorchNetwork, images: Tensor, shown: Sequence[Tensor]) -> Tensor:
        """Return how far a student is from what was shown of these images, with gradients."""


def subject_of(dense: Network, device: torch.device) -> Subject:
    """Return the subject of a dense network; a detector is one that finds few boxes (`detector.for_learning`)."""
    return _Detection(dense, device) if is_detector(dense.graph) else _Outputs(dense, device)


class _Outputs:
    """The outputs of a network."""

    def __init__(self, dense: Network, device: torch.device) -> None:
        self.graph = dense.graph
        self._dense = TorchNetwork(dense).to(device)

    def __call__(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        result: Tensor | dict[str, Tensor] = self._dense(images)
        return result

    def part(self, network: Network) -> Network:
        return network

    def loss(self, student: TorchNetwork, images: Tensor, shown: Sequence[Tensor]) -> Tensor:
        return distillation_loss(as_tuple(student(images)), shown)


class _Detection:
    """The boxes that a detector finds, and all that its parts without choices give for them."""

    def __init__(self, dense: Network, device: torch.device) -> None:
        parts = self.part(dense).graph
        self._boxes = tuple(declared.name for declared in parts.inputs[1:])
        finding = finding_boxes(dense, parts.outputs)
        self.graph = finding.graph
        self._dense = TorchNetwork(finding).to(device)
        self._rows = rows_of_values(self.graph)
        self._groups = compared_outputs(dense.graph)
        known = {name for group in self._groups for name in group}
        if features := tuple(name for name in parts.outputs if name not in known):
            self._groups = (*self._groups, features)
        self._logits = {node.inputs[2] for node in dense.graph.nodes if node.op == "detections"}  # of classes

    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        sizes = images.new_tensor(images.shape[2:]).expand(len(images), 2)
        found = self._dense(images, sizes)
        return {
            name: value.unflatten(0, (len(images), -1)) if name in self._rows else value
            for name, value in found.items()
        }

    def part(self, network: Network) -> Network:
        return tensor_parts(network, features=True)

    def loss(self, student: TorchNetwork, images: Tensor, shown: Sequence[Tensor]) -> Tensor:
        """Return the mean of the losses of groups of outputs: features, those of proposals, of boxes, and of masks."""
        target = {
            name: value.flatten(0, 1) if name in self._rows else value
            for name, value in zip(self.graph.outputs, shown, strict=True)
        }
        # A picture may have another place in this batch than in the one in which its boxes were found.
        place = {name: self._places(target[name], len(images)) for name in self._boxes}
        boxes = [torch.cat([place[name][:, None], target[name][:, 1:]], dim=1) for name in self._boxes]
        outputs = student(images, *boxes)
        losses = []
        for group in self._groups:
            pairs = []
            for name in group:
                used = place[self._rows[name]] >= 0 if name in self._rows else slice(None)
                pairs.append((outputs[name][used].float(), target[name][used].float()))
            if all(len(output) for output, _ in pairs):
                is_logits = self._logits.issuperset(group)
                losses.append(distillation_loss(*zip(*pairs, strict=True)) if is_logits else relative_error(pairs))
        return torch.stack(losses).mean()

    def _places(self, boxes: Tensor, images: int) -> Tensor:
        """Return, for each row of boxes, the place of its picture in the batch, or -1 where the row is not used."""
        places = torch.arange(images, device=boxes.device).repeat_interleave(len(boxes) // images)
        return torch.where(boxes[:, 0] >= 0, places, -1).to(boxes.dtype)
