"""Ways out of a `.pqmodel`: the decoded network as a state dict, as safetensors or as ONNX."""

from __future__ import annotations

from pyquant.export.state import state_dict

__all__ = ["state_dict"]
