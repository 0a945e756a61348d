"""Accuracy before and after: a file beside the dense network that it came from, on the same labelled pictures."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pyquant._core import default_threads
from pyquant.classes import ClassName
from pyquant.detector import DetectorPreprocessing
from pyquant.errors import InputError
from pyquant.evaluate import measure_hits
from pyquant.graph import Network
from pyquant.preprocessing import Preprocessing
from pyquant.runtime import load
from pyquant.torch_network import TorchNetwork

Hits = NDArray[np.bool_]  # [pictures, 2]: the best class is right, and one of the best five is


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The accuracy of a compressed network and of the dense one, in per cent of the same pictures."""

    pictures: int
    top1_before: float
    top1_after: float
    top5_before: float
    top5_after: float
    standard_error: float  # of the difference of the two top-1, in points: what other pictures would change it by

    @classmethod
    def of(cls, before: Hits, after: Hits) -> Comparison:
        """Return the comparison of the dense network's hits with the compressed one's, picture by picture."""
        count = len(before)
        changes = before[:, 0].astype(np.float64) - after[:, 0]
        # Paired: pictures that both networks get right, or both wrong, say nothing about the difference.
        variance = float(np.square(changes).mean() - np.square(changes.mean()))
        (top1_before, top5_before), (top1_after, top5_after) = (
            (100.0 * float(share) for share in hits.mean(axis=0)) for hits in (before, after)
        )
        return cls(
            pictures=count,
            top1_before=top1_before,
            top1_after=top1_after,
            top5_before=top5_before,
            top5_after=top5_after,
            standard_error=100.0 * sqrt(max(variance, 0.0) / count),
        )

    @property
    def drop(self) -> float:
        """How many points of top-1 compressing has cost; negative where it has gained."""
        return self.top1_before - self.top1_after

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as plain JSON values."""
        return {**{name: getattr(self, name) for name in self.__slots__}, "drop": self.drop}


class Labelled:
    """Labelled pictures, and what the dense network makes of them."""

    def __init__(
        self,
        network: Network,
        data: str | os.PathLike[str],
        preprocessing: Preprocessing | DetectorPreprocessing | None,
        classes: Sequence[ClassName],
        threads: int | None,
    ) -> None:
        """Run the dense network on the pictures.

        Args:
            network: dense.
            data: a folder or zip file of pictures in class folders, as `pyquant.evaluate.evaluate` takes it.
            preprocessing: how pictures become inputs.
            classes: the classes in the order of the outputs; where there are none, folders count in sorted order.
            threads: by default as many as the process may use.

        Raises:
            InputError: there is no picture, one is corrupt, a folder is no class, the outputs are no scores, or there
                is no preprocessing.
        """
        if preprocessing is None:
            raise InputError("labelled pictures need a size: give preprocessing, or calibrate on pictures")
        if isinstance(preprocessing, DetectorPreprocessing):
            raise InputError("labelled pictures: top-1 and top-5 say nothing of a detector; leave them out")
        self._data = data
        self._preprocessing = preprocessing
        self._classes = classes
        self._threads = threads
        runner = TorchNetwork(network).eval()

        def dense(batch: NDArray[np.float32]) -> object:
            with torch.inference_mode():
                return runner(torch.from_numpy(batch))

        before = torch.get_num_threads()
        torch.set_num_threads(threads or default_threads())
        try:
            self._before = self._hits(dense)
        finally:
            torch.set_num_threads(before)

    @property
    def count(self) -> int:
        """The number of pictures."""
        return len(self._before)

    @property
    def dense_top1(self) -> float:
        """The dense network's top-1 in per cent."""
        return 100.0 * float(self._before[:, 0].mean())

    def compare(self, file: str | os.PathLike[str]) -> Comparison:
        """Return the accuracy of a `.pqmodel` beside the dense network's."""
        return Comparison.of(self._before, self._hits(load(os.fspath(file), threads=self._threads)))

    def _hits(self, network: Callable[[NDArray[np.float32]], object]) -> Hits:
        return measure_hits(network, self._data, self._preprocessing, classes=self._classes)
