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
    outside = 0x7F8000FF  # any bits: no number is computed with
    expected = panel.copy()
    for row, channel in [(3, 0), (1, 2)]:
        expected.view(np.uint32)[row, :2] = outside
        expected[row, 3 : 3 + size] = inputs[channel, 1::step][:size]
    got = _core.pack_rows(runs, step, inputs, np.array([[3, 0], [1, 2]]), outside, panel, isa=isa)
    np.testing.assert_array_equal(got.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "blocks"), [(1, 1), (1, 65), (2, 33), (4, 1), (9, 7), (18, 32), (576, 1)])
def test_gemm_tile(isa: str, dim: int, blocks: int, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    codebook = rng.standard_normal((19, dim)).astype(np.float32)
    codes = rng.integers(19, size=(blocks, tile["rows"])).astype(np.uint16)
    weights = codebook[codes].transpose(1, 0, 2).reshape(tile["rows"], blocks * dim)
    for pixels in sorted({min(p, tile["pixels"]) for p in (*AWKWARD, tile["pixels"])}):
        panel = rng.standard_normal((blocks * dim, pixels)).astype(np.float32)
        got = _core.gemm_tile(codes * np.uint16(dim), codebook, panel, isa=isa)[:, :pixels]
        assert_close(got, weights.astype(np.float64) @ panel, terms=blocks * dim)


@pytest.mark.parametrize("isa", ISAS)
def test_gemm_tile_of_a_matrix(isa: str, rng: np.random.Generator) -> None:
    tile = _core.kernel_tile(isa)
    matrix = rng.standard_normal((tile["rows"], 77)).astype(np.float32)
    panel = rng.standard_normal((77, tile["pixels"])).astype(np.float32)
    assert_close(_core.gemm_tile(None, matrix, panel, isa=isa), matrix.astype(np.float64) @ panel, terms=77)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("depth", [*AWKWARD, 577])
def test_dot_rows(isa: str, depth: int, rng: np.random.Generator) -> None:
    for rows, columns in [(1, 1), (7, 3), (8, 1), (9, 2), (17, 1)]:
        a = rng.standard_normal((rows, depth)).astype(np.float32)
        x = rng.standard_normal((columns, depth)).astype(np.float32)
        assert_close(_core.dot_rows(a, x, isa=isa), a.astype(np.float64) @ x.T, terms=depth)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize("tiles", AWKWARD)
def test_winograd_computes_convolutions(isa: str, m: int, tiles: int, rng: np.random.Generator) -> None:
    side = m + 2
    d = rng.standard_normal((tiles, side, side)).astype(np.float32)
    g = rng.standard_normal((3, 3))
    points = {2: [0, 1, -1], 4: [0, 0.75, -0.75, 1.5, -1.5]}[m]
    transform = np.stack([_row_of(points, j, m) for j in range(side)])
    frequencies = (transform @ g @ transform.T).reshape(-1, 1).astype(np.float32)

    inputs = _core.winograd_input(d, isa=isa)[:, :tiles]
    got = _core.winograd_output(frequencies * inputs, isa=isa)[:, : m * tiles].reshape(m, tiles, m)
    for t in range(tiles):
        expected = [[(d[t, y : y + 3, x : x + 3] * g).sum() for x in range(m)] for y in range(m)]
        assert_close(got[:, t], np.array(expected), terms=side**2)


def _row_of(points: list[float], j: int, m: int) -> np.ndarray:
    """Return row j of the matrix that takes a kernel's 3 weights to their values at the points and at infinity.

    Divided by the products of the differences of points, as Lagrange's interpolation demands; F(2x2) has the signs of
    Lavin and Gray, who change those of the first row and of the inputs' alike.
    """
    if j == len(points):
        return np.array([0.0, 0.0, 1.0])
    scale = np.prod([points[j] - p for i, p in enumerate(points) if i != j])
    return np.array([1.0, points[j], points[j] ** 2]) / (-scale if m == 2 and j == 0 else scale)


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
        at = ((np.arange(positions) * tables.shape[1] + codes) * columns * 4 // 8).astype(np.uint16)
        got = _core.table_sum(at, tables, sums if accumulate else None, pixels, isa=isa)
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


CURVES = {
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "silu": lambda x: x / (1 + np.exp(-x)),
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", CURVES)
def test_curves(isa: str, name: str, rng: np.random.Generator) -> None:
    spread = np.concatenate([rng.standard_normal(300) * scale for scale in (1e-6, 1, 10, 40)])
    for values in [np.arange(-120, 120, 0.37), *(rng.permutation(spread)[:count] for count in AWKWARD)]:
        x = values.astype(np.float32)
        with np.errstate(over="ignore"):
            expected = CURVES[name](x.astype(np.float64))
        got = _core.curve(name, x, isa=isa)
        # Below the smallest normal number, floats have fewer bits.
        np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-37 * np.abs(x).max())
    special = _core.curve(name, np.array([np.nan, np.inf, -0.0, -np.inf] * 7, np.float32), isa=isa)
    assert np.isnan(special[::4]).all()
    is_gate = "sigmoid" in name
    assert (special[1::4] == (1 if is_gate else np.inf)).all()
    assert (special[2::4] == (0.5 if is_gate else 0)).all()
    assert (special[3::4] == 0).all() if is_gate else np.isnan(special[3::4]).all()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize("pixels", AWKWARD)
def test_max_row(isa: str, step: int, pixels: int, rng: np.random.Generator) -> None:
    inputs, out = (rng.standard_normal(count, np.float32) for count in (step * pixels, pixels))
    inputs[0], out[-1] = np.nan, -np.inf
    np.testing.assert_array_equal(_core.max_row(inputs, step, out, isa=isa), np.maximum(inputs[::step], out))
    out[0], out[-1] = 1, np.nan
    np.testing.assert_array_equal(_core.max_row(inputs, step, out, isa=isa), np.maximum(inputs[::step], out))


@pytest.mark.parametrize("isa", ISAS)
def test_tiles_are_of_whole_vectors(isa: str) -> None:
    tile = _core.kernel_tile(isa)
    assert all(tile[name] % tile["lanes"] == 0 for name in ("pixels", "pixels8", "table_pixels", "table8_pixels"))


def test_unknown_isa_names_those_that_run() -> None:
    with pytest.raises(InputError, match=r"'mmx' cannot run here; this machine runs reference"):
        _core.peak_gmacs("mmx")


def test_environment_names_the_isa(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYQUANT_ISA", "sse9")
    with pytest.raises(InputError, match="PYQUANT_ISA: 'sse9'"):
        _core.kernel_tile("")
    monkeypatch.setenv("PYQUANT_ISA", "reference")
    assert _core.kernel_tile("")["lanes"] == 1
