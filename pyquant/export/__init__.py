"""Ways out of a `.pqmodel`: the decoded network as a state dict, as safetensors or as ONNX."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from pyquant.errors import ConfigError
from pyquant.export.onnx import export_onnx
from pyquant.export.safetensors import export_safetensors
from pyquant.export.state import state_dict
from pyquant.storage import AnyPath

if TYPE_CHECKING:
    from pyquant.file import ModelFile

FORMATS: dict[str, Callable[[ModelFile, AnyPath], int]] = {".onnx": export_onnx, ".safetensors": export_safetensors}


def export(model: ModelFile, path: AnyPath) -> int:
    """Write the decoded dense network in the format that the suffix of `path` names; return its size in bytes.

    Raises:
        ConfigError: the suffix names no format.
        InputError: the network cannot be expressed in that format, or `path` cannot be written.
        MissingDependencyError: a library that the format needs is not installed.
    """
    return format_for(path)(model, path)


def format_for(path: AnyPath) -> Callable[[ModelFile, AnyPath], int]:
    """Return the function that writes the format of `path`; raise ConfigError where its suffix names none."""
    name = Path(path).name
    if (writer := FORMATS.get(Path(path).suffix.lower())) is None:
        raise ConfigError(f"an export must be called {' or '.join(f'*{suffix}' for suffix in FORMATS)}, got '{name}'")
    return writer


__all__ = ["FORMATS", "export", "export_onnx", "export_safetensors", "format_for", "state_dict"]
