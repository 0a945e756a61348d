"""Small trained vision networks that run, still compressed, on a CPU."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pyquant.errors import PyquantError
from pyquant.extras import missing_dependency
from pyquant.ranges import calibrate
from pyquant.runtime import Model, load

if TYPE_CHECKING:
    from pyquant.compression import compress, compress_sizes, compress_within, plan, plan_sizes
    from pyquant.settings import Settings
    from pyquant.torch_network import to_torch

__version__ = "0.1.0"

_LAZY = {
    "Settings": "pyquant.settings",
    "compress": "pyquant.compression",
    "compress_sizes": "pyquant.compression",
    "compress_within": "pyquant.compression",
    "plan": "pyquant.compression",
    "plan_sizes": "pyquant.compression",
    "to_torch": "pyquant.torch_network",
}

__all__ = [
    "Model",
    "PyquantError",
    "Settings",
    "calibrate",
    "compress",
    "compress_sizes",
    "compress_within",
    "load",
    "plan",
    "plan_sizes",
    "to_torch",
]


def __getattr__(name: str) -> Any:
    # What needs PyTorch is imported when it is first used: running a file must not need it.
    if (module := _LAZY.get(name)) is None:
        raise AttributeError(f"module 'pyquant' has no attribute '{name}'")
    try:
        return getattr(import_module(module), name)
    except ImportError as error:
        raise missing_dependency(error) or error from error
