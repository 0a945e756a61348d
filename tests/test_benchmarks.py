"""The benchmarks' own parts: shapes, networks of one layer, and the comparison of results."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pyquant.file import dumps
from pyquant.interop.resnet import resnet_config, resnet_graph

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


@pytest.mark.parametrize("network", ["resnet18", "resnet50"])
def test_shapes_are_those_of_the_network(network: str) -> None:
    from layers import read_layers

    graph = resnet_graph(resnet_config(network), 1000)
    macs = graph.macs()
    expected = Counter((weight.shape, macs[node.name]) for node, weight in graph.weighted())
    listed: Counter[Any] = Counter()
    for layer in read_layers(network):
        shape = (layer.outputs, layer.inputs, *(layer.kernel if layer.op == "conv2d" else ()))
        listed[shape, layer.macs] += layer.count
    assert listed == expected


@pytest.mark.parametrize(
    "name", ["resnet18-3x3s1-64-64-56x56", "resnet50-1x1s1-512-2048-7x7", "resnet18-linear-512-1000-1x1"]
)
def test_single_layer_is_a_valid_model(name: str) -> None:
    from layers import PRESET_OF, read_layers

    (layer,) = (layer for network in PRESET_OF for layer in read_layers(network) if str(layer) == name)
    model = layer.model()
    assert dumps(model)
    assert model.network.graph.macs() == {"layer": layer.macs}


@pytest.mark.parametrize("run", [1, 4])
def test_sparse_layer_is_a_valid_model(run: int) -> None:
    from layers import read_layers

    from pyquant.codecs import SparseConfig

    codec = SparseConfig(kept=0.3, run=run)
    model = read_layers("resnet50")[2].model(codec)
    assert dumps(model)
    assert [weight.codec for _, weight in model.network.graph.weighted()] == [codec]


def figure(value: float, low: float | None = None, high: float | None = None) -> dict[str, Any]:
    parts = {"latency": {"figures": [{"name": "x", "value": value, "unit": "ms", "low": low, "high": high}]}}
    return {"parts": parts}


@pytest.mark.parametrize(
    ("before", "after", "mark"),
    [
        (figure(10.0), figure(10.4), ""),
        (figure(10.0), figure(11.0), "changed"),
        (figure(10.0, 9.0, 11.0), figure(12.0, 11.5, 13.0), "changed"),
        (figure(10.0, 9.0, 11.0), figure(12.0, 10.5, 13.0), ""),
        ({"parts": {}}, figure(1.0), "new"),
        (figure(1.0), {"parts": {}}, "gone"),
    ],
)
def test_change_counts_only_beyond_the_spread(before: dict[str, Any], after: dict[str, Any], mark: str) -> None:
    from report import measurements, row

    old, new = (measurements(result).get("latency: x") for result in (before, after))
    assert row("x", old, new, threshold=5.0).split("|")[-2].strip() == mark


def test_benchmark_files_of_pytest_are_understood() -> None:
    from report import measurements

    stats = {"median": 0.002, "q1": 0.001, "q3": 0.004}
    (case,) = measurements({"benchmarks": [{"name": "a", "stats": stats}]}).values()
    assert (case.value, case.unit, case.low, case.high) == (2.0, "ms", 1.0, 4.0)
