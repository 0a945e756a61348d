"""Networks of one or two layers with random weights, for tests of the runtime."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import reference
from pyquant.codecs import CodecConfig, DenseConfig, ScalarConfig, SparseConfig, scalar, sparse
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.product import codebook_tensors
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node, Weight


def model_file(nodes: list[Node], tensors: dict[str, np.ndarray], *shapes: tuple[int, ...]) -> ModelFile:
    """Return a network of `nodes` on inputs x, x1, x2 .. of `shapes` (batch included, all sizes but channels free)."""
    inputs = tuple(
        GraphInput(
            name=f"x{i or ''}",
            shape=tuple(size if axis == 1 else None for axis, size in enumerate(shape)),
            default=shape[1:],
        )
        for i, shape in enumerate(shapes)
    )
    graph = Graph(inputs=inputs, nodes=tuple(nodes), outputs=nodes[-1].outputs)
    return ModelFile(network=Network(graph=graph, tensors=tensors), preprocessing=None, classes=(), provenance={})


def values_of(file: ModelFile, x: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
    """Return all values of a network with one input, by name, as the reference computes them."""
    graph = replace(file.network.graph, outputs=tuple(file.network.graph.values()))
    return reference.run(replace(file.network, graph=graph), x)


def with_ranges(file: ModelFile, values: dict[str, NDArray[np.float32]]) -> ModelFile:
    """Return the network with activation ranges that hold these values, those of `values_of()`."""
    ranges = np.array([(min(value.min(), 0), max(value.max(), 0)) for value in values.values()], np.float32)
    return replace(file, network=file.network.with_activation_ranges(ranges))


def random_weight(
    rng: np.random.Generator, name: str, shape: tuple[int, ...], codec: CodecConfig
) -> tuple[Weight, dict[str, np.ndarray]]:
    """Return a weight in `codec` and its tensors, all values random."""
    if isinstance(codec, DenseConfig):
        tensors = {f"{name}.weight": rng.standard_normal(shape).astype(np.float32)}
    elif isinstance(codec, (ScalarConfig, SparseConfig)):
        codes = rng.integers(codec.centroids, size=(shape[0], int(np.prod(shape[1:]))))
        step = scalar.rounded_steps(rng.uniform(0.5, 2, shape[0]) / codec.centroids)
        # Around the middle, at half steps too; of 8 bits, codes without the largest fit a signed byte.
        zero = rng.integers(codec.centroids - 2, min(codec.centroids + 1, 256), shape[0])
        if codec.bits == 8:
            codes, zero = np.minimum(codes, 254), np.full(shape[0], 254)
        if isinstance(codec, ScalarConfig):
            kept = scalar.tensors_of(codes, step, zero, codec)
        else:
            kept = sparse.tensors_of(random_mask(rng, shape, codec), codes, step, zero, codec, shape)
        tensors = {f"{name}.{role}": tensor for role, tensor in kept.items()}
    else:
        codes = rng.integers(codec.centroids, size=(codec.codebooks, shape[0], codec.blocks_per_row(shape)))
        codebook = rng.standard_normal((codec.codebooks, codec.centroids, codec.dim))
        tensors = {
            f"{name}.codes": pack_codes(codes, codec.code_bits),
            **{f"{name}.{role}": tensor for role, tensor in codebook_tensors(codebook, codec).items()},
        }
    return Weight(name=name, shape=shape, codec=codec), tensors


def random_mask(rng: np.random.Generator, shape: tuple[int, ...], codec: SparseConfig) -> NDArray[np.bool_]:
    """Return which weights `[O, D]` of a weight, in its own order, are kept: as many, and so, as a codec says."""
    units = int(np.prod(shape)) // codec.unit
    if codec.of:
        kept = np.array([rng.permutation(codec.of) < codec.kept_of for _ in range(units)])
    else:
        kept = np.repeat(rng.permutation(units) < codec.kept_weights(shape) // codec.run, codec.run)
    return sparse.from_channels_last(kept.reshape(shape[0], -1), shape).reshape(shape[0], -1)


def weighted_layer(
    rng: np.random.Generator,
    weight_shape: tuple[int, ...],
    codec: CodecConfig,
    *,
    name: str = "layer",
    inputs: tuple[str, ...] = ("x",),
    output: str = "y",
    **attributes: Any,
) -> tuple[Node, dict[str, np.ndarray]]:
    """Return a convolution (4 dimensions) or linear layer (2) with random weights, scale and bias."""
    weight, tensors = random_weight(rng, name, weight_shape, codec)
    tensors[f"{name}.scale"] = rng.standard_normal(weight_shape[0]).astype(np.float32)
    tensors[f"{name}.bias"] = rng.standard_normal(weight_shape[0]).astype(np.float32)
    node = Node(
        op="conv2d" if len(weight_shape) == 4 else "linear",
        name=name,
        inputs=inputs,
        outputs=(output,),
        attributes=attributes,
        weight=weight,
        tensors=("scale", "bias"),
    )
    return node, tensors
