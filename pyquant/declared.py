"""Checks that a network holds exactly the tensors that its layers declare, with usable contents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import DenseConfig, SparseConfig
from pyquant.codecs.packing import packed_bytes, unpack_codes
from pyquant.container import dtype_name
from pyquant.errors import FormatError, InputError
from pyquant.graph import Graph, Network, Weight
from pyquant.layers import ACTIVATION_RANGES, CODECS, NETWORK_TENSORS, OPS, RANGE_WIDTHS, Tensor

MAX_ELEMENTS = 2**31 - 1  # of a weight, and of any value at the default input shape
MAX_NAMED = 5  # values that one message names
PACKED = "packed("  # begins the shape of a tensor of codes


@dataclass(frozen=True, slots=True)
class PackedCodes:
    """What a tensor of packed codes holds: codes of `bits` bits, `count` for each of `models` codebooks."""

    models: int
    count: int
    bits: int


@dataclass(frozen=True, slots=True)
class DeclaredTensor:
    """A tensor that a network must or may have: its dtypes (safetensors' names) and its shape in numbers."""

    name: str
    dtypes: tuple[str, ...]
    shape: tuple[int, ...]
    codes: PackedCodes | None = None
    required: bool = True


def declared_tensors(graph: Graph) -> dict[str, DeclaredTensor]:
    """Return all tensors that a network of this graph must or may have, by name; those of a shared weight once.

    Raises:
        FormatError: the graph cannot run at its default input shape, or would take absurd amounts of memory.
    """
    shapes = _default_shapes(graph)
    weights: dict[str, Weight] = {}
    result = {}
    faults = []
    for node in graph.nodes:
        dims = {"C": shapes[node.inputs[0]][1]} if len(shapes[node.inputs[0]]) > 1 else {}
        if node.weight is not None:
            weight = weights.setdefault(node.weight.name, node.weight)
            if weight != node.weight:
                faults.append(f"layer '{node.name}' stores the shared weight '{weight.name}' in another way")
            if isinstance(weight.codec, SparseConfig) and (misfit := weight.codec.misfit(weight.shape)):
                faults.append(f"layer '{node.name}': {misfit}")
            dims = weight_dimensions(weight)
            # A few codes of a huge block would otherwise decode to terabytes.
            padded = dims["O"] * dims["J"] * dims["d"] if "J" in dims else 0
            if max(prod(weight.shape), padded) > MAX_ELEMENTS:
                faults.append(f"layer '{node.name}': a weight of {list(weight.shape)} is too large")
            for role, tensor in CODECS[weight.codec_name].tensors_of(weight.codec).items():
                name = weight.tensor(role)
                shape = _shape(tensor, dims, weight.shape)
                result[name] = DeclaredTensor(name, tensor.dtypes, shape, _packed_codes(tensor, dims))
        own = OPS[node.op].tensors
        if missing := [role for role, tensor in own.items() if tensor.required and role not in node.tensors]:
            faults.append(f"layer '{node.name}' ({node.op}) needs {', '.join(missing)}")
        for role in node.tensors:
            result[node.tensor(role)] = DeclaredTensor(node.tensor(role), own[role].dtypes, _shape(own[role], dims, ()))
    if faults:
        raise FormatError("; ".join(faults))
    dims = {"V": len(graph.values())}
    for name, spec in NETWORK_TENSORS.items():
        result[name] = DeclaredTensor(name, spec.dtypes, _shape(spec, dims, ()), required=spec.required)
    return result


def weight_dimensions(weight: Weight) -> dict[str, int]:
    """Return the dimensions that the declarations in `pyquant.layers` speak of, by their letters."""
    return {"O": weight.shape[0], "C": weight.shape[1], **weight.codec.dimensions(weight.shape)}


def dimension(word: str, dims: Mapping[str, int]) -> int:
    """Return the value of one word of a declared shape: "2", "V", "K", "M*O*J", or "packed(M*O*J, bits)", in bytes."""
    if word.startswith(PACKED):
        return packed_bytes(*_count_and_bits(word, dims))
    return prod(int(factor) if factor.isdigit() else dims[factor] for factor in word.split("*"))


def _packed_codes(tensor: Tensor, dims: Mapping[str, int]) -> PackedCodes | None:
    (word, *_) = tensor.shape
    if not word.startswith(PACKED):
        return None
    models = dims.get("M", 1)  # a model for each codebook, where there are several
    count, bits = _count_and_bits(word, dims)
    return PackedCodes(models=models, count=count // models, bits=bits)


def _count_and_bits(word: str, dims: Mapping[str, int]) -> tuple[int, int]:
    """Return how many codes of how many bits a declared shape "packed(..)" says there are."""
    count, bits = word[len(PACKED) : -1].split(", ")
    return dimension(count, dims), dims[bits]


def check_tensors(network: Network, declared: Mapping[str, DeclaredTensor]) -> None:
    """Check a network's tensors against `declared_tensors(network.graph)`, and their contents.

    Raises:
        FormatError: listing all tensors that are missing, unknown or of another dtype or shape, or else all that hold
            codes of no centroid, numbers that are not finite, or ranges that 8 bits cannot hold.
    """
    tensors = network.tensors
    faults = []
    if missing := sorted(name for name, tensor in declared.items() if tensor.required and name not in tensors):
        faults.append(f"missing tensors: {', '.join(missing)}")
    if unknown := sorted(tensors.keys() - declared.keys()):
        faults.append(f"unknown tensors: {', '.join(unknown)}")
    for name in sorted(declared.keys() & tensors.keys()):
        expected, array = declared[name], tensors[name]
        if dtype_name(array) not in expected.dtypes or array.shape != expected.shape:
            faults.append(
                f"tensor '{name}': expected {' or '.join(expected.dtypes)} {list(expected.shape)}, "
                f"got {dtype_name(array)} {list(array.shape)}"
            )
    if not faults:
        faults = list(_content_faults(network, declared))
    if faults:
        raise FormatError("; ".join(faults))


def _content_faults(network: Network, declared: Mapping[str, DeclaredTensor]) -> Iterator[str]:
    for name, array in network.tensors.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            yield f"tensor '{name}' holds numbers that are not finite"
    for weight in {weight.name: weight for _, weight in network.graph.weighted()}.values():
        for role, fault in weight.codec.faults(network.tensors_of(weight), weight.shape):
            yield f"tensor '{weight.tensor(role)}' {fault}"
        for role, tensor in network.tensors_of(weight).items():
            yield from _spare_bit_faults(declared[weight.tensor(role)], tensor)
        if not isinstance(weight.codec, DenseConfig):
            codes = declared[weight.tensor("codes")]
            yield from _code_faults(codes, network.tensors[codes.name], weight.codec.centroids)
    if (ranges := network.activation_ranges) is not None and np.isfinite(ranges).all():
        yield from _range_faults(network.graph, ranges)


def _spare_bit_faults(declared: DeclaredTensor, packed: NDArray[Any]) -> Iterator[str]:
    if (codes := declared.codes) is None:
        return
    if (spare := -(codes.models * codes.count * codes.bits) % 8) and packed[-1] >> (8 - spare):
        yield f"tensor '{declared.name}': the {spare} spare bits of its last byte must be zero"


def _code_faults(declared: DeclaredTensor, packed: NDArray[Any], centroids: int) -> Iterator[str]:
    assert declared.codes is not None
    bits, count = declared.codes.bits, declared.codes.models * declared.codes.count
    # Where K is a power of two, every pattern of bits is the code of a centroid.
    if centroids < 1 << bits:
        largest = int(unpack_codes(packed, bits, count).max())
        if largest >= centroids:
            yield f"tensor '{declared.name}': code {largest} for {centroids} centroids"


def _range_faults(graph: Graph, ranges: NDArray[np.float32]) -> Iterator[str]:
    low, high = ranges.astype(np.float64).T
    narrowest, widest = RANGE_WIDTHS
    right = (low <= 0) & (high >= 0) & (high - low >= narrowest) & (high - low <= widest)
    if len(wrong := np.flatnonzero(~right)):
        named = ", ".join(f"'{graph.values()[v]}' has [{low[v]:g}, {high[v]:g}]" for v in wrong[:MAX_NAMED])
        more = f" and {len(wrong) - MAX_NAMED} more" if len(wrong) > MAX_NAMED else ""
        yield (
            f"tensor '{ACTIVATION_RANGES}': expected ranges that hold 0 and are {narrowest:.0e} to {widest:.0e} wide, "
            f"but {named}{more}"
        )


def _shape(tensor: Tensor, dims: Mapping[str, int], weight_shape: tuple[int, ...]) -> tuple[int, ...]:
    return weight_shape if tensor.shape == ("*",) else tuple(dimension(word, dims) for word in tensor.shape)


def _default_shapes(graph: Graph) -> dict[str, tuple[int, ...]]:
    try:
        shapes = graph.infer_shapes()
    except InputError as error:
        raise FormatError(f"the network cannot take its default input: {error}") from error
    if large := [f"'{name}' {list(shape)}" for name, shape in shapes.items() if prod(shape) > MAX_ELEMENTS]:
        raise FormatError(f"values too large to compute: {', '.join(large[:5])}")
    return shapes
