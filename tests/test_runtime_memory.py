"""A memory budget: which weights it keeps decoded, and that outputs do not depend on it."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer
from test_runtime_fast import ISAS

from pyquant.codecs import CodecConfig, ProductConfig, ScalarConfig
from pyquant.file import ModelFile
from pyquant.runtime import Model

SPATIAL = ProductConfig(block=(2, 3, 3), centroids=32)
# So many sums of centroids that fp32 kernels cannot look them up: they are made from the codes.
ADDITIVE = ProductConfig(block=(2, 3, 3), centroids=16, codebooks=3)
GRIDS = ScalarConfig(bits=5)
POINTWISE = ProductConfig(block=(4, 1, 1), centroids=32)
PADDING = {"padding": (1, 1, 1, 1)}


def two_layers(rng: np.random.Generator, codec: CodecConfig, outputs: tuple[int, int]) -> ModelFile:
    """Return a network of two 3x3 convolutions of 10 inputs."""
    first, tensors = weighted_layer(rng, (outputs[0], 10, 3, 3), codec, name="first", output="h", **PADDING)
    second, more = weighted_layer(rng, (outputs[1], outputs[0], 3, 3), codec, name="second", inputs=("h",), **PADDING)
    return model_file([first, second], {**tensors, **more}, (1, 10, 9, 9))


def bytes_of(outputs: int, inputs: int, precision: str) -> int:
    """Return what the decoded weights of a 3x3 layer take: floats, or quads of bytes of four inputs."""
    return outputs * 9 * (4 * inputs if precision == "exact" else 4 * -(-inputs // 4))


@pytest.mark.parametrize(
    ("precision", "kernel", "codec"),
    [
        ("exact", "direct", ADDITIVE),
        ("exact", "winograd4", ADDITIVE),
        ("exact", "direct", GRIDS),
        ("exact", "winograd2", GRIDS),
        ("fast", "direct8", SPATIAL),
        ("fast", "direct8", ADDITIVE),
    ],
)
@pytest.mark.parametrize("threads", [1, 2])
def test_outputs_do_not_depend_on_the_budget(
    precision: str, kernel: str, codec: CodecConfig, threads: int, rng: np.random.Generator
) -> None:
    file = two_layers(rng, codec, (26, 19))  # neither a multiple of the rows of a tile
    x = rng.standard_normal((2, 10, 9, 9), dtype=np.float32)
    options: dict[str, Any] = {"precision": precision, "kernel": kernel, "threads": threads}
    expected = Model(file, **options)(x)
    sizes = bytes_of(26, 10, precision), bytes_of(19, 26, precision)
    for budget, kept in (
        (0, 0),
        (sizes[0] - 1, 0),
        (sizes[0], sizes[0]),
        (sum(sizes) - 1, sizes[0]),
        (1 << 40, sum(sizes)),
    ):
        model = Model(file, memory_budget=budget, **options)
        assert model.kept_bytes == 0  # nothing is planned yet
        np.testing.assert_array_equal(model(x), expected)
        assert model.kept_bytes == kept
        model(x[:1, :, :5])  # another plan has the same weights
        assert model.kept_bytes == kept


@pytest.mark.parametrize(("precision", "kernel"), [("exact", "direct"), ("fast", "direct8"), ("fast", "winograd8")])
def test_layers_that_share_a_weight_but_not_groups(precision: str, kernel: str, rng: np.random.Generator) -> None:
    first, tensors = weighted_layer(rng, (20, 6, 3, 3), SPATIAL, name="first", output="h", **PADDING)
    cut, more = weighted_layer(rng, (12, 20, 1, 1), POINTWISE, name="cut", inputs=("h",), output="g")
    second, own = weighted_layer(rng, (20, 6, 3, 3), SPATIAL, name="second", inputs=("g",), groups=2, **PADDING)
    tensors |= more | {name: tensor for name, tensor in own.items() if name in ("second.scale", "second.bias")}
    file = model_file([first, cut, replace(second, weight=first.weight)], tensors, (1, 6, 9, 9))
    x = rng.standard_normal((2, 6, 9, 9), dtype=np.float32)
    for isa in ISAS:
        options: dict[str, Any] = {"precision": precision, "kernel": kernel, "isa": isa}
        expected, got = (Model(file, memory_budget=budget, **options)(x) for budget in (0, 1 << 40))
        np.testing.assert_array_equal(got, expected)


def test_nothing_is_kept_where_codes_are_as_good(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (24, 16, 1, 1), POINTWISE)
    file = model_file([node], tensors, (1, 16, 9, 9))
    for precision in ("exact", "fast"):
        model = Model(file, precision=precision, memory_budget=1 << 40)
        model(rng.standard_normal((1, 16, 9, 9), dtype=np.float32))
        assert model.kept_bytes == 0
