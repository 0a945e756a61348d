"""Probing: whether a captured network computes what the module does, also at sizes it was not traced at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from pyquant.capture.program import NeedsFixedSizeError, flat_outputs
from pyquant.errors import CaptureError, InputError
from pyquant.torch_network import TorchNetwork

# Folding a batch norm rounds each layer differently; what a wrong trace changes is far larger.
TOLERANCE = 1e-3


def check(module: nn.Module, network: TorchNetwork, shape: tuple[int, int, int]) -> None:
    """Compare the network with `module` on one image of `shape`.

    Raises:
        CaptureError: the module does not run on it.
        NeedsFixedSizeError: the results differ, because the module does something else for one image than for several.
    """
    image = _image(shape)
    try:
        expected = flat_outputs(module(image.clone()))
    except Exception as error:  # the user's own code
        what = f"{type(error).__name__}: {error}"
        raise CaptureError(f"the module does not run on an input of {[1, *shape]}, {what}") from error
    if not _agree(expected, network(image)):
        raise NeedsFixedSizeError(f"on an input of {[1, *shape]} the module does not compute what its trace does")


def holds(module: nn.Module, network: TorchNetwork, shapes: Sequence[tuple[int, int, int]]) -> bool:
    """Return whether the network and the module agree on images of all these shapes, and run on one of them at least.

    They also agree on a shape where both are refused: the graph's own checks stand for the module's.
    """
    ran = False
    for shape in shapes:
        image = _image(shape)
        try:
            expected = flat_outputs(module(image.clone()))
        except Exception:  # the user's own code, given a size it may not be made for
            expected = None
        try:
            got = network(image)
        except InputError:
            got = None
        if expected is None or got is None:
            if (expected is None) != (got is None):
                return False
            continue
        if not _agree(expected, got):
            return False
        ran = True
    return ran


def _image(shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn((1, *shape), generator=torch.Generator().manual_seed(0))


def _agree(expected: Sequence[torch.Tensor], got: torch.Tensor | dict[str, torch.Tensor]) -> bool:
    outputs = list(got.values()) if isinstance(got, dict) else [got]
    if len(outputs) != len(expected):
        return False
    for want, have in zip(expected, outputs, strict=True):
        # A squeeze() also drops a batch of one; ours always keeps the batch.
        if want.numel() != have.numel():
            return False
        finite = want[torch.isfinite(want)].abs()
        largest = float(finite.max()) if finite.numel() else 0.0
        if not torch.allclose(have, want.reshape(have.shape), rtol=0, atol=TOLERANCE * largest + 1e-30, equal_nan=True):
            return False
    return True
