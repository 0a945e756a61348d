"""Masks as COCO writes them: the lengths of runs of zeros and ones, column by column, as text."""

from __future__ import annotations

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
