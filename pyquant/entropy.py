"""Entropy coding: which tensors a file stores in fewer bytes than they have, and how they are made whole again.

In place of a tensor `NAME` there is then a U8 tensor `NAME.rans`. Its first byte is the number of bytes of an element,
0 for packed codes; streams follow (`csrc/codec/streams.h`), each with a static model of its own:

    codes           one for each codebook
    fp32, fp16      one for each byte of a number, the lowest first; the bits of a number are first rotated left by one:
                    the sign becomes the lowest bit, and the highest byte is the exponent, of fp16 with three bits more,
                    which is what numbers of one tensor have in common
    int8            one, of the numbers + 128

Everything above the file sees tensors as they are declared, and codes packed.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import _core
from pyquant.codecs.packing import MAX_EXPANSION, is_worth_coding
from pyquant.container import DTYPES, dtype_name
from pyquant.declared import DeclaredTensor, PackedCodes, declared_tensors
from pyquant.errors import FormatError, InputError
from pyquant.graph import Network
from pyquant.layers import ENTROPY_CODED

SUFFIX = f".{ENTROPY_CODED}"


def coded_tensors(network: Network, only: Collection[str] | None = None) -> dict[str, NDArray[Any]]:
    """Return the tensors of a network as a file stores them: each entropy-coded where that saves bytes.

    Args:
        network: whose tensors they are.
        only: the names of those that may be coded; None: all may.
    """
    declared = declared_tensors(network.graph)
    stored = {}
    for name, array in network.tensors.items():
        coded = _coded(array, declared[name].codes) if only is None or name in only else None
        if coded is not None and is_worth_coding(coded.nbytes, array.nbytes):
            stored[name + SUFFIX] = coded
        else:
            stored[name] = array
    return stored


def stored_bytes(array: NDArray[Any], codes: PackedCodes | None = None) -> int:
    """Return the bytes that a tensor takes in a file that is entropy-coded; `codes` says what packed codes are."""
    coded = _coded(array, codes)
    return coded.nbytes if is_worth_coding(coded.nbytes, array.nbytes) else array.nbytes


def weight_bytes(tensors: Mapping[str, NDArray[Any]], codes: PackedCodes) -> int:
    """Return the bytes that the tensors of a weight, by role, take in a file that is entropy-coded."""
    return sum(stored_bytes(tensor, codes if role == "codes" else None) for role, tensor in tensors.items())


def whole_tensors(
    declared: Mapping[str, DeclaredTensor], stored: Mapping[str, NDArray[Any]]
) -> dict[str, NDArray[Any]]:
    """Return the tensors of a network from those that its file stores; what is not declared stays as it is.

    Args:
        declared: `declared_tensors` of the network's graph.
        stored: as `coded_tensors` returns them.

    Raises:
        FormatError: naming the tensor, where one is stored twice, or is not what `coded_tensors` makes.
    """
    tensors = {}
    for name, array in stored.items():
        own = name.removesuffix(SUFFIX)
        if not is_coded(name) or own not in declared:
            tensors[name] = array
            continue
        if own in stored:
            raise FormatError(f"tensor '{own}' is stored twice, coded and as it is")
        try:
            tensors[own] = _whole(array, declared[own])
        except InputError as error:
            raise FormatError(f"tensor '{name}': {error}") from error
        tensors[own].flags.writeable = False
    return tensors


def is_coded(name: str) -> bool:
    """Say whether a file's tensor of this name is entropy-coded."""
    return name.endswith(SUFFIX)


def _coded(array: NDArray[Any], codes: PackedCodes | None) -> NDArray[np.uint8]:
    if codes is not None:
        streams = _core.encode_codes(array, codes.bits, codes.models, codes.count)
        return np.concatenate([np.zeros(1, np.uint8), streams])
    width = array.itemsize
    streams = _core.encode_codes(_bytes_of(array).T.reshape(-1), 8, width, array.size)
    return np.concatenate([np.array([width], np.uint8), streams])


def _whole(coded: NDArray[Any], declared: DeclaredTensor) -> NDArray[Any]:
    if coded.ndim != 1 or coded.dtype != np.uint8 or not coded.size:
        raise InputError(f"expected U8 [at least 1], got {dtype_name(coded)} {list(coded.shape)}")
    codes, width, streams = declared.codes, int(coded[0]), coded[1:]
    widths = [0] if codes else [DTYPES[name].itemsize for name in declared.dtypes]
    if width not in widths:
        raise InputError(f"elements of {width} bytes; expected {' or '.join(map(str, widths))}")
    count = prod(declared.shape)
    if (width or 1) * count > MAX_EXPANSION * coded.nbytes:
        raise InputError(f"{coded.nbytes:,} bytes are too few for {list(declared.shape)}")
    if codes:
        return _core.decode_codes(streams, codes.bits, codes.models, codes.count)
    planes = _core.decode_codes(streams, 8, width, count).reshape(width, count)
    dtype = next(DTYPES[name] for name in declared.dtypes if DTYPES[name].itemsize == width)
    return _from_bytes(np.ascontiguousarray(planes.T), dtype).reshape(declared.shape)


def _bytes_of(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the bytes `[n, width]` of an array's elements, in which equal bytes are more frequent than in memory."""
    width = array.itemsize
    bits = np.ascontiguousarray(array).reshape(-1).view(f"<u{width}")
    if array.dtype.kind == "f":
        bits = bits << 1 | bits >> (8 * width - 1)
    elif array.dtype.kind == "i":
        bits = bits ^ 128
    return bits.view(np.uint8).reshape(-1, width)


def _from_bytes(rows: NDArray[np.uint8], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the elements whose bytes `_bytes_of` gave."""
    width = dtype.itemsize
    bits = rows.reshape(-1).view(f"<u{width}")
    if dtype.kind == "f":
        bits = bits >> 1 | bits << (8 * width - 1)
    elif dtype.kind == "i":
        bits = bits ^ 128
    return bits.view(dtype)
