"""The dense codec: a weight kept as it is."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DenseConfig:
    """Keep the weight in its own dtype (fp32 or fp16)."""

    @property
    def weight_bits(self) -> float:
        """The bits that one weight counts in `bit_operations`: it is multiplied in fp32, whatever its dtype."""
        return 32.0
