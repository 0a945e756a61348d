"""What a job of compression is, in values that a checkpoint keeps and compares: network, calibration and settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import numpy as np
import torch

import pyquant
from pyquant.checkpoint import digest, digests
from pyquant.container import compact_json
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.norms import Norm
from pyquant.settings import Settings


def identity(
    network: Network,
    norms: Mapping[str, Norm],
    calibration: Calibration | None,
    settings: Settings,
    asked: Mapping[str, Any],
) -> dict[str, Any]:
    """Return plain JSON values that are equal where, on one machine, the same file is asked for, fine-tuning aside.

    Args:
        network: dense, as it was captured.
        norms: its batch norms by module path.
        calibration: the inputs that codes and codebooks are learnt on; they are read to the end.
        settings: with `preprocessing` settled.
        asked: the sizes asked for.
    """
    preprocessing = settings.preprocessing
    classes = compact_json([[name.folder, name.name] for name in settings.classes])
    return {
        "pyquant": pyquant.__version__,
        "graph": digest([compact_json(network.graph.to_json()).encode()]),
        "weights": digests(network.tensors),
        "batch norms": {name: _norm_digest(norm) for name, norm in norms.items()},
        "calibration": None if calibration is None else _contents(calibration),
        "method": settings.method,
        "most bit operations": settings.max_bit_operations,
        **settings.recipe.to_json(),
        **asked,
        "samples": settings.samples,
        "seed": settings.seed,
        "input shape": list(settings.input_shape) if settings.input_shape else None,
        "preprocessing": preprocessing.to_json() if preprocessing else None,
        "classes": f"{len(settings.classes)}, digest {digest([classes.encode()])}",
    }


def finetuning_identity(calibration: Calibration | None, settings: Settings) -> dict[str, Any]:
    """Return plain JSON values that are equal where the same fine-tuning of one network is asked for.

    Threads are among them, since sums are added up in another order on others.

    Args:
        calibration: the inputs to train on; they are read to the end.
        settings: with `threads` settled.
    """
    return {
        "calibration": None if calibration is None else _contents(calibration),
        "steps": settings.finetune_steps or None,
        "minutes": settings.finetune_minutes or None,
        "device": settings.device,
        "threads": settings.threads,
    }


def circumstances() -> dict[str, Any]:
    """Return what the last bits of a result depend on beside its job."""
    return {
        "PyTorch": torch.__version__,
        "NumPy": np.__version__,
        "processor's instructions": torch.backends.cpu.get_cpu_capability(),
    }


def _contents(calibration: Calibration) -> str:
    shape = " x ".join(str(size) for size in calibration.shape)
    return f"{calibration.count} inputs of {shape}, digest {digest(calibration.contents())}"


def _norm_digest(norm: Norm) -> str:
    arrays = {field.name: np.asarray(getattr(norm, field.name)) for field in fields(norm)}
    return digest([value.encode() for value in digests(arrays).values()])
