"""Capture: a PyTorch module becomes a network of ours."""

from __future__ import annotations

from pyquant.capture.detector import capture_detector, is_detector
from pyquant.capture.module import capture_module as capture
from pyquant.capture.program import flat_outputs

__all__ = ["capture", "capture_detector", "flat_outputs", "is_detector"]
