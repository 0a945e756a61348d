"""A dense network as one safetensors file, weights and graph: what the PyTorch engine loads."""

from __future__ import annotations

import json

import safetensors
from safetensors.numpy import save_file

from pyquant.graph import Graph, Network
from pyquant.storage import AnyPath


def write_dense(network: Network, path: AnyPath) -> None:
    """Write a network whose weights are all dense."""
    save_file(dict(network.tensors), path, metadata={"graph": json.dumps(network.graph.to_json())})


def read_dense(path: AnyPath) -> Network:
    """Return the network that `write_dense` wrote; only for files of our own making, which it does not check."""
    with safetensors.safe_open(path, framework="numpy") as file:
        graph = Graph.from_json(json.loads(file.metadata()["graph"]))
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (it cannot be iterated)
        return Network(graph=graph, tensors=tensors)
