"""The engine PyTorch in eager mode, on the decoded dense network with batch norms folded.

What a detector chooses boxes and cuts regions with runs in our own core, for PyTorch has no such operations of its own:
what is compared is the network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pyquant.detector import is_detector
from pyquant.engines import Arrays
from pyquant.engines.dense import read_dense
from pyquant.engines.detector import NOT_TENSORS
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.runtime import Model
from pyquant.shapes import Shape
from pyquant.torch_network import TorchNetwork


class _WithChoices(TorchNetwork):
    """A network whose boxes are chosen by our core."""

    def __init__(self, network: Network, shapes: Sequence[Shape], threads: int) -> None:
        super().__init__(network)
        known = network.graph.infer_shapes(shapes)
        self._models = {
            node.name: Model(ModelFile(network=_alone(node, known)), threads=threads)
            for node in network.graph.nodes
            if node.op in NOT_TENSORS
        }

    def run_node(self, node: Node, inputs: Sequence[torch.Tensor]) -> torch.Tensor:
        if node.name not in self._models:
            return super().run_node(node, inputs)
        result = self._models[node.name](*(x.contiguous().numpy() for x in inputs))
        assert not isinstance(result, dict)
        return torch.from_numpy(result)


def _alone(node: Node, shapes: dict[str, Shape]) -> Network:
    """Return the network of one layer that has no tensors."""
    inputs = tuple(GraphInput(name=name, shape=shapes[name], default=shapes[name][1:]) for name in node.inputs)
    return Network(graph=Graph(inputs=inputs, nodes=(node,), outputs=node.outputs), tensors={})


class TorchEngine:
    """A network run layer by layer with PyTorch's functions."""

    isa = ""

    def __init__(self, module: TorchNetwork) -> None:
        self._module = module.eval()

    @torch.inference_mode()
    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for one float32 array per input."""
        result = self._module(*(torch.from_numpy(x) for x in inputs))
        return [value.numpy() for value in (result.values() if isinstance(result, dict) else [result])]


def load(path: str, shapes: Sequence[tuple[int, ...]], threads: int, precision: str) -> TorchEngine:
    """Load what `dense.write_dense` wrote, in PyTorch's default memory format."""
    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    network = read_dense(path)
    if is_detector(network.graph):
        return TorchEngine(_WithChoices(network, shapes, threads))
    return TorchEngine(TorchNetwork(network))
