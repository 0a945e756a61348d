"""The engine that runs a network compressed: pyquant itself."""

from __future__ import annotations

from collections.abc import Sequence

from pyquant.engines import Arrays
from pyquant.runtime import Model
from pyquant.runtime import load as load_model


class PyquantEngine:
    """A `.pqmodel` on the native core."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.isa = model.isa

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs for one float32 array per input."""
        result = self._model(*inputs)
        return list(result.values()) if isinstance(result, dict) else [result]

    def tune(self, inputs: Arrays, seconds: float) -> None:
        """Measure the kernels of each layer and remember the fastest."""
        self._model.tune(*inputs, seconds=seconds)


def load(
    path: str, shapes: Sequence[tuple[int, ...]], threads: int, precision: str, memory_budget: int
) -> PyquantEngine:
    """Load a `.pqmodel`; the plan for the shapes is made by the first run."""
    return PyquantEngine(load_model(path, threads=threads, precision=precision, memory_budget=memory_budget))
