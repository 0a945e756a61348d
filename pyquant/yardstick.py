"""The yardstick of files: how far their outputs are from the dense network's, on calibration inputs."""

from __future__ import annotations

import os

import numpy as np

from pyquant.graph import Network
from pyquant.learn.calibration import BATCH, Calibration, Floats
from pyquant.runtime import load
from pyquant.selfcheck import run_module
from pyquant.torch_network import TorchNetwork

MEASURED_INPUTS = 128


class Yardstick:
    """The outputs of a dense network on some calibration inputs."""

    def __init__(self, network: Network, inputs: Calibration) -> None:
        count = min(inputs.count, MEASURED_INPUTS)
        step = inputs.count // count  # pictures may be sorted by class: take some of many
        self._batches = [
            inputs.read(slice(start * step, min(start + BATCH, count) * step, step)) for start in range(0, count, BATCH)
        ]
        dense = TorchNetwork(network).eval()
        self._expected = [run_module(dense, batch) for batch in self._batches]

    def error(self, file: str | os.PathLike[str], threads: int | None) -> float:
        """Return `||y - y'||² / ||y||²` of the outputs y of the dense network and y' of a `.pqmodel`, all together."""
        model = load(os.fspath(file), threads=threads)
        error = signal = 0.0
        for batch, expected in zip(self._batches, self._expected, strict=True):
            outputs = model(batch)
            mine: list[Floats] = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
            error += sum(float(np.square(a - b, dtype=np.float64).sum()) for a, b in zip(mine, expected, strict=True))
            signal += sum(float(np.square(b, dtype=np.float64).sum()) for b in expected)
        return error / signal if signal > 0 else error
