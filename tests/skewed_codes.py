"""Codes of which some are more frequent than others, their streams, and damage to these."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pyquant import _core
from pyquant.codecs.packing import pack_codes


def skewed(rng: np.random.Generator, centroids: int, count: int, concentration: float = 1.0) -> NDArray[np.int64]:
    """Return codes of which some are much more frequent than others."""
    shares = rng.gamma(concentration, 1.0, centroids) + 1e-9
    return rng.choice(centroids, size=count, p=shares / shares.sum())


def encode(codes: NDArray[np.integer], bits: int, models: int = 1) -> NDArray[np.uint8]:
    return _core.encode_codes(pack_codes(codes, bits), bits, models, codes.size // models)


def damaged(coded: NDArray[np.uint8], changes: dict[int, int]) -> NDArray[np.uint8]:
    result = coded.copy()
    for position, byte in changes.items():
        result[position] = byte
    return result
