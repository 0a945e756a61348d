"""The bytes of a `.pqmodel`: a safetensors file in canonical form that carries its own digest.

    8 bytes     N, the length of the header (little-endian); 8 + N is a multiple of 64
    N bytes     the header, {"__metadata__":{"digest":"64 hex digits",..},"name":{"dtype":..,"shape":..,
                "data_offsets":..},..}, then blanks
    the rest    the tensors without gaps, the widest dtype first and then by name, so that each is aligned to its dtype

The digest is the SHA-256 of the whole file with the 64 digits taken as '0'. It comes first, at a fixed place, so that a
file which is not ours is refused by its first bytes, and a changed byte anywhere before a word of the rest is believed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from math import prod
from typing import Any, NoReturn

import numpy as np
import safetensors
from numpy.typing import NDArray

from pyquant.errors import FormatError

ALIGNMENT = 64  # of the first tensor: to this the header is padded
_START = b'{"__metadata__":{"digest":"'
_DIGEST = slice(8 + len(_START), 8 + len(_START) + 64)
PREFIX_BYTES = _DIGEST.stop
MAX_HEADER_BYTES = 1 << 24

# safetensors' names of the dtypes that tensors may have, each little-endian.
DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "U8": np.dtype("u1"),
    "I8": np.dtype("i1"),
}


def dtype_name(array: NDArray[Any]) -> str:
    """Return safetensors' name of an array's dtype, or NumPy's where a `.pqmodel` cannot hold it."""
    return next((name for name, dtype in DTYPES.items() if dtype == array.dtype), str(array.dtype))


def pack(metadata: Mapping[str, str], tensors: Mapping[str, NDArray[Any]]) -> bytes:
    """Return the file that holds `metadata`, in the order given, and `tensors`; the same input gives the same bytes."""
    order = sorted(tensors, key=lambda name: (-tensors[name].itemsize, name))
    header: dict[str, Any] = {"__metadata__": {"digest": "0" * 64, **metadata}}
    chunks: list[memoryview] = []
    offset = 0
    for name in order:
        array = np.asarray(tensors[name], DTYPES[dtype_name(tensors[name])], order="C")
        end = offset + array.nbytes
        header[name] = {"dtype": dtype_name(array), "shape": list(array.shape), "data_offsets": [offset, end]}
        chunks.append(array.reshape(-1).view(np.uint8).data)
        offset = end
    text = compact_json(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    start = bytearray(len(text).to_bytes(8, "little") + text)
    digest = hashlib.sha256(start)
    for chunk in chunks:
        digest.update(chunk)
    start[_DIGEST] = digest.hexdigest().encode()
    return b"".join([start, *chunks])


def unpack(data: bytes) -> tuple[dict[str, str], dict[str, NDArray[Any]]]:
    """Return the metadata, without the digest, and the tensors (read-only arrays) of a file.

    Raises:
        FormatError: the file is not a `.pqmodel`, or is damaged.
    """
    header_end = 8 + check_prefix(data, len(data))
    if data[_DIGEST].decode("ascii", "replace") != _digest(data):
        raise FormatError("the contents do not fit the digest: the file is truncated or damaged")
    header = parse_json(data[8:header_end], "the header")
    metadata = header.pop("__metadata__")
    if not all(isinstance(value, str) for value in metadata.values()):
        raise FormatError("the header's __metadata__ must hold strings alone")
    del metadata["digest"]
    try:
        # Offsets, sizes and complete coverage without overlap are what the library checks; it also copies the tensors,
        # which aligns them and lets go of the file.
        entries = dict(safetensors.deserialize(data))  # type: ignore[no-untyped-call]
    except (safetensors.SafetensorError, ValueError) as error:
        raise FormatError(f"not a valid safetensors file: {error}") from error
    if unusable := [f"'{name}' is {entry['dtype']}" for name, entry in entries.items() if entry["dtype"] not in DTYPES]:
        raise FormatError(f"tensor {', '.join(unusable)}; expected {', '.join(DTYPES)}")
    return metadata, {name: _as_array(entries[name]) for name in header}  # in the file's order; the library's is random


def check_prefix(start: bytes, file_bytes: int) -> int:
    """Check the first `PREFIX_BYTES` of a file of `file_bytes`, and return the length of its header.

    Raises:
        FormatError: the file is not a `.pqmodel`, or is shorter than its header.
    """
    if file_bytes == 0:
        raise FormatError("the file is empty")
    if len(start) < PREFIX_BYTES or start[8 : _DIGEST.start] != _START:
        raise FormatError("not a .pqmodel file, or one that is truncated")
    length = int.from_bytes(start[:8], "little")
    if length > MAX_HEADER_BYTES or (8 + length) % ALIGNMENT:
        raise FormatError(f"a header of {length:,} bytes is not possible: the file is damaged")
    if 8 + length > file_bytes:
        raise FormatError(f"the header needs {8 + length:,} bytes, the file has {file_bytes:,}: it is truncated")
    return length


def compact_json(value: Any, *, sort_keys: bool = False) -> str:
    """Return `value` as JSON without blanks, in the order of its dictionaries unless `sort_keys`.

    Raises:
        ValueError: a number is not finite.
        TypeError: a value is not plain JSON.
    """
    return json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys, separators=(",", ":"))


def parse_json(text: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in `text`, or in its UTF-8 bytes.

    Raises:
        FormatError: naming `what`, where it is not JSON, not an object, repeats a key, or holds a number that is not
            finite or text that is not Unicode.
    """
    try:
        text = text if isinstance(text, str) else text.decode()
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_refuse_constant)
        compact_json(value).encode()  # an escape may hide half a surrogate pair, which could not be printed
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise FormatError(f"{what} must be a JSON object, got {type(value).__name__}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key is repeated")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _digest(data: bytes) -> str:
    view = memoryview(data)
    digest = hashlib.sha256(view[: _DIGEST.start])
    digest.update(b"0" * 64)
    digest.update(view[_DIGEST.stop :])
    return digest.hexdigest()


def _as_array(entry: Mapping[str, Any]) -> NDArray[Any]:
    shape = entry["shape"]
    # An empty array has no bytes that frombuffer could take.
    array = np.frombuffer(entry["data"], DTYPES[entry["dtype"]]) if prod(shape) else np.empty(0, DTYPES[entry["dtype"]])
    array = array.reshape(shape)
    array.flags.writeable = False
    return array
