"""The checkpoint layout of "And the Bit Goes Down" (Stock et al., ICLR 2020).

A dict by layer. A coded layer is `{centroids [K, d], assignments [J * O], n_blocks J, is_conv, k}`, its assignments
block after block, the outputs of one block side by side. Other layers are `{weight, bias}`; a bias of a coded layer is
`{"<layer>_bias": {bias}}`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import FormatError
from pyquant.interop.checkpoint import Checkpoint, CodedWeight

CODED_KEYS = frozenset({"centroids", "assignments", "n_blocks", "is_conv", "k"})


def is_abgd(entries: Mapping[str, Any]) -> bool:
    """Return whether the entries of a checkpoint are in this layout."""
    return any(isinstance(entry, Mapping) and "centroids" in entry for entry in entries.values())


def read_abgd(entries: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint whose `entries` (arrays and plain values) are in this layout.

    Raises:
        FormatError: listing every entry that is not as the layout has it.
    """
    coded: dict[str, CodedWeight] = {}
    dense: dict[str, NDArray[np.generic]] = {}
    faults = []
    for name, entry in entries.items():
        if not isinstance(entry, Mapping):
            faults.append(f"'{name}': expected a dict, got {type(entry).__name__}")
        elif "centroids" in entry:
            try:
                coded[name] = _coded_weight(entry)
            except ValueError as error:
                faults.append(f"'{name}': {error}")
        elif unusable := [role for role, value in entry.items() if not isinstance(value, np.ndarray)]:
            faults.append(f"'{name}': expected tensors, got something else for {', '.join(map(str, unusable))}")
        else:
            layer = name.removesuffix("_bias") if set(entry) == {"bias"} else name
            dense.update({f"{layer}.{role}": value for role, value in entry.items()})
    if faults:
        raise FormatError("; ".join(faults))
    return Checkpoint(layout="abgd", coded=coded, dense=dense)


def _coded_weight(entry: Mapping[str, Any]) -> CodedWeight:
    if set(entry) != CODED_KEYS:
        raise ValueError(f"expected {', '.join(sorted(CODED_KEYS))}, got {', '.join(sorted(map(str, entry)))}")
    centroids, assignments, blocks = entry["centroids"], entry["assignments"], entry["n_blocks"]
    if not isinstance(centroids, np.ndarray) or centroids.ndim != 2 or not centroids.size:
        raise ValueError("expected centroids of shape [K, d]")
    if not isinstance(assignments, np.ndarray) or assignments.ndim != 1 or assignments.dtype.kind not in "iu":
        raise ValueError("expected assignments to be a vector of integers")
    if type(blocks) is not int or blocks < 1 or not assignments.size or assignments.size % blocks:
        raise ValueError(f"{assignments.size} assignments cannot be those of {blocks} blocks for each output")
    if type(entry["k"]) is not int:
        raise ValueError(f"expected the kernel size k to be an integer, got {entry['k']!r}")
    codes = assignments.reshape(blocks, -1).T
    return CodedWeight(codes=codes, codebook=centroids, kernel=entry["k"] if entry["is_conv"] else None)
