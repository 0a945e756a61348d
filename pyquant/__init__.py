"""Small trained vision networks that run, still compressed, on a CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pyquant.errors import PyquantError
from pyquant.runtime import Model, load

if TYPE_CHECKING:
    from pyquant.compression import compress
    from pyquant.torch_network import to_torch

__version__ = "0.1.0"

__all__ = ["Model", "PyquantError", "compress", "load", "to_torch"]


def __getattr__(name: str) -> Any:
    # What needs PyTorch is imported when it is first used: running a file must not need it.
    if name == "compress":
        from pyquant.compression import compress

        return compress
    if name == "to_torch":
        from pyquant.torch_network import to_torch

        return to_torch
    raise AttributeError(f"module 'pyquant' has no attribute '{name}'")
