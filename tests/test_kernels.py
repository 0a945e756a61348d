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
@pytest.mark.parametrize("depth", [1, 4, 9, 65, 576])
def test_gemm_tile(isa: str, depth: int, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    for rows in range(1, tile["rows"] + 1):
        for pixels in {min(p, tile["pixels"]) for p in (*AWKWARD, tile["pixels"])}:
            a = rng.standard_normal((rows, depth)).astype(np.float32)
            b = rng.standard_normal((depth, pixels)).astype(np.float32)
            got = _core.gemm_tile(a, b, isa=isa)[:, :pixels]
            assert_close(got, a.astype(np.float64) @ b, terms=depth)


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
@pytest.mark.parametrize("outputs", [1, 2, 31, 64])
def test_table_sum(isa: str, outputs: int, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    table = rng.standard_normal((tile["blocks_per_pass"], 19, tile["table_pixels"])).astype(np.float32)
    sums = rng.standard_normal((outputs, tile["table_pixels"])).astype(np.float32)
    codes = rng.integers(19, size=(outputs, tile["blocks_per_pass"])).astype(np.uint16)
    expected = sums.copy()
    for b in range(tile["blocks_per_pass"]):  # in the kernel's order: the sums are the same bits
        expected += table[b][codes[:, b]]
    np.testing.assert_array_equal(_core.table_sum(codes, table, sums, isa=isa), expected)


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
