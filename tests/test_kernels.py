"""Each kernel on each instruction set against NumPy, at sizes around the width of its lanes."""

import numpy as np
import pytest
from tolerance import assert_close

from pyquant import _core
from pyquant.errors import InputError

ISAS = _core.available_isas()
AWKWARD = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 47)


def test_reference_is_always_there() -> None:
    assert ISAS[0] == "reference"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("size", AWKWARD)
def test_pack_rows_writes_its_runs_alone(isa: str, step: int, size: int, rng: np.random.Generator) -> None:
    inputs = rng.standard_normal((3, 1 + step * size)).astype(np.float32)
    panel = rng.standard_normal((4, size + 5)).astype(np.float32)
    runs = np.array([[0, 2, -1], [3, size, 1]])
    expected = panel.copy()
    for row, channel in [(3, 0), (1, 2)]:
        expected[row, :2] = 0
        expected[row, 3 : 3 + size] = inputs[channel, 1::step][:size]
    got = _core.pack_rows(runs, step, inputs, np.array([[3, 0], [1, 2]]), panel, isa=isa)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "blocks"), [(1, 1), (1, 65), (2, 33), (4, 1), (9, 7), (18, 32), (576, 1)])
def test_gemm_tile(isa: str, dim: int, blocks: int, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    codebook = rng.standard_normal((19, dim)).astype(np.float32)
    codes = rng.integers(19, size=(blocks, tile["rows"])).astype(np.uint16)
    weights = codebook[codes].transpose(1, 0, 2).reshape(tile["rows"], blocks * dim)
    for pixels in sorted({min(p, tile["pixels"]) for p in (*AWKWARD, tile["pixels"])}):
        panel = rng.standard_normal((blocks * dim, pixels)).astype(np.float32)
        got = _core.gemm_tile(codes, codebook, panel, isa=isa)[:, :pixels]
        assert_close(got, weights.astype(np.float64) @ panel, terms=blocks * dim)


B_TRANSPOSED = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]])
A_TRANSPOSED = np.array([[1, 1, 1, 0], [0, 1, -1, -1]])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tiles", AWKWARD)
def test_winograd_input(isa: str, tiles: int, rng: np.random.Generator) -> None:
    lines = rng.standard_normal((4, 2 * tiles + 2)).astype(np.float32)
    got = _core.winograd_input(lines, isa=isa)[:, :tiles].reshape(4, 4, tiles)
    for t in range(tiles):
        expected = B_TRANSPOSED @ lines[:, 2 * t : 2 * t + 4].astype(np.float64) @ B_TRANSPOSED.T
        assert_close(got[:, :, t], expected, terms=4)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("tiles", AWKWARD)
def test_winograd_output(isa: str, tiles: int, rng: np.random.Generator) -> None:
    products = rng.standard_normal((16, tiles)).astype(np.float32)
    got = _core.winograd_output(products, isa=isa)[:, : 2 * tiles]
    for t in range(tiles):
        expected = A_TRANSPOSED @ products[:, t].reshape(4, 4).astype(np.float64) @ A_TRANSPOSED.T
        assert_close(got[:, 2 * t : 2 * t + 2], expected, terms=9)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 9, 12, 16, 18, 25, 33, 49])
@pytest.mark.parametrize("books", [1, 3])
def test_decode_rows_is_exact(isa: str, dim: int, books: int, rng: np.random.Generator) -> None:
    codebook = rng.standard_normal((books, 17, dim)).astype(np.float32)
    for rows, blocks in [(1, 1), (1, 7), (3, 5), (8, 16)]:
        codes = rng.integers(17, size=(books, rows, blocks)).astype(np.uint16)
        expected = codebook[0][codes[0]]
        for m in range(1, books):
            expected = expected + codebook[m][codes[m]]
        got = _core.decode_rows(codes, codebook, isa=isa)
        np.testing.assert_array_equal(got, expected.reshape(rows, blocks * dim))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2, 4, 8, 9, 18, 25])
@pytest.mark.parametrize("centroids", [1, 3, 16, 19])
def test_table_build(isa: str, dim: int, centroids: int, rng: np.random.Generator) -> None:
    columns = _core.kernel_tile(isa)["table_pixels"]
    codebook = rng.standard_normal((centroids, dim)).astype(np.float32)
    panel = rng.standard_normal((dim, columns)).astype(np.float32)
    for pixels in sorted({min(p, columns) for p in AWKWARD}):
        got = _core.table_build(codebook, panel, pixels, isa=isa)[:, :pixels]
        assert_close(got, codebook.astype(np.float64) @ panel[:, :pixels], terms=dim)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("outputs", [1, 2, 31])
@pytest.mark.parametrize("positions", [1, 3, 4, 18])
@pytest.mark.parametrize("accumulate", [False, True])
def test_table_sum(isa: str, outputs: int, positions: int, accumulate: bool, rng: np.random.Generator) -> None:
    columns = _core.kernel_tile(isa)["table_pixels"]
    tables = rng.standard_normal((positions, 19, columns)).astype(np.float32)
    sums = rng.standard_normal((outputs, columns)).astype(np.float32)
    codes = rng.integers(19, size=(outputs, positions)).astype(np.uint16)
    expected = sums.copy() if accumulate else np.zeros_like(sums)
    for q in range(positions):  # in the kernel's order: the sums are the same bits
        expected += tables[q][codes[:, q]]
    for pixels in sorted({min(p, columns) for p in AWKWARD}):
        got = _core.table_sum(codes, tables, sums if accumulate else None, pixels, isa=isa)
        np.testing.assert_array_equal(got[:, :pixels], expected[:, :pixels])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("with_residual", [False, True])
@pytest.mark.parametrize("count", AWKWARD)
def test_finish_tile(isa: str, with_residual: bool, count: int, rng: np.random.Generator) -> None:
    values, residual = rng.standard_normal((2, 3, count)).astype(np.float32)
    scale, bias = rng.standard_normal((2, 3)).astype(np.float32)
    got = _core.finish_tile(values, scale, bias, residual if with_residual else None, -1.0, 1.25, isa=isa)
    expected = values * scale[:, None] + bias[:, None] + (residual if with_residual else 0)
    assert_close(got[:, :-1], np.clip(expected, -1.0, 1.25), terms=3)
    assert (got[:, -1] == -1.0).all()  # what lies behind a row is not ours


@pytest.mark.parametrize("isa", ISAS)
def test_finish_tile_keeps_nan(isa: str) -> None:
    values = np.full((2, 37), np.nan, np.float32)
    ones = np.ones(2, np.float32)
    assert np.isnan(_core.finish_tile(values, ones, ones, None, 0.0, 6.0, isa=isa)[:, :-1]).all()


def test_unknown_isa_names_those_that_run() -> None:
    with pytest.raises(InputError, match=r"'mmx' cannot run here; this machine runs reference"):
        _core.peak_gmacs("mmx")


def test_environment_names_the_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYQUANT_ISA", "sse9")
    with pytest.raises(InputError, match="PYQUANT_ISA: 'sse9'"):
        _core.kernel_tile("")
    monkeypatch.setenv("PYQUANT_ISA", "reference")
    assert _core.kernel_tile("")["lanes"] == 1
