"""What a `.pqmodel` costs: bytes, bits per weight and bit operations, layer by layer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

from pyquant.codecs import DenseConfig, ProductConfig, ScalarConfig, SparseConfig
from pyquant.file import ModelFile, read_model, read_storage
from pyquant.graph import Graph
from pyquant.layers import CODECS
from pyquant.storage import AnyPath

FLOAT_BITS = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer that has a weight."""

    name: str
    op: str
    status: Literal["compressed", "dense"]
    codec: str
    reason: str | None  # why it is dense
    block: tuple[int, int, int] | None  # channels, kernel rows, kernel columns
    centroids: int | None  # of one codebook
    codebooks: int | None  # whose centroids are summed
    levels: int | None  # of a scalar or sparse weight's grids
    kept: float | None  # the share of a sparse weight that is kept
    setting: str  # its codec, as a rule says it
    rate: float | None  # bits per weight that codes were to take once entropy-coded, at most; None: none was asked for
    bits_per_weight: float  # codes, codebooks and grids
    bytes: int  # of all its tensors in the file; those of a shared weight count for its first layer
    relative_output_error: float | None  # ||WX - W'X'||^2 / ||WX||^2; None where it was not measured

    def to_json(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        row = {key: getattr(self, key) for key in self.__slots__}
        return row | {"block": list(self.block) if self.block else None}


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `compress` and `import` say about the file that they wrote."""

    file: str
    bytes: int
    dense_bytes: int
    bit_operations: int
    layers: tuple[LayerRow, ...]
    max_relative_error: float

    @classmethod
    def of(cls, path: AnyPath, model: ModelFile, *, max_relative_error: float) -> Report:
        """Return the report on the file at `path`, which holds `model`."""
        graph = model.network.graph
        return cls(
            file=os.fspath(path),
            bytes=os.path.getsize(path),
            dense_bytes=dense_bytes(graph),
            bit_operations=bit_operations(graph),
            layers=tuple(layer_rows(model, read_storage(path).tensor_bytes)),
            max_relative_error=max_relative_error,
        )

    @property
    def ratio(self) -> float:
        """How many times smaller the file is than the network in fp32."""
        return self.dense_bytes / self.bytes

    @property
    def self_check(self) -> dict[str, float]:
        """How far the file's outputs are from the network's, relative to the largest output."""
        return {"max_relative_error": self.max_relative_error}

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values, as `compress --json` prints it."""
        return {
            "file": self.file,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "ratio": self.ratio,
            "bit_operations": self.bit_operations,
            "layers": [row.to_json() for row in self.layers],
            "self_check": self.self_check,
        }


def layer_rows(model: ModelFile, tensor_bytes: Mapping[str, int] | None = None) -> list[LayerRow]:
    """Return a row for each layer that has a weight, in the order in which they run.

    Args:
        model: what the file holds.
        tensor_bytes: of each tensor in the file; None: as they are without entropy coding.
    """
    sizes = tensor_bytes or {name: tensor.nbytes for name, tensor in model.network.tensors.items()}
    reasons: Mapping[str, str] = model.provenance.get("dense", {})
    errors: Mapping[str, float | None] = model.provenance.get("errors", {})
    rows = []
    counted: set[str] = set()
    for node, weight in model.network.graph.weighted():
        config = weight.codec if isinstance(weight.codec, ProductConfig) else None
        dense = isinstance(weight.codec, DenseConfig)
        roles = CODECS[weight.codec_name].tensors_of(weight.codec)
        weight_bytes = sum(sizes[weight.tensor(role)] for role in roles)
        own_bytes = sum(sizes[node.tensor(role)] for role in node.tensors)
        rows.append(
            LayerRow(
                name=node.name,
                op=node.op,
                status="dense" if dense else "compressed",
                codec=weight.codec_name,
                reason=reasons.get(node.name, "kept dense") if dense else None,
                block=config.block if config else None,
                centroids=config.centroids if config else None,
                codebooks=config.codebooks if config else None,
                levels=weight.codec.centroids if isinstance(weight.codec, (ScalarConfig, SparseConfig)) else None,
                kept=weight.codec.kept if isinstance(weight.codec, SparseConfig) else None,
                setting=weight.codec.setting,
                rate=None if isinstance(weight.codec, DenseConfig) else weight.codec.rate or None,
                bits_per_weight=8 * weight_bytes / prod(weight.shape),
                bytes=own_bytes + (0 if weight.name in counted else weight_bytes),
                relative_output_error=errors.get(node.name),
            )
        )
        counted.add(weight.name)
    return rows


def dense_bytes(graph: Graph) -> int:
    """Return the bytes of the original network's parameters in fp32: weights, biases and affine batch norms."""
    shapes = graph.infer_shapes()
    shuffled = {node.inputs[0]: node.output for node in graph.nodes if node.op == "pixel_shuffle"}
    parameters: dict[str, int] = {}  # by name, so that what layers share counts once
    for node in graph.nodes:
        channels = shapes[node.output][1] if len(shapes[node.output]) > 1 else 0
        if node.weight is not None:
            parameters[f"{node.weight.name}.weight"] = prod(node.weight.shape)
        if node.state.bias:
            # A transposed convolution has one number for all pixels of an output, which pixel_shuffle puts in place.
            of = shuffled.get(node.output, node.output) if node.state.transposed else node.output
            parameters[node.state.bias] = shapes[of][1]
        if node.state.norm and node.state.norm_affine:
            parameters[node.state.norm] = 2 * channels
    return FLOAT_BITS // 8 * sum(parameters.values())


def bit_operations(graph: Graph, activation_bits: int = FLOAT_BITS) -> int:
    """Return the multiply-accumulates at the default input shape and batch 1, times weight bits, times activation bits.

    A product-coded weight counts log2(K) * M / d bits, a scalar one those of its code or its rate, a sparse one those
    of its code times the share that is kept, a dense one 32: bits of information, not of storage.
    """
    macs = weight_macs(graph)
    codecs = {weight.name: weight.codec for _, weight in graph.weighted()}
    return round(sum(macs[name] * codec.weight_bits * activation_bits for name, codec in codecs.items()))


def weight_macs(graph: Graph) -> dict[str, int]:
    """Return the multiply-accumulates of all layers with a weight, by its name, at the default shape and batch 1."""
    macs = graph.macs()
    result: dict[str, int] = {}
    for node, weight in graph.weighted():
        result[weight.name] = result.get(weight.name, 0) + macs[node.name]
    return result


def inspect_json(path: AnyPath) -> dict[str, Any]:
    """Return what is inside a `.pqmodel`, as `inspect --json` prints it.

    Raises:
        InputError: the file is missing or cannot be read.
        FormatError: it is not a `.pqmodel`, is damaged, or needs a newer pyquant.
    """
    model, storage = read_model(path), read_storage(path)
    graph = model.network.graph
    size = os.path.getsize(path)
    first = graph.inputs[0]
    return {
        "format_version": model.format_version,
        "features": list(storage.features),
        "bytes": size,
        "ratio": dense_bytes(graph) / size,
        "bit_operations": bit_operations(graph),
        "input": {"name": first.name, "shape": list(first.shape), "default": list(first.default)},
        "classes": [entry.name for entry in model.classes],
        "activation_ranges": model.network.activation_ranges is not None,
        "layers": [row.to_json() for row in layer_rows(model, storage.tensor_bytes)],
    }
