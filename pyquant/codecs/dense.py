"""The dense codec: a weight kept as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Keep the weight in its own dtype (fp32 or fp16)."""

    def bits_per_code_word(self) -> float:
        """Return the bits that one weight counts in `bit_operations`."""
        return 32.0
