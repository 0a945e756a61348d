"""Codes of a fixed number of bits, packed into bytes: the form in which codecs hand them to the file.

The bits of a code follow those of the one before it without gaps, least significant bit first.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import InputError

LEAST_SAVING = 16  # bytes that entropy coding must save: a suffix and longer numbers of the header take up some
# A few bytes of a stream may stand for any number of equal symbols: this bounds what a file can make of its bytes.
MAX_EXPANSION = 256


def pack_codes(codes: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Pack integers below 2**bits into bytes, least significant bit first; the last byte is filled with zero bits.

    Raises:
        InputError: a code needs more bits, and would change its neighbours.
    """
    flat = codes.reshape(-1)
    if flat.size and (flat.min() < 0 or flat.max() >= 1 << bits):
        raise InputError(f"codes of {bits} bits must be 0 to {(1 << bits) - 1}, got {flat.min()} to {flat.max()}")
    count = packed_bytes(flat.size, bits)
    if bits == 8:
        return flat.astype(np.uint8)
    if bits == 16:
        return flat.astype("<u2").view(np.uint8)
    # Eight codes fill `bits` bytes: code i of each eight begins at bit i * bits and touches at most three of the bytes.
    eights = np.zeros((-(-flat.size // 8), 8), np.uint32)
    eights.reshape(-1)[: flat.size] = flat
    packed = np.zeros((len(eights), bits), np.uint8)
    for i in range(8):
        first, shift = divmod(i * bits, 8)
        spread = eights[:, i] << np.uint32(shift)
        for byte in range(first, (i * bits + bits - 1) // 8 + 1):
            packed[:, byte] |= (spread >> np.uint32(8 * (byte - first))).astype(np.uint8)
    return packed.reshape(-1)[:count]


def unpack_codes(packed: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16]:
    """Return the `count` integers that `pack_codes` packed with `bits` bits each."""
    if bits == 8:
        return packed[:count].astype(np.uint16)
    if bits == 16:
        return packed[: 2 * count].view("<u2").astype(np.uint16)
    eights = np.zeros((-(-count // 8), bits), np.uint8)
    eights.reshape(-1)[: packed_bytes(count, bits)] = packed[: packed_bytes(count, bits)]
    codes = np.empty((len(eights), 8), np.uint16)
    mask = np.uint32((1 << bits) - 1)
    for i in range(8):
        first, shift = divmod(i * bits, 8)
        last = (i * bits + bits - 1) // 8
        joined = eights[:, first].astype(np.uint32)
        for byte in range(first + 1, last + 1):
            joined |= eights[:, byte].astype(np.uint32) << np.uint32(8 * (byte - first))
        codes[:, i] = (joined >> np.uint32(shift)) & mask
    return codes.reshape(-1)[:count]


def is_worth_coding(coded: int, packed: int) -> bool:
    """Say whether a file stores a tensor of `packed` bytes entropy-coded, when it then takes `coded` bytes."""
    return coded + LEAST_SAVING < packed <= MAX_EXPANSION * coded


def packed_bytes(count: int, bits: int) -> int:
    """Return how many bytes `count` packed codes of `bits` bits take."""
    return -(-count * bits // 8)
