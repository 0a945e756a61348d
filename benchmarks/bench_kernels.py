"""Every layer of ResNet-18 and ResNet-50 on every instruction set, by each path that it has, one thread.

    pytest benchmarks/bench_kernels.py [-k 'avx512 and table'] [--benchmark-json=kernels.json]

Only the layer's own step counts, not the copying of its input and output. GMAC/s are those a dense layer would need, so
that the Winograd and table paths can exceed the peak, which is the measured one of a core's fp32 multiply-adds.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import pytest
from layers import PRESET_OF, Layer, read_layers

from pyquant import _core
from pyquant.runtime import Model

ROUNDS = 15
REFERENCE = "reference"
LAYERS = [layer for network in PRESET_OF for layer in read_layers(network)]
CASES = [(layer, path) for layer in LAYERS for path in layer.paths]


class LayerClock:
    """A clock that only runs inside the layer's step: the timer that pytest-benchmark reads."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds

    def run(self, model: Model, x: np.ndarray[Any, Any]) -> None:
        self.seconds += layer_ms(model, x) / 1000


def layer_ms(model: Model, x: np.ndarray[Any, Any]) -> float:
    return float(next(step["ms"] for step in model.profile(x)["steps"] if step["name"] == "layer"))


def load(layer: Layer, path: str, isa: str) -> tuple[Model, np.ndarray[Any, Any]]:
    model = Model(layer.model(), threads=1, isa=isa, kernel=path)
    return model, np.random.default_rng(0).standard_normal(layer.input_shape(), dtype=np.float32)


@cache
def reference_ms(layer: Layer, path: str) -> float:
    return layer_ms(*load(layer, path, REFERENCE))


@cache
def peak_gmacs(isa: str) -> float:
    return _core.peak_gmacs(isa)


CLOCK = LayerClock()


@pytest.mark.benchmark(timer=CLOCK)
@pytest.mark.parametrize("isa", _core.available_isas())
@pytest.mark.parametrize(("layer", "path"), CASES, ids=str)
def test_layer(layer: Layer, path: str, isa: str, benchmark: Any) -> None:
    model, x = load(layer, path, isa)
    benchmark.group = f"{layer} {path}"
    rounds = 1 if isa == REFERENCE else ROUNDS
    benchmark.pedantic(CLOCK.run, args=(model, x), rounds=rounds, warmup_rounds=0 if isa == REFERENCE else 2)
    ms = 1000 * benchmark.stats.stats.median
    gmacs = layer.macs / ms / 1e6
    benchmark.extra_info |= {
        "network": layer.network,
        "layer": str(layer),
        "count": layer.count,
        "macs": layer.macs,
        "path": path,
        "isa": isa,
        "threads": 1,
        "gmacs": gmacs,
        "peak_gmacs": peak_gmacs(isa),
        "times_reference": reference_ms(layer, path) / ms,
    }
