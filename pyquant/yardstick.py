"""The yardstick of files: how far their outputs are from the dense network's, on calibration inputs."""

from __future__ import annotations

import os

import numpy as np
import torch

from pyquant.detector import compared_outputs, is_detector, tensor_parts
from pyquant.file import ModelFile, read_model
from pyquant.graph import Network
from pyquant.learn.calibration import BATCH, Calibration, Floats
from pyquant.runtime import Model
from pyquant.selfcheck import run_module
from pyquant.torch_network import TorchNetwork, found_boxes

MEASURED_INPUTS = 128
MEASURED_PICTURES = 16  # of a detector, which finds many boxes in each


class Yardstick:
    """The outputs of a dense network on some calibration inputs; of a detector, of its parts on the boxes it finds."""

    def __init__(self, network: Network, inputs: Calibration) -> None:
        """Run the dense network; a detector is one that finds few boxes (`pyquant.detector.for_learning`)."""
        self._is_detector = is_detector(network.graph)
        self._groups = compared_outputs(network.graph)
        most = MEASURED_PICTURES if self._is_detector else MEASURED_INPUTS
        self._batches = [[batch, *self._boxes(network, batch)] for batch in inputs.evenly(most, BATCH)]
        dense = TorchNetwork(self._compared(network)).eval()
        self._expected = [run_module(dense, *batch) for batch in self._batches]

    def error(self, file: str | os.PathLike[str], threads: int | None) -> float:
        """Return `||y - y'||² / ||y||²` of the outputs y of the dense network and y' of a `.pqmodel`, all together.

        Of a detector, the mean of those of its groups of outputs.
        """
        network = self._compared(read_model(os.fspath(file)).network)
        model = Model(ModelFile(network=network), threads=threads)
        names = network.graph.outputs
        error, signal = dict.fromkeys(names, 0.0), dict.fromkeys(names, 0.0)
        for batch, expected in zip(self._batches, self._expected, strict=True):
            outputs = model(*batch)
            mine: list[Floats] = list(outputs.values()) if isinstance(outputs, dict) else [outputs]
            for name, a, b in zip(names, mine, expected, strict=True):
                error[name] += float(np.square(a - b, dtype=np.float64).sum())
                signal[name] += float(np.square(b, dtype=np.float64).sum())
        sums = [[sum(part[name] for name in group) for part in (error, signal)] for group in self._groups]
        return sum(wrong / right if right > 0 else wrong for wrong, right in sums) / len(sums)

    def _compared(self, network: Network) -> Network:
        return tensor_parts(network) if self._is_detector else network

    def _boxes(self, network: Network, images: Floats) -> list[Floats]:
        if not self._is_detector:
            return []
        return [boxes.numpy() for boxes in found_boxes(network, torch.from_numpy(images))]
