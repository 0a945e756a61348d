"""Each integer kernel on each instruction set against NumPy, bit for bit, at sizes around the width of its lanes."""

import numpy as np
import pytest
from numpy.typing import NDArray

from pyquant import _core

ISAS = _core.available_isas()
AWKWARD = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47, 63)

Quads = NDArray[np.uint32]


def random_quads(rng: np.random.Generator, *shape: int) -> Quads:
    """Return quads of any bytes, the extreme ones among them."""
    quads = rng.integers(0, 1 << 32, size=shape, dtype=np.uint32)
    quads.flat[0] = 0x7F80FF00
    return quads


def quads_for_tiles(isa: str, rng: np.random.Generator, *shape: int) -> Quads:
    """Return quads of any weights that a register tile takes: where it adds in pairs, two are no more than 128."""
    weights = as_weights(random_quads(rng, *shape))
    if _core.kernel_tile(isa)["adds_in_pairs"]:
        first, second = weights[..., ::2], weights[..., 1::2]
        second[...] = np.clip(second, -128 - first, 128 - first)
    return as_quads(weights % 256)


def as_bytes(quads: Quads) -> NDArray[np.int64]:
    """Return the four unsigned bytes of each quad, the lowest first."""
    return quads[..., None] >> np.arange(0, 32, 8, dtype=np.uint32) & np.uint32(0xFF)


def as_weights(quads: Quads) -> NDArray[np.int64]:
    return as_bytes(quads).astype(np.uint8).view(np.int8).astype(np.int64)


def as_quads(values: NDArray[np.int64]) -> Quads:
    """Return the quads of values [..., 4], each within 0..255."""
    return (values.astype(np.uint32) << np.arange(0, 32, 8, dtype=np.uint32)).sum(axis=-1, dtype=np.uint32)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "blocks"), [(1, 1), (1, 65), (2, 33), (9, 7), (576, 1)])
def test_gemm_tile8(isa: str, dim: int, blocks: int, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    codebook = quads_for_tiles(isa, rng, 19, dim)
    codes = rng.integers(19, size=(blocks, tile["rows8"])).astype(np.uint16)
    weights = as_weights(codebook[codes]).transpose(1, 0, 2, 3).reshape(tile["rows8"], -1)
    for pixels in sorted({min(p, tile["pixels8"]) for p in (*AWKWARD, tile["pixels8"])}):
        panel = random_quads(rng, blocks * dim, pixels)
        inputs = as_bytes(panel).transpose(0, 2, 1).reshape(-1, pixels).astype(np.int64)
        got = _core.gemm_tile8(codes * np.uint16(dim), codebook.ravel(), panel, isa=isa)[:, :pixels]
        np.testing.assert_array_equal(got, weights @ inputs)


@pytest.mark.parametrize("isa", ISAS)
def test_gemm_tile8_of_a_matrix(isa: str, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    matrix, panel = quads_for_tiles(isa, rng, tile["rows8"], 19), random_quads(rng, 19, tile["pixels8"])
    weights = as_weights(matrix).reshape(tile["rows8"], -1)
    inputs = as_bytes(panel).transpose(0, 2, 1).reshape(76, -1).astype(np.int64)
    np.testing.assert_array_equal(_core.gemm_tile8(None, matrix, panel, isa=isa), weights @ inputs)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 7, 8, 19])
def test_dot_rows8(isa: str, rows: int, rng: np.random.Generator) -> None:
    for depth in AWKWARD:
        matrix, inputs = random_quads(rng, rows, depth), random_quads(rng, 1, depth)[0]
        matrix[0], inputs[0] = as_quads(np.array([128, 128, 128, 128])), 0xFFFFFFFF  # of the largest bytes
        expected = as_weights(matrix).reshape(rows, -1).astype(np.int64) @ as_bytes(inputs).reshape(-1)
        np.testing.assert_array_equal(_core.dot_rows8(matrix, inputs, isa=isa), expected)


@pytest.mark.parametrize("isa", ISAS)
def test_gemm_tile8_of_the_largest_bytes(isa: str) -> None:
    """No sum of products of the largest weights that a tile takes is cut off on the way."""
    tile = _core.kernel_tile(isa)
    at = np.zeros((1, tile["rows8"]), np.uint16)
    pairs = [(-128, 0), (127, 1), (64, 64), (-64, -64), (127, -128)]
    for pair in pairs if tile["adds_in_pairs"] else [*pairs, (-128, -128), (127, 127)]:
        codebook = np.full(64, as_quads(np.array(2 * pair) % 256), np.uint32)
        panel = np.full((64, tile["pixels8"]), 0xFFFFFFFF, np.uint32)
        assert (_core.gemm_tile8(at, codebook, panel, isa=isa) == 64 * 2 * 255 * sum(pair)).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kernel", [(1, 1), (1, 3), (1, 9), (3, 3), (2, 5), (1, 17), (7, 7)])
@pytest.mark.parametrize("channels", [1, 2, 4, 12])
@pytest.mark.parametrize("codebooks", [1, 3])
def test_decode_quads(
    isa: str, kernel: tuple[int, int], channels: int, codebooks: int, rng: np.random.Generator
) -> None:
    rows, columns = kernel
    n, positions = max(1, 4 // channels), 5
    most = 128 if codebooks == 1 else 127 * 128 // codebooks  # of several codebooks, in parts
    numbers = rng.integers(-most, most, size=(codebooks, 11, channels, rows, columns))
    codes = rng.integers(11, size=(codebooks, 6, positions * n)).astype(np.uint16)
    found = sum(numbers[m][codes[m]] for m in range(codebooks))
    if codebooks > 1:
        found = (found + 64) // 128
    expected = found.reshape(6, -1, 4, rows, columns).transpose(0, 3, 1, 4, 2) % 256
    # Rows of a centroid are rounded up to fours, and all of them to sixteens.
    values = np.pad(numbers, [(0, 0)] * 4 + [(0, -columns % 4 if rows * columns > 1 else 0)]).reshape(
        codebooks, 11, channels, -1
    )
    values = np.pad(values, [(0, 0)] * 3 + [(0, -values.shape[3] % 16 if values.shape[3] > 4 else 0)])
    got = _core.decode_quads(codes, values.astype(np.int16), rows, columns, isa=isa)
    np.testing.assert_array_equal(got, as_quads(expected))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("taps", [1, 3, 4, 5, 9, 49])
def test_turn_quads(isa: str, taps: int, rng: np.random.Generator) -> None:
    inputs = random_quads(rng, taps, 64)
    bytes_ = np.zeros((-(-taps // 4) * 4, 64, 4), np.int64)
    bytes_[:taps] = as_bytes(inputs)
    expected = as_quads(bytes_.reshape(-1, 4, 64, 4).transpose(3, 0, 2, 1)).reshape(-1, 64)
    for pixels in AWKWARD:
        got = _core.turn_quads(inputs, pixels, isa=isa)
        np.testing.assert_array_equal(got[:, :pixels], expected[:, :pixels])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 6])
@pytest.mark.parametrize("shift", [7, 9])
def test_table_sums8(isa: str, dim: int, shift: int, rng: np.random.Generator) -> None:
    width = _core.kernel_tile(isa)["table8_pixels"]
    positions, centroids, outputs = 5, 7, 11
    codebook = random_quads(rng, centroids, dim)
    panel = random_quads(rng, positions * dim, width)
    codes = rng.integers(centroids, size=(outputs, positions)).astype(np.uint16)
    inputs = as_bytes(panel).reshape(positions, dim, width, 4).astype(np.int64)
    tables = np.einsum("kdb,qdpb->qkp", as_weights(codebook), inputs)
    rows = (tables + (1 << shift >> 1)) >> shift
    sums = sum(rows[q, codes[:, q]] for q in range(positions))
    assert np.abs(rows).max() < 1 << 15
    assert np.abs(sums).max() < 1 << 15
    for pixels in sorted({min(p, width) for p in (*AWKWARD, width)}):
        for before in (None, rng.integers(-(1 << 24), 1 << 24, size=(outputs, width)).astype(np.int32)):
            at = ((np.arange(positions) * centroids + codes) * width * 2 // 8).astype(np.uint16)
            got = _core.table_sums8(at, codebook, panel, pixels, shift, before, isa=isa)
            expected = sums if before is None else sums + before
            np.testing.assert_array_equal(got[:, :pixels], expected[:, :pixels])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("has_residual", [False, True])
@pytest.mark.parametrize("pixels", AWKWARD)
def test_finish_tile8(isa: str, has_residual: bool, pixels: int, rng: np.random.Generator) -> None:
    sums = rng.integers(-(1 << 20), 1 << 20, size=(8, pixels)).astype(np.int32)
    scale = rng.uniform(1e-5, 4e-4, size=8).astype(np.float32)
    bias = rng.uniform(-20, 200, size=8).astype(np.float32)
    out = random_quads(rng, 2, pixels + 3)
    residual = random_quads(rng, 2, pixels + 3) if has_residual else None
    got = _core.finish_tile8(sums, scale, bias, residual, 0.7, 3, 250, False, out, isa=isa)
    np.testing.assert_array_equal(got[:, pixels:], out[:, pixels:])
    # Every instruction set rounds where a fused multiply-add does.
    reference = _core.finish_tile8(sums, scale, bias, residual, 0.7, 3, 250, False, out, isa="reference")
    np.testing.assert_array_equal(got, reference)
    with_bounds = _core.finish_tile8(sums, scale, bias, residual, 0.7, 0, 255, False, out, isa="reference")
    np.testing.assert_array_equal(
        _core.finish_tile8(sums, scale, bias, residual, 0.7, 0, 255, True, out, isa=isa), with_bounds
    )
    value = sums * scale[:, None].astype(np.float64) + bias[:, None]
    if residual is not None:
        value += as_bytes(residual[:, :pixels]).transpose(0, 2, 1).reshape(8, pixels) * 0.7
    value = np.clip(value, 3, 250)
    bytes_ = as_bytes(got[:, :pixels]).transpose(0, 2, 1).reshape(8, pixels)
    assert np.abs(bytes_ - value).max() < 0.5001


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 2, 3, 4])
@pytest.mark.parametrize("pixels", AWKWARD)
def test_quantize_and_dequantize(isa: str, rows: int, pixels: int, rng: np.random.Generator) -> None:
    values = rng.uniform(-4, 9, size=(rows, pixels)).astype(np.float32)
    values.flat[0] = np.inf
    values.flat[-1] = -np.inf
    inverse, zero = np.float32(20.0), 50.0
    quads = _core.quantize(values, inverse, zero, isa=isa)
    expected = np.full((pixels, 4), 50)
    expected[:, :rows] = np.clip(np.rint(values * inverse + np.float32(zero)), 0, 255).T
    np.testing.assert_array_equal(quads, as_quads(expected))
    back = _core.dequantize(quads, rows, 0.05, zero, isa=isa)
    np.testing.assert_array_equal(back, (expected[:, :rows].T - 50).astype(np.float32) * np.float32(0.05))


@pytest.mark.parametrize("isa", ISAS)
def test_quantize_ties_and_nan(isa: str) -> None:
    values = np.array([[0.5, 1.5, 2.5, np.nan]], np.float32)
    np.testing.assert_array_equal(as_bytes(_core.quantize(values, 1.0, 0.0, isa=isa))[:, 0], [0, 2, 2, 0])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("pixels", AWKWARD)
def test_max_row8(isa: str, step: int, pixels: int, rng: np.random.Generator) -> None:
    inputs, out = random_quads(rng, step * pixels), random_quads(rng, pixels)
    expected = as_quads(np.maximum(as_bytes(inputs[::step]), as_bytes(out)))
    np.testing.assert_array_equal(_core.max_row8(inputs, step, out, isa=isa), expected)
