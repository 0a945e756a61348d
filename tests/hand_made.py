"""Networks and files made by hand, without PyTorch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node, StateNames, Weight

F32 = NDArray[np.float32]

# Every engine sums up to C*kh*kw products in float32 in an order of its own: a few hundred rounding errors at most.
FLOAT32_SUMS = 200 * float(np.finfo(np.float32).eps)


def random_f32(rng: np.random.Generator, *shape: int) -> F32:
    return rng.standard_normal(shape, dtype=np.float32)


def relative_error(got: NDArray[np.floating], expected: NDArray[np.floating]) -> float:
    """Return the largest difference relative to the largest expected value."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def model_file(network: Network) -> ModelFile:
    return ModelFile(network=network)


def tiny_network(rng: np.random.Generator) -> Network:
    """Return a network of a coded convolution with a norm, one with a bias, and a linear layer; inputs [N, 3, H, W]."""
    nodes = (
        Node(
            op="conv2d",
            name="stem.conv",
            inputs=("x",),
            outputs=("a",),
            attributes={"padding": (1, 1, 1, 1)},
            weight=Weight(name="stem.conv", shape=(8, 3, 3, 3), codec=ProductConfig(block=(1, 3, 3), centroids=4)),
            tensors=("scale", "bias"),
            state=StateNames(weight="stem.conv.weight", bias="stem.conv.bias", norm="stem.norm", eps=1e-2),
        ),
        Node(op="relu", name="stem.relu", inputs=("a",), outputs=("b",)),
        Node(
            op="conv2d",
            name="last",
            inputs=("b",),
            outputs=("c",),
            attributes={"stride": (2, 2)},
            weight=Weight(name="last", shape=(5, 8, 1, 1)),
            tensors=("bias",),
            state=StateNames(weight="last.weight", bias="last.bias"),
        ),
        Node(op="adaptive_avg_pool2d", name="pool", inputs=("c",), outputs=("d",), attributes={"output_size": (1, 1)}),
        Node(op="flatten", name="flatten", inputs=("d",), outputs=("e",)),
        Node(
            op="linear",
            name="fc",
            inputs=("e",),
            outputs=("y",),
            weight=Weight(name="fc", shape=(4, 5)),
            state=StateNames(weight="fc.weight"),
        ),
    )
    graph = Graph(
        inputs=(GraphInput(name="x", shape=(None, 3, None, None), default=(3, 8, 8)),), nodes=nodes, outputs=("y",)
    )
    graph.check_edges()
    tensors = {
        "stem.conv.codes": pack_codes(rng.integers(4, size=24), 2),
        "stem.conv.codebook": random_f32(rng, 1, 4, 9).astype(np.float16),
        "stem.conv.scale": random_f32(rng, 8),
        "stem.conv.bias": random_f32(rng, 8),
        "last.weight": random_f32(rng, 5, 8, 1, 1),
        "last.bias": random_f32(rng, 5),
        "fc.weight": random_f32(rng, 4, 5).astype(np.float16),
    }
    return Network(graph=graph, tensors=tensors)
