"""The checkpoint layout of "Permute, Quantize, and Fine-tune" (Martinez et al., CVPR 2021).

A flat dict of tensors by state dict entry, in which the weight of a coded layer is replaced by `<layer>.codes_matrix`
`[O, J]` and `<layer>.codebook` `[K, d]`. Permutations are already applied to the weights around them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import FormatError
from pyquant.interop.checkpoint import Checkpoint, CodedWeight

CODES, CODEBOOK = ".codes_matrix", ".codebook"


def is_pqf(entries: Mapping[str, Any]) -> bool:
    """Return whether the entries of a checkpoint are in this layout."""
    return any(isinstance(name, str) and name.endswith(CODES) for name in entries)


def read_pqf(entries: Mapping[str, Any]) -> Checkpoint:
    """Return the checkpoint whose `entries` (arrays by name) are in this layout.

    Raises:
        FormatError: listing every entry that is not as the layout has it.
    """
    coded: dict[str, CodedWeight] = {}
    dense: dict[str, NDArray[np.generic]] = {}
    faults = [f"'{name}': expected a tensor" for name, value in entries.items() if not isinstance(value, np.ndarray)]
    if faults:
        raise FormatError("; ".join(faults))
    for name, value in entries.items():
        if name.endswith(CODES):
            layer = name.removesuffix(CODES)
            codebook = entries.get(layer + CODEBOOK)
            if codebook is None:
                faults.append(f"missing: {layer}{CODEBOOK}")
            elif codebook.ndim != 2 or not codebook.size:
                faults.append(f"'{layer}{CODEBOOK}': expected shape [K, d], got {list(codebook.shape)}")
            elif value.ndim != 2 or not value.size or value.dtype.kind not in "iu":
                faults.append(f"'{name}': expected integers [O, J], got {value.dtype} {list(value.shape)}")
            else:
                coded[layer] = CodedWeight(codes=value, codebook=codebook)
        elif name.endswith(CODEBOOK):
            if name.removesuffix(CODEBOOK) + CODES not in entries:
                faults.append(f"missing: {name.removesuffix(CODEBOOK)}{CODES}")
        else:
            dense[name] = value
    if faults:
        raise FormatError("; ".join(faults))
    return Checkpoint(layout="pqf", coded=coded, dense=dense)
