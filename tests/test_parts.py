"""Values that lie in a part for each thread: every kernel writes and reads them as it does others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, values_of, weighted_layer, with_ranges

from pyquant import _core
from pyquant.codecs import CodecConfig, DenseConfig, ProductConfig, ScalarConfig
from pyquant.file import ModelFile
from pyquant.graph import Node
from pyquant.runtime import Model

CHANNELS = 12
PADDED: dict[str, Any] = {"padding": (1, 1, 1, 1)}
CODECS: dict[str, dict[int, CodecConfig]] = {  # by sides of a kernel
    "codes": {1: ProductConfig(block=(4, 1, 1), centroids=16), 3: ProductConfig(block=(2, 3, 3), centroids=16)},
    "dense": {1: DenseConfig(), 3: DenseConfig()},
    "bytes": {1: ScalarConfig(bits=8), 3: ScalarConfig(bits=8)},
}


def residual_network(rng: np.random.Generator, codecs: dict[int, CodecConfig], plane: tuple[int, int]) -> ModelFile:
    """Return two blocks of convolutions, the second of which makes planes half as large; some have groups or are
    dilated."""
    nodes, tensors = [], {}

    def conv(side: int, name: str, read: str, *, groups: int = 1, **attributes: Any) -> None:
        shape = (CHANNELS, CHANNELS // groups, side, side)
        node, more = weighted_layer(
            rng, shape, codecs[side], name=name, inputs=(read,), output=name, groups=groups, **attributes
        )
        tensors.update({key: 0.1 * value if value.dtype == np.float32 else value for key, value in more.items()})
        nodes.append(node)

    def add(name: str, left: str, right: str) -> None:
        nodes.append(Node(op="add", name=f"{name}_sum", inputs=(left, right), outputs=(f"{name}_sum",)))
        nodes.append(Node(op="relu", name=name, inputs=(f"{name}_sum",), outputs=(name,)))

    conv(1, "first", "x")
    conv(1, "narrow", "first")
    conv(3, "middle", "narrow", **PADDED)
    conv(1, "wide", "middle", groups=3)
    add("block", "wide", "first")
    conv(1, "shortcut", "block", stride=(2, 2))
    conv(1, "again", "block")
    conv(3, "apart", "again", dilation=(2, 2), padding=(2, 2, 2, 2), groups=2)
    conv(3, "down", "apart", stride=(2, 2), **PADDED)
    conv(1, "last", "down")
    add("half", "last", "shortcut")
    conv(1, "out", "half")
    return model_file(nodes, tensors, (1, CHANNELS, *plane))


@pytest.mark.parametrize("codecs", CODECS)
@pytest.mark.parametrize("kernel", _core.kernel_names(True))
@pytest.mark.parametrize(("plane", "threads"), [((12, 9), 2), ((12, 9), 3), ((28, 28), 2), ((14, 6), 2), ((4, 3), 4)])
def test_as_one_thread(
    plane: tuple[int, int], threads: int, kernel: str, codecs: str, rng: np.random.Generator
) -> None:
    file = residual_network(rng, CODECS[codecs], plane)
    x = rng.standard_normal((1, CHANNELS, *plane), dtype=np.float32)
    values = values_of(file, x)
    file = with_ranges(file, values)
    for precision in ("exact", "fast"):
        if kernel not in _core.kernel_names(precision == "fast"):
            continue
        one, more = (Model(file, precision=precision, kernel=kernel, threads=t)(x) for t in (1, threads))
        largest = np.abs(values["out"]).max()
        np.testing.assert_allclose(more, one, rtol=0, atol=1e-6 * largest)
        if precision == "exact":
            np.testing.assert_allclose(more, values["out"], rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("read", ["narrow", "block", "shortcut"])
@pytest.mark.parametrize("op", ["max_pool2d", "upsample", "relu", "flatten"])
def test_values_that_others_read_lie_as_a_whole(op: str, read: str, rng: np.random.Generator) -> None:
    file = residual_network(rng, CODECS["codes"], (12, 12))
    attributes: dict[str, dict[str, Any]] = {
        "max_pool2d": {"kernel": (2, 2), "stride": (2, 2)},
        "upsample": {"factor": (2.0, 2.0), "mode": "nearest"},
    }
    node = Node(op=op, name="other", inputs=(read,), outputs=("other",), attributes=attributes.get(op, {}))
    graph = file.network.graph
    graph = replace(graph, nodes=(*graph.nodes, node), outputs=("out", "other", "middle"))
    file = replace(file, network=replace(file.network, graph=graph))
    x = rng.standard_normal((1, CHANNELS, 12, 12), dtype=np.float32)
    values = values_of(file, x)
    for precision in ("exact", "fast"):
        one, more = (Model(with_ranges(file, values), precision=precision, threads=t)(x) for t in (1, 2))
        assert isinstance(one, dict)
        assert isinstance(more, dict)
        for name, value in one.items():
            np.testing.assert_allclose(more[name], value, rtol=0, atol=1e-6 * np.abs(value).max())
            if precision == "exact":
                np.testing.assert_allclose(value, values[name], rtol=0, atol=1e-5 * np.abs(value).max())
