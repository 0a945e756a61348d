"""Calibration inputs that several files share: each is read and decoded once, then kept in memory or on disk."""

from __future__ import annotations

import numpy as np

from pyquant.learn.activations import Activations
from pyquant.learn.calibration import BATCH, Calibration, Floats

MEMORY_BYTES = 1 << 29  # of inputs; beyond it they are kept in a temporary folder
INPUTS = "inputs"


class KeptInputs:
    """A calibration whose batches are read from their source the first time only."""

    def __init__(self, source: Calibration, memory_bytes: int = MEMORY_BYTES) -> None:
        self._source = source
        self._values = Activations(memory_bytes)
        self._known: set[int] = set()
        self.calibration = Calibration(count=source.count, shape=source.shape, read=self._read, files=source.files)

    def close(self) -> None:
        """Forget what is kept, and remove the temporary folder."""
        self._known.clear()
        self._values.__exit__(None, None, None)

    def _read(self, rows: slice) -> Floats:
        start, stop, step = rows.indices(self._source.count)
        parts = []
        # Batch by batch, whatever the slice: the learner reads whole ones, sensitivities some rows of each.
        while start < stop:
            batch = start // BATCH
            end = min(stop, (batch + 1) * BATCH)
            parts.append(self._batch(batch)[start - batch * BATCH : end - batch * BATCH : step])
            start += step * len(parts[-1])
        return np.concatenate(parts) if parts else self._source.read(rows)

    def _batch(self, batch: int) -> Floats:
        if batch not in self._known:
            inputs = self._source.read(slice(batch * BATCH, min((batch + 1) * BATCH, self._source.count)))
            self._values.put(INPUTS, batch, inputs)
            self._known.add(batch)
        return self._values.get(INPUTS, batch)
