"""Ways into a `.pqmodel` other than compressing: checkpoints of published methods."""

from __future__ import annotations

from pyquant.interop.importer import import_checkpoint
from pyquant.interop.resnet import RESNETS

__all__ = ["RESNETS", "import_checkpoint"]
