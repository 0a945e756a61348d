"""The self-check: a file that was written is loaded, run and compared with what it came from."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pyquant.capture import flat_outputs
from pyquant.detector import tensor_parts
from pyquant.errors import SelfCheckError
from pyquant.file import ModelFile, read_model
from pyquant.runtime import Model, load
from pyquant.torch_network import TorchNetwork, to_torch

DECODED_TOLERANCE = 1e-4  # the same layers with the same weights, summed in another order
MODULE_TOLERANCE = 1e-3  # and every batch norm by itself, where the file has it folded
DETECTOR_IMAGE = (3, 128, 160)  # what a detector is checked on: large enough for every level of a pyramid ..
DETECTOR_BOXES = 8  # .. and boxes of all sizes in it

Floats = NDArray[np.float32]


def check_against_decoded(path: str | os.PathLike[str], batch: Floats, *, threads: int | None = None) -> float:
    """Compare the runtime's outputs for `batch` `[N, C, H, W]` with PyTorch's on the decoded network of the same file.

    Returns:
        The largest difference, relative to the largest output; of several outputs the worst.

    Raises:
        SelfCheckError: it is above `DECODED_TOLERANCE`, or an output is not finite.
    """
    expected = run_module(to_torch(os.fspath(path)), batch)
    what = "PyTorch on the decoded network"
    return _compare(_run_file(path, batch, threads), expected, DECODED_TOLERANCE, path, what)


def check_against_module(
    path: str | os.PathLike[str], module: nn.Module, batch: Floats, *, threads: int | None = None
) -> float:
    """Compare the runtime's outputs for `batch` `[N, C, H, W]` with those of a module that carries the decoded weights.

    Args:
        module: the network that the file came from, on the CPU and in eval mode, its batch norms not folded.

    Returns:
        The largest difference, relative to the largest output; of several outputs the worst.

    Raises:
        SelfCheckError: it is above `MODULE_TOLERANCE`, or an output is not finite.
    """
    expected = run_module(module, batch)
    what = "the PyTorch module with the decoded weights"
    return _compare(_run_file(path, batch, threads), expected, MODULE_TOLERANCE, path, what)


def check_detector(path: str | os.PathLike[str], *, seed: int, threads: int | None = None) -> float:
    """Compare a detector with PyTorch's on the decoded network of the same file: all that it computes, and no choices.

    Returns:
        The largest difference, relative to the largest value of the same output; of several outputs the worst.

    Raises:
        SelfCheckError: it is above `DECODED_TOLERANCE`, or an output is not finite.
    """
    parts = tensor_parts(read_model(os.fspath(path)).network)
    rng = np.random.default_rng(seed)
    image = rng.standard_normal((1, *DETECTOR_IMAGE), dtype=np.float32)
    inputs = [image]
    for declared in parts.graph.inputs[1:]:
        boxes = np.zeros((DETECTOR_BOXES, *declared.default), np.float32)
        corners = rng.uniform(0, DETECTOR_IMAGE[1:], (2, DETECTOR_BOXES, 2))[:, :, ::-1]  # rows, columns: x comes first
        boxes[:, 1:5] = np.concatenate([corners.min(axis=0), corners.max(axis=0)], axis=1)
        inputs.append(boxes)
    expected = run_module(TorchNetwork(parts), *inputs)
    found = Model(ModelFile(network=parts), threads=threads)(*inputs)
    got = list(found.values()) if isinstance(found, dict) else [found]
    return _compare(got, expected, DECODED_TOLERANCE, path, "PyTorch on the decoded network")


def run_module(module: nn.Module, *inputs: Floats) -> list[Floats]:
    """Return the outputs of a module in the order of the captured graph's."""
    with torch.inference_mode():
        return [output.numpy() for output in flat_outputs(module(*map(torch.from_numpy, inputs)))]


def _run_file(path: str | os.PathLike[str], batch: Floats, threads: int | None) -> list[Floats]:
    result = load(path, threads=threads)(batch)
    return list(result.values()) if isinstance(result, dict) else [result]


def _compare(
    got: Sequence[Floats], expected: Sequence[Floats], tolerance: float, path: str | os.PathLike[str], what: str
) -> float:
    name = os.path.basename(path)
    shapes, expected_shapes = [output.shape for output in got], [output.shape for output in expected]
    if shapes != expected_shapes:
        raise SelfCheckError(f"{name}: outputs have shapes {shapes}, those of {what} {expected_shapes}")
    worst = 0.0
    for mine, theirs in zip(got, expected, strict=True):
        if not (np.isfinite(mine).all() and np.isfinite(theirs).all()):
            raise SelfCheckError(f"{name}: its outputs, or those of {what}, are not all finite")
        difference, largest = (float(np.abs(a).max()) for a in (mine.astype(np.float64) - theirs, theirs))
        # Outputs that are all 0 must be met exactly.
        relative = difference / largest if largest > 0 else float(difference > 0)
        if relative > tolerance:
            raise SelfCheckError(
                f"{name}: differs from {what} by {difference:.3g} where the largest output is {largest:.3g}; "
                f"expected at most {tolerance:g} of it. Please report this network"
            )
        worst = max(worst, relative)
    return worst
