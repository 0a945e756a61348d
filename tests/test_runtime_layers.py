"""Each operation in the runtime, on each instruction set and path, against the NumPy reference."""

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer
from numpy.typing import NDArray
from tolerance import assert_close

from pyquant import _core, reference
from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.file import ModelFile
from pyquant.graph import Node
from pyquant.runtime import Model

ISAS = _core.available_isas()


def check(file: ModelFile, *inputs: np.ndarray, terms: int) -> None:
    """Compare every instruction set, path and number of threads with the reference."""
    (expected,) = reference.run(file.network, *inputs).values()
    for isa in ISAS:
        for kernel in (*_core.kernel_names(fast=False), None):
            for threads in (1, 3):
                got = Model(file, isa=isa, kernel=kernel, threads=threads)(*inputs)
                assert isinstance(got, np.ndarray)
                assert_close(got, expected, terms)


# (weight shape, block, K, M, attributes, plane): kernels, strides, paddings, groups and tails of every kind.
CONVOLUTIONS: list[tuple[tuple[int, int, int, int], Any, int, int, dict[str, Any], tuple[int, int]]] = [
    ((5, 3, 3, 3), None, 0, 1, {"padding": (1, 1, 1, 1)}, (9, 11)),
    ((16, 8, 1, 1), (4, 1, 1), 16, 1, {}, (7, 7)),
    ((17, 7, 1, 1), (4, 1, 1), 256, 1, {}, (14, 3)),
    ((33, 6, 3, 3), (1, 3, 3), 64, 1, {"padding": (1, 1, 1, 1)}, (7, 7)),
    ((8, 5, 3, 3), (2, 3, 3), 32, 1, {"padding": (1, 1, 1, 1), "stride": (2, 2)}, (13, 17)),
    ((11, 5, 3, 3), (2, 3, 3), 40, 1, {"padding": (1, 1, 1, 1)}, (29, 31)),
    ((7, 9, 3, 3), (3, 3, 3), 9, 2, {"padding": (0, 2, 1, 3)}, (14, 14)),
    ((10, 6, 3, 3), (1, 3, 3), 12, 1, {"groups": 2}, (3, 37)),
    ((4, 2, 3, 3), (1, 3, 3), 300, 2, {"padding": (2, 2, 2, 2)}, (1, 1)),
    ((12, 96, 3, 3), (1, 3, 3), 16, 2, {"padding": (1, 1, 1, 1)}, (30, 31)),  # several blocks of tiles
    # Groups of few channels.
    ((12, 1, 3, 3), None, 0, 1, {"padding": (1, 1, 1, 1), "stride": (2, 2), "groups": 12}, (13, 17)),
    ((9, 1, 5, 5), None, 0, 1, {"padding": (2, 2, 2, 2), "groups": 9}, (7, 7)),
    ((6, 2, 3, 5), None, 0, 1, {"padding": (1, 4, 0, 3), "stride": (3, 2), "dilation": (2, 3), "groups": 3}, (19, 40)),
    ((140, 2, 3, 3), None, 0, 1, {"padding": (1, 1, 1, 1), "groups": 2}, (6, 21)),
    ((4, 13, 3, 3), None, 0, 1, {"padding": (0, 3, 1, 0), "stride": (1, 2), "groups": 2}, (9, 31)),
    # Parts of kernels, of which some, rounded up to whole blocks, are no kernels.
    ((13, 34, 3, 3), (1, 1, 3), 16, 1, {"padding": (1, 1, 1, 1)}, (14, 15)),
    ((6, 5, 3, 3), (1, 1, 1), 40, 1, {"padding": (1, 1, 1, 1)}, (9, 14)),
    ((6, 5, 3, 3), (1, 1, 3), 64, 2, {"padding": (1, 1, 1, 1), "groups": 2}, (9, 14)),
    ((6, 3, 3, 3), (1, 2, 3), 8, 1, {"padding": (1, 1, 1, 1)}, (9, 14)),
    ((6, 4, 3, 3), (1, 2, 3), 8, 1, {"padding": (1, 1, 1, 1)}, (9, 14)),
    ((6, 4, 3, 3), (1, 6, 3), 8, 1, {"padding": (1, 1, 1, 1)}, (9, 14)),
    ((6, 4, 3, 3), (2, 1, 3), 8, 1, {"padding": (1, 1, 1, 1)}, (9, 14)),
    # Sums of centroids that are too many for a joint codebook, or to be counted.
    ((5, 6, 3, 3), (1, 3, 3), 256, 9, {"padding": (1, 1, 1, 1)}, (9, 14)),
    ((13, 34, 3, 3), (2, 3, 3), 64, 3, {"padding": (1, 1, 1, 1)}, (30, 31)),
    ((12, 5, 3, 3), (2, 3, 3), 40, 2, {"padding": (1, 1, 1, 1), "groups": 3}, (9, 14)),
    ((9, 10, 3, 3), (8, 1, 1), 20, 2, {"padding": (1, 1, 1, 1)}, (8, 9)),
    ((6, 4, 5, 3), (3, 2, 2), 7, 3, {"padding": (2, 1, 0, 3), "stride": (3, 1)}, (11, 12)),
    ((12, 2, 3, 3), (1, 3, 3), 8, 1, {"padding": (2, 2, 2, 2), "dilation": (2, 2), "groups": 3}, (10, 10)),
    ((6, 1, 3, 3), (1, 3, 3), 4, 1, {"padding": (1, 1, 1, 1), "groups": 6}, (5, 21)),
    # More outputs than are summed together, over several passes of tables.
    ((140, 34, 3, 3), (1, 1, 3), 40, 1, {"padding": (1, 1, 1, 1), "groups": 2}, (7, 7)),
    ((70, 9, 3, 3), (1, 3, 3), 80, 2, {"padding": (1, 1, 1, 1)}, (5, 8)),
    # Whole vectors of pixels in each picture, and kernel rows of which two, but not all, meet the same input rows.
    (
        (6, 4, 3, 3),
        (2, 3, 3),
        8,
        1,
        {"padding": (3, 2, 3, 2), "stride": (2, 1), "dilation": (3, 2), "groups": 2},
        (20, 16),
    ),
    ((4, 3, 7, 7), (1, 7, 7), 3, 1, {"padding": (3, 3, 3, 3), "stride": (2, 2)}, (31, 30)),
    ((5, 3, 1, 1), (2, 1, 1), 5, 1, {"padding": (1, 0, 2, 0), "stride": (2, 3)}, (6, 7)),
    ((3, 2, 2, 2), (1, 2, 2), 300, 1, {"padding": (0, 3, 0, 3)}, (4, 4)),
]


@pytest.mark.parametrize("codebooks", [1, 2])
def test_int8_codebooks(codebooks: int, rng: np.random.Generator) -> None:
    codec = ProductConfig(block=(2, 3, 3), centroids=20, codebooks=codebooks, codebook_dtype="int8")
    node, tensors = weighted_layer(rng, (9, 5, 3, 3), codec, padding=(1, 1, 1, 1))
    assert tensors["layer.codebook"].dtype == np.int8
    x = rng.standard_normal((2, 5, 7, 8)).astype(np.float32)
    check(model_file([node], tensors, x.shape), x, terms=45 * codebooks)


@pytest.mark.parametrize(("shape", "block", "centroids", "codebooks", "attributes", "plane"), CONVOLUTIONS)
@pytest.mark.parametrize("images", [1, 3])
def test_convolution(
    shape: tuple[int, int, int, int],
    block: tuple[int, int, int] | None,
    centroids: int,
    codebooks: int,
    attributes: dict[str, Any],
    plane: tuple[int, int],
    images: int,
    rng: np.random.Generator,
) -> None:
    codec = ProductConfig(block=block, centroids=centroids, codebooks=codebooks) if block else DenseConfig()
    node, tensors = weighted_layer(rng, shape, codec, **attributes)
    x = rng.standard_normal((images, shape[1] * node.attributes["groups"], *plane)).astype(np.float32)
    check(model_file([node], tensors, x.shape), x, terms=shape[1] * shape[2] * shape[3] * codebooks)


def test_dilation_that_reaches_beyond_the_plane(rng: np.random.Generator) -> None:
    far = 2**31 - 1
    node, tensors = weighted_layer(rng, (9, 4, 3, 1), DenseConfig(), padding=(far, far, 0, 0), dilation=(far, 1))
    middle, _ = weighted_layer(rng, (9, 4, 1, 1), DenseConfig())
    x = rng.standard_normal((2, 4, 5, 7)).astype(np.float32)
    only = model_file([middle], {**tensors, "layer.weight": tensors["layer.weight"][:, :, 1:2]}, x.shape)
    (expected,) = reference.run(only.network, x).values()
    file = model_file([node], tensors, x.shape)
    for isa, threads in itertools.product(ISAS, (1, 3)):
        assert_close(Model(file, isa=isa, threads=threads)(x), expected, terms=4)
        fast = np.asarray(Model(file, isa=isa, threads=threads, precision="fast")(x))
        assert np.abs(fast - expected).max() < 0.05 * np.abs(expected).max()


@pytest.mark.parametrize("images", [1, 2, 17, 50])
@pytest.mark.parametrize("codec", [DenseConfig(), ProductConfig(block=(4, 1, 1), centroids=32)])
def test_linear(images: int, codec: ProductConfig | DenseConfig, rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (19, 66), codec)
    x = rng.standard_normal((images, 66)).astype(np.float32)
    check(model_file([node], tensors, x.shape), x, terms=66)


@pytest.mark.parametrize("codebooks", [1, 2])
def test_linear_looked_up_in_passes(codebooks: int, rng: np.random.Generator) -> None:
    """Blocks have tail padding, centroids do not fill their rows, and tables of all blocks are larger than caches."""
    codec = ProductConfig(block=(8, 1, 1), centroids=300, codebooks=codebooks)
    node, tensors = weighted_layer(rng, (70, 1501), codec)
    for images in (1, 3):
        x = rng.standard_normal((images, 1501), dtype=np.float32)
        check(model_file([node], tensors, x.shape), x, terms=1501)


# Layers of 1x1 kernels: (outputs, groups, plane).
POINTWISE = list(itertools.product((12, 300), (1, 3), ((1, 1), (3, 5), (7, 7), (14, 14), (13, 19))))


def pointwise_layers(
    rng: np.random.Generator, outputs: int, groups: int, plane: tuple[int, int]
) -> Iterator[tuple[ModelFile, NDArray[np.float32]]]:
    """Yield dense and coded ones, with one picture and with three."""
    for codec, images in itertools.product((DenseConfig(), ProductConfig(block=(4, 1, 1), centroids=16)), (1, 3)):
        node, tensors = weighted_layer(rng, (outputs, 8, 1, 1), codec, groups=groups)
        x = rng.standard_normal((images, 8 * groups, *plane)).astype(np.float32)
        yield model_file([node], tensors, x.shape), x


@pytest.mark.parametrize(("outputs", "groups", "plane"), POINTWISE)
def test_inputs_read_in_place(outputs: int, groups: int, plane: tuple[int, int], rng: np.random.Generator) -> None:
    for file, x in pointwise_layers(rng, outputs, groups, plane):
        check(file, x, terms=8)


@pytest.mark.parametrize(("outputs", "groups", "images"), [(12, 1, 1), (12, 3, 3), (90, 1, 3), (90, 3, 1)])
@pytest.mark.parametrize("codec", [DenseConfig(), ProductConfig(block=(4, 1, 1), centroids=16)], ids=["dense", "coded"])
def test_long_steps_between_channels(
    codec: Any, outputs: int, groups: int, images: int, rng: np.random.Generator
) -> None:
    """Four channels of 52x52 are 43 kB: blocks are read in another order then, dense rows eight channels at a time."""
    for channels in (32, 36, 44):  # also some behind the last four blocks, or eight channels
        node, tensors = weighted_layer(rng, (outputs, channels, 1, 1), codec, groups=groups)
        x = rng.standard_normal((images, channels * groups, 52, 52)).astype(np.float32)
        check(model_file([node], tensors, x.shape), x, terms=channels)


def layer(op: str, *inputs: str, output: str = "y", **attributes: Any) -> Node:
    return Node(op=op, name=op, inputs=inputs or ("x",), outputs=(output,), attributes=attributes)


PLANE_LAYERS = [
    layer("relu"),
    layer("relu6"),
    layer("silu"),
    layer("hardswish"),
    layer("hardsigmoid"),
    layer("sigmoid"),
    layer("max_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 1)),
    layer("max_pool2d", kernel=(2, 3), stride=(3, 1), dilation=(2, 3), ceil_mode=True),
    layer("avg_pool2d", kernel=(3, 2), stride=(2, 3), padding=(1, 1)),
    layer("avg_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 1), ceil_mode=True, count_include_pad=False),
    layer("avg_pool2d", kernel=(4, 4), stride=(3, 3), padding=(2, 2), ceil_mode=True),
    layer("avg_pool2d", kernel=(2, 2), stride=(2, 2), divisor=3),
    layer("adaptive_avg_pool2d", output_size=(1, 1)),
    layer("adaptive_avg_pool2d", output_size=(7, 3)),
    layer("flatten"),
    layer("flatten", start_axis=2),
    layer("upsample", mode="nearest", size=(20, 9)),
    layer("upsample", mode="nearest", factor=(2.0, 2.0)),
    layer("upsample", mode="nearest", factor=(1.7, 0.6)),
    layer("upsample", mode="bilinear", size=(20, 31)),
    layer("upsample", mode="bilinear", size=(11, 31), align_corners=True),
    layer("upsample", mode="bilinear", factor=(2.5, 0.4)),
    layer("upsample", mode="bilinear", factor=(1.05, 2.0)),
    layer("pixel_shuffle", factor=(1, 1)),
    layer("pixel_shuffle", factor=(3, 1)),
    layer("pixel_shuffle", factor=(1, 3)),
]


@pytest.mark.parametrize("node", PLANE_LAYERS, ids=lambda n: n.op)
def test_layer_without_weights(node: Node, rng: np.random.Generator) -> None:
    x = 4 * rng.standard_normal((2, 3, 11, 13)).astype(np.float32)
    check(model_file([node], {}, x.shape), x, terms=20)


def test_affine(rng: np.random.Generator) -> None:
    node = Node(op="affine", name="norm", inputs=("x",), outputs=("y",), tensors=("scale", "bias"))
    tensors = {f"norm.{role}": rng.standard_normal(5).astype(np.float32) for role in node.tensors}
    for shape in [(3, 5, 4, 7), (6, 5)]:
        x = rng.standard_normal(shape).astype(np.float32)
        check(model_file([node], tensors, shape), x, terms=2)


@pytest.mark.parametrize("op", ["add", "mul"])
@pytest.mark.parametrize(
    ("left", "right"),
    [
        ((2, 3, 5, 7), (2, 3, 5, 7)),
        ((2, 3, 5, 7), (2, 3, 1, 1)),
        ((2, 3, 1, 1), (2, 3, 5, 7)),
        ((2, 3, 5, 1), (2, 3, 1, 7)),
        ((2, 3, 5, 7), (1, 3, 1, 7)),
        ((2, 40), (1, 40)),
        ((2, 3, 130, 130), (2, 3, 130, 130)),
    ],
)
def test_two_inputs(op: str, left: tuple[int, ...], right: tuple[int, ...], rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in (left, right)]
    check(model_file([layer(op, "x", "x1")], {}, left, right), *arrays, terms=1)


def test_concat(rng: np.random.Generator) -> None:
    shapes = [(2, 3, 4, 5), (2, 1, 4, 5), (2, 6, 4, 5)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    check(model_file([layer("concat", "x", "x1", "x2", axis=1)], {}, *shapes), *arrays, terms=1)
    wide = [rng.standard_normal((2, 3, 4, width)).astype(np.float32) for width in (2, 5)]
    check(model_file([layer("concat", "x", "x1", axis=3)], {}, *(w.shape for w in wide)), *wide, terms=1)


@pytest.mark.parametrize("mode", ["nearest", "bilinear"])
def test_upsample_like(mode: str, rng: np.random.Generator) -> None:
    shapes = [(2, 3, 4, 5), (2, 1, 7, 13)]
    arrays = [rng.standard_normal(shape).astype(np.float32) for shape in shapes]
    check(model_file([layer("upsample_like", "x", "x1", mode=mode)], {}, *shapes), *arrays, terms=20)


@pytest.mark.parametrize("codec", [DenseConfig(), ProductConfig(block=(4, 1, 1), centroids=16)])
def test_transposed_convolution(codec: ProductConfig | DenseConfig, rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (6 * 4, 10, 1, 1), codec, output="pixels")
    x = rng.standard_normal((2, 10, 5, 3)).astype(np.float32)
    file = model_file([node, layer("pixel_shuffle", "pixels", factor=(2, 2))], tensors, x.shape)
    check(file, x, terms=10)


def test_max_pool_keeps_nan() -> None:
    x = np.zeros((1, 1, 4, 4), np.float32)
    x[0, 0, 1, 1] = np.nan
    file = model_file([layer("max_pool2d", kernel=(2, 2), stride=(2, 2))], {}, x.shape)
    got = Model(file)(x)
    assert isinstance(got, np.ndarray)
    assert np.isnan(got[0, 0, 0, 0])
    assert not np.isnan(got[0, 0]).ravel()[1:].any()
