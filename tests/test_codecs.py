"""Weights are cut into blocks and put together again, and codes are packed, at sizes that do not divide."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.codecs.packing import pack_codes, packed_bytes, unpack_codes
from pyquant.codecs.product import (
    as_conv_shape,
    blocks_from_weight,
    codebook_tensors,
    codebook_values,
    decode,
    rounded_codebook,
    weight_from_blocks,
)
from pyquant.errors import ConfigError, InputError

SHAPES = [
    ((4, 6, 3, 3), (1, 3, 3)),
    ((4, 6, 3, 3), (2, 3, 3)),
    ((4, 5, 3, 3), (2, 3, 3)),  # a tail of channels
    ((3, 7, 1, 1), (4, 1, 1)),
    ((3, 2, 1, 1), (8, 1, 1)),  # a block larger than the layer
    ((2, 3, 5, 7), (2, 2, 3)),  # tails in all directions
    ((2, 1, 7, 7), (1, 7, 7)),
    ((5, 9), (4, 1, 1)),  # a linear layer
    ((1, 1), (1, 1, 1)),
]


def blocks_by_hand(weight: NDArray[np.float32], block: tuple[int, int, int]) -> NDArray[np.float32]:
    """Cut a weight as the docstring of pyquant.codecs.product says, one number at a time."""
    o, channels, kh, kw = as_conv_shape(weight.shape)
    whole = weight.reshape(o, channels, kh, kw)
    (c, bh, bw) = block
    rows = []
    for output in range(o):
        for first in np.ndindex(-(-channels // c), -(-kh // bh), -(-kw // bw)):
            for inner in np.ndindex(c, bh, bw):
                at = tuple(f * step + i for f, step, i in zip(first, block, inner, strict=True))
                inside = all(i < size for i, size in zip(at, (channels, kh, kw), strict=True))
                rows.append(whole[(output, *at)] if inside else 0)
    return np.array(rows, np.float32).reshape(o, -1, c * bh * bw)


@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_blocks_are_cut_in_the_order_described(shape: tuple[int, ...], block: tuple[int, int, int]) -> None:
    weight = np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)
    blocks = blocks_from_weight(weight, block)
    np.testing.assert_array_equal(blocks, blocks_by_hand(weight, block), strict=True)
    assert blocks.shape[1] == ProductConfig(block=block, centroids=2).blocks_per_row(shape)
    np.testing.assert_array_equal(weight_from_blocks(blocks, shape, block), weight, strict=True)


@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
    block=st.tuples(st.integers(1, 9), st.integers(1, 5), st.integers(1, 5)),
)
def test_cutting_and_putting_together(shape: tuple[int, ...], block: tuple[int, int, int]) -> None:
    weight = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    np.testing.assert_array_equal(weight_from_blocks(blocks_from_weight(weight, block), shape, block), weight)


@pytest.mark.parametrize("codebooks", [1, 2, 3])
@pytest.mark.parametrize(("shape", "block"), SHAPES)
def test_decoded_weight_is_the_sum_of_its_centroids(
    shape: tuple[int, ...], block: tuple[int, int, int], codebooks: int, rng: np.random.Generator
) -> None:
    config = ProductConfig(block=block, centroids=6, codebooks=codebooks)
    blocks = config.blocks_per_row(shape)
    codes = rng.integers(6, size=(codebooks, shape[0], blocks), dtype=np.uint16)
    codebook = (rng.integers(-8, 8, size=(codebooks, 6, config.dim)) / 4).astype(np.float16)
    expected = np.zeros((shape[0], blocks, config.dim), np.float32)
    for m, o, j in np.ndindex(codebooks, shape[0], blocks):
        expected[o, j] += codebook[m, codes[m, o, j]]
    weight = decode(codes, codebook.astype(np.float32), shape, config)
    assert weight.dtype == np.float32
    np.testing.assert_array_equal(weight, weight_from_blocks(expected, shape, block))


@pytest.mark.parametrize(
    ("scale", "dtype"), [(1.0, np.float16), (1e5, np.float32), (1e-9, np.float32), (0.0, np.float16)]
)
def test_codebooks_are_fp16_where_that_holds_their_numbers(scale: float, dtype: type, rng: np.random.Generator) -> None:
    codebook = (scale * rng.standard_normal((2, 16, 4))).astype(np.float32)
    tensors = codebook_tensors(codebook, ProductConfig(block=(4, 1, 1), centroids=16, codebooks=2))
    assert tensors.keys() == {"codebook"}
    assert tensors["codebook"].dtype == dtype
    np.testing.assert_allclose(codebook_values(tensors), codebook, rtol=2**-10, atol=scale * 2**-14)


@pytest.mark.parametrize("scale", [1.0, 1e5, 1e-9, 0.0, 1e-44, 1e38])
def test_int8_codebooks_are_rounded_to_a_127th_of_their_largest_number(scale: float, rng: np.random.Generator) -> None:
    config = ProductConfig(block=(4, 1, 1), centroids=16, codebooks=2, codebook_dtype="int8")
    codebook = (scale * rng.uniform(-1, 1, (2, 16, 4)) * [[[1.0]], [[0.01]]]).astype(np.float32)
    tensors = codebook_tensors(codebook, config)
    assert tensors["codebook"].dtype == np.int8
    assert tensors["codebook_scale"].dtype == np.float32
    steps = np.maximum(np.abs(codebook).max(axis=(1, 2), keepdims=True) / 127, 2 * np.finfo(np.float32).tiny)
    values = codebook_values(tensors)
    assert (np.abs(values - codebook) <= 0.501 * steps).all()
    np.testing.assert_allclose(rounded_codebook(values, config), values, rtol=1e-6)


@settings(deadline=None)
@given(data=st.data(), bits=st.integers(1, 16), count=st.integers(0, 70))
def test_packing_and_unpacking(data: st.DataObject, bits: int, count: int) -> None:
    codes = np.array(data.draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count)), np.uint16)
    packed = pack_codes(codes, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_bytes(count, bits)
    # As one whole number: code i takes the bits from i * bits on, and no bit is left over.
    whole = sum(int(code) << (i * bits) for i, code in enumerate(codes))
    assert int.from_bytes(packed.tobytes(), "little") == whole
    np.testing.assert_array_equal(unpack_codes(packed, bits, count), codes, strict=True)


def test_codes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="codes of 3 bits must be 0 to 7, got 0 to 8"):
        pack_codes(np.array([0, 8]), 3)
    with pytest.raises(InputError, match="codes of 8 bits must be 0 to 255, got -1 to 2"):
        pack_codes(np.array([2, -1]), 8)


@pytest.mark.parametrize(("centroids", "bits"), [(2, 1), (3, 2), (4, 2), (5, 3), (256, 8), (257, 9), (65536, 16)])
def test_bits_of_a_code(centroids: int, bits: int) -> None:
    assert ProductConfig(block=(1, 3, 3), centroids=centroids).code_bits == bits


def test_bits_that_a_weight_counts() -> None:
    assert ProductConfig(block=(1, 3, 3), centroids=256).weight_bits == pytest.approx(8 / 9)
    assert ProductConfig(block=(8, 1, 1), centroids=16, codebooks=2).weight_bits == 1
    assert DenseConfig().weight_bits == 32


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": (0, 3, 3), "centroids": 4}, "block must be three positive integers"),
        ({"block": (3, 3), "centroids": 4}, "block must be three positive integers"),
        ({"block": (1, 3, 3), "centroids": 1}, "centroids must be 2 to 65536, got 1"),
        ({"block": (1, 3, 3), "centroids": 65537}, "centroids must be 2 to 65536, got 65537"),
        ({"block": (1, 3, 3), "centroids": 4, "codebooks": 0}, "codebooks must be at least 1, got 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ProductConfig(**options)
