"""Masks as COCO writes them: the lengths of runs of zeros and ones, column by column, as text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

_BITS = 5  # of a character; one more says whether others follow
_FIRST = 48  # the character that stands for 0


def run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """Return the lengths of a mask's runs, column by column; the first run is of zeros, and may be empty."""
    flat = np.asarray(mask, np.bool_).T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    ends = [*([0] if flat.size and flat[0] else []), *changes.tolist(), flat.size]
    return np.diff(ends, prepend=0).tolist()


def to_coco(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """Return a mask `[H, W]` as `{"size": [H, W], "counts": text}`, which COCO's tools read.

    From the fourth run on, the difference to the last but one is written, in groups of five bits, lowest first.
    """
    counts = run_lengths(mask)
    text = []
    for i, count in enumerate(counts):
        rest = count - counts[i - 2] if i > 2 else count
        while True:
            group = rest & 0x1F
            rest >>= _BITS
            # The highest bit of the last group is the sign.
            is_last = rest == (-1 if group & 0x10 else 0)
            text.append(chr(_FIRST + (group if is_last else group | 0x20)))
            if is_last:
                break
    return {"size": list(mask.shape), "counts": "".join(text)}


def from_coco(segmentation: Mapping[str, Any]) -> NDArray[np.bool_]:
    """Return the mask `[H, W]` that `to_coco` wrote.

    Raises:
        ValueError: the runs do not add up to the mask's pixels, or the text breaks off.
    """
    height, width = segmentation["size"]
    counts: list[int] = []
    value = shift = 0
    for character in segmentation["counts"]:
        group = ord(character) - _FIRST
        value |= (group & 0x1F) << shift
        shift += _BITS
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
        value = shift = 0
    if shift or min(counts, default=0) < 0 or sum(counts) != height * width:
        raise ValueError(f"a mask of {height} x {width} pixels whose runs cover {sum(counts)}")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return np.ascontiguousarray(flat.reshape(width, height).T)
