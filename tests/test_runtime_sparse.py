"""Layers most of whose weights are zero, on the sparse paths, against NumPy."""

from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer
from test_runtime_fast import candidates, check_layer
from test_runtime_layers import CONVOLUTIONS, check

from pyquant import _core
from pyquant.codecs import DenseConfig, ScalarConfig
from pyquant.file import ModelFile
from pyquant.runtime import Model


def sparse_layer(
    rng: np.random.Generator, shape: tuple[int, ...], kept: float = 0.4, run: int = 1, **attributes: Any
) -> ModelFile:
    """Return a layer of which runs of input channels are zero, but for a share, and all weights of some outputs."""
    node, tensors = weighted_layer(rng, shape, DenseConfig(), **attributes)
    weight = tensors["layer.weight"]
    runs = -(-shape[1] // run)
    zero = rng.random((shape[0], runs, *shape[2:])) >= kept
    weight[np.repeat(zero, run, axis=1)[:, : shape[1]]] = 0
    weight[::5] = 0
    plane = (1,) * (len(shape) - 2)
    return model_file([node], tensors, (1, shape[1] * attributes.get("groups", 1), *plane))


def inputs(rng: np.random.Generator, file: ModelFile, images: int, *plane: int) -> np.ndarray:
    (declared,) = file.network.graph.inputs
    return rng.standard_normal((images, declared.default[0], *plane)).astype(np.float32)


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
@pytest.mark.parametrize("run", [1, 4])
def test_convolutions(case: Any, run: int, rng: np.random.Generator) -> None:
    shape, *_, attributes, plane = case
    file = sparse_layer(rng, shape, run=run, **attributes)
    x = inputs(rng, file, 2, *plane)
    assert kernel_of(file, x, "sparse") == "sparse"
    check(file, x, terms=int(np.prod(shape[1:])))
    check_layer(file, x)


@pytest.mark.parametrize("images", [1, 50, 200])
def test_linear(images: int, rng: np.random.Generator) -> None:
    file = sparse_layer(rng, (19, 66), run=4)
    x = inputs(rng, file, images)
    assert "sparse8" in candidates(file, x)
    check(file, x, terms=66)
    check_layer(file, x)


def test_many_passes_and_outputs(rng: np.random.Generator) -> None:
    """More panel rows than a pass has, and more outputs than have their sums held together."""
    file = sparse_layer(rng, (515, 40, 3, 3), run=4, padding=(1, 1, 1, 1))
    x = inputs(rng, file, 1, 9, 15)
    check(file, x, terms=360)
    check_layer(file, x)


def test_same_bits_for_any_number_of_threads(rng: np.random.Generator) -> None:
    for plane, images in (((7, 7), 1), ((9, 31), 3)):
        file = sparse_layer(rng, (44, 300, 1, 1))
        x = inputs(rng, file, images, *plane)
        for isa in _core.available_isas():
            one, *others = (Model(file, isa=isa, threads=threads, kernel="sparse")(x) for threads in (1, 2, 5))
            for other in others:
                np.testing.assert_array_equal(other, one)


def test_zeros_on_grids_are_left_out(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (64, 32, 1, 1), ScalarConfig(bits=2), name="layer")
    tensors["layer.zero"][:] = 2  # of codes 0 to 3, one in four is zero
    tensors["layer.codes"][: tensors["layer.codes"].size // 2] = 0b01010101  # and half of all weights besides
    file = model_file([node], tensors, (1, 32, 1, 1))
    x = inputs(rng, file, 1, 14, 14)
    assert kernel_of(file, x, "sparse") == "sparse"
    check(file, x, terms=32)


def test_is_chosen_for_few_weights_alone(rng: np.random.Generator) -> None:
    for kept, kernel in ((0.05, "sparse"), (0.7, "direct")):
        file = sparse_layer(rng, (256, 128, 1, 1), kept)
        assert kernel_of(file, inputs(rng, file, 1, 28, 28), None) == kernel
    dense = sparse_layer(rng, (256, 128, 1, 1), kept=0.9)
    assert kernel_of(dense, inputs(rng, dense, 1, 28, 28), "sparse") == "direct"


def test_layer_of_zeros_alone(rng: np.random.Generator) -> None:
    file = sparse_layer(rng, (8, 16, 3, 3), kept=0.0, padding=(1, 1, 1, 1))
    x = inputs(rng, file, 1, 9, 9)
    check(file, x, terms=144)
    check_layer(file, x)


def kernel_of(file: ModelFile, x: np.ndarray, wanted: str | None) -> str:
    (step,) = Model(file, kernel=wanted).profile(x)["steps"]
    return str(step["kernel"])
