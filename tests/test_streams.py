"""Streams of codes: exact at every size, as small as an independent coder's, and refused where they are damaged."""

from __future__ import annotations

from math import log2

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from skewed_codes import damaged, encode, skewed
from slow_entropy import ENTROPY_CODED, Reader, read_codes, read_frequencies

from pyquant import _core
from pyquant.codecs.packing import pack_codes, packed_bytes, unpack_codes
from pyquant.errors import InputError

STATES_BYTES = 16


def check_round_trip(codes: NDArray[np.integer], bits: int, models: int = 1) -> NDArray[np.uint8]:
    """Return the streams of these codes, after both decoders have given the codes back."""
    coded = encode(codes, bits, models)
    count = codes.size // models
    np.testing.assert_array_equal(_core.decode_codes(coded, bits, models, count), pack_codes(codes, bits))
    assert read_codes(coded.tobytes(), bits, models, count) == codes.reshape(models, count).tolist()
    return coded


@pytest.mark.parametrize("centroids", [2, 3, 4, 5, 8, 16, 17, 64, 100, 256, 257, 512, 2048])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 1000, 4099])
def test_round_trip(centroids: int, count: int, rng: np.random.Generator) -> None:
    bits = (centroids - 1).bit_length()
    coded = check_round_trip(skewed(rng, centroids, count, 0.2), bits)
    assert coded.size <= 1 + packed_bytes(count, bits)


@pytest.mark.parametrize(
    ("bits", "models", "count"), [(4, 2, 999), (3, 3, 1001), (1, 4, 2003), (8, 4, 500), (11, 2, 3000)]
)
def test_every_codebook_has_a_model_of_its_own(bits: int, models: int, count: int, rng: np.random.Generator) -> None:
    codes = np.stack([(skewed(rng, 1 << bits, count, 0.2) + 5 * m) % (1 << bits) for m in range(models)])
    coded = check_round_trip(codes, bits, models)
    assert coded.tobytes() == b"".join(encode(row, bits).tobytes() for row in codes)


@pytest.mark.parametrize("bits", [1, 3, 4, 8, 11, 16])
@pytest.mark.parametrize("symbol", ["first", "last"])
def test_one_code_alone_takes_no_bits(bits: int, symbol: str) -> None:
    codes = np.full(8 * 513, 0 if symbol == "first" else (1 << bits) - 1)
    assert check_round_trip(codes, bits).size == 1 + 6 + 1 + STATES_BYTES


def test_codes_of_sixteen_bits(rng: np.random.Generator) -> None:
    check_round_trip(skewed(rng, 65536, 3000, 0.001), 16)
    every = np.concatenate([np.arange(65536), np.full(400_000, 7)])
    np.testing.assert_array_equal(_core.decode_codes(encode(every, 16), 16, 1, every.size), pack_codes(every, 16))


def test_pairs_of_short_codes_are_one_symbol(rng: np.random.Generator) -> None:
    """What a 4-bit code says of the next one is made use of."""
    first = rng.integers(16, size=20_000)
    pairs = np.stack([first, (first + rng.integers(2, size=first.size)) % 16], axis=1).reshape(-1)
    assert 8 * check_round_trip(pairs, 4).size / pairs.size == pytest.approx(2.5, rel=0.02)  # (4 + 1) / 2 bits


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_round_trip_of_any_codes(data: st.DataObject) -> None:
    bits = data.draw(st.integers(1, 11))
    models = data.draw(st.integers(1, 3))
    count = data.draw(st.integers(1, 400))
    favourites = data.draw(st.lists(st.integers(0, (1 << bits) - 1), min_size=1, max_size=5))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    codes = rng.choice(favourites, size=models * count)
    odd = rng.random(codes.size) < 0.02
    codes[odd] = rng.integers(1 << bits, size=int(odd.sum()))
    check_round_trip(codes, bits, models)


GOLDEN_STREAM = (
    "01",
    "00000900200a831004",
    "e0000200a82a0400a0010800c1fddffe",
    "a434a2aaa4343bfca2aaab2ec1fda434a2aaa4343bfca2aaab2ec1fda434a2aaa4343bfca2aaab2ec1fd8634a2aa24353bfc",
    "a2aaab2ec1fd222062a80a873bfcf9abcc2f",
)


def test_golden_stream() -> None:
    """These bytes are the format: kind, table of the symbols 0 to 9, four states, words."""
    codes = 3 * np.array([0, 1, 0, 2, 0, 1, 0, 3] * 40 + [0, 1, 2])
    assert encode(codes, 6).tobytes().hex() == "".join(GOLDEN_STREAM)


@pytest.mark.parametrize(("centroids", "count"), [(16, 40_000), (64, 30_000), (256, 60_000), (2048, 200_000)])
def test_size_is_that_of_an_independent_coder(centroids: int, count: int, rng: np.random.Generator) -> None:
    """Of the same symbols with the same model, constriction's coder needs as many bytes, but for four states."""
    constriction = pytest.importorskip("constriction")
    bits = (centroids - 1).bit_length()
    codes = skewed(rng, centroids, count)
    coded = encode(codes, bits)
    assert coded[0] == ENTROPY_CODED
    members = max(1, 8 // bits)
    symbols = unpack_codes(pack_codes(codes, bits), bits * members, count // members)
    reader = Reader(coded.tobytes(), 1)
    frequencies = read_frequencies(reader, bits * members)
    shares = np.array([frequencies.get(symbol, 0) for symbol in range(int(symbols.max()) + 1)], np.float64)
    model = constriction.stream.model.Categorical(shares / shares.sum(), perfect=True)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols.astype(np.int32), model)
    theirs = coder.get_compressed()
    np.testing.assert_array_equal(coder.decode(model, symbols.size), symbols)
    ours = coded.size - reader.at
    assert abs(ours - 4 * theirs.size) <= STATES_BYTES + 8 + 1e-3 * ours


@pytest.mark.parametrize(("centroids", "count"), [(16, 10_000), (256, 10_000), (256, 262_144), (2048, 128_000)])
def test_size_is_near_the_entropy(centroids: int, count: int, rng: np.random.Generator) -> None:
    codes = skewed(rng, centroids, count, 4.0)
    frequencies = np.bincount(codes)
    entropy = -sum(n * log2(n / count) for n in frequencies if n) / 8
    size = encode(codes, (centroids - 1).bit_length()).size
    assert size <= 1.001 * entropy + 1 + 6 + STATES_BYTES + min(centroids**2, 2048) * 4 / 8


# Damage.


CODES = np.tile([3, 3, 3, 1, 3, 2, 3, 3, 1, 3, 9], 60)
STREAM = encode(CODES, 5)  # kind, first 1, last 9, mantissa and level bits, lowest, levels of 9 symbols, states, words
LEVELS_AT = 7
STATES_AT = LEVELS_AT + packed_bytes(9, int(STREAM[5]) >> 4)


@pytest.mark.parametrize(
    ("coded", "message"),
    [
        (STREAM[:0], "stream 0 of 1: it is missing"),
        (STREAM[:3], "it ends before its table"),
        (STREAM[:LEVELS_AT], "it ends within its table"),
        (STREAM[: STATES_AT + 15], "it ends before its states"),
        (STREAM[: STATES_AT + 16], "it ends before its last symbol"),
        (STREAM[:-1], "it ends before its last symbol"),
        (np.append(STREAM, np.uint8(0)), "1 bytes after the last stream"),
        (damaged(STREAM, {0: 2}), "it is of an unknown kind"),
        (damaged(STREAM, {1: 10}), "its table is of symbols that do not exist"),
        (damaged(STREAM, {3: 32}), "its table is of symbols that do not exist"),
        (damaged(STREAM, {4: 255}), "its table is of symbols that do not exist"),
        (damaged(STREAM, {5: 0x35}), "its table has levels of an impossible kind"),
        (damaged(STREAM, {5: 0x04}), "its table has levels of an impossible kind"),
        (damaged(STREAM, {5: 0x94}), "its table has levels of an impossible kind"),
        (damaged(STREAM, {5: int(STREAM[5]) & 0xF0, 6: 255}), "a level of its table is too high"),
        (damaged(STREAM, dict.fromkeys(range(LEVELS_AT, STATES_AT), 0)), "its table has no symbol that occurs"),
        (damaged(STREAM, {STATES_AT + 2: 0, STATES_AT + 3: 0}), "a state of it is too small"),
        (
            damaged(STREAM, {STATES_AT: int(STREAM[STATES_AT]) ^ 1}),
            "its states do not end where they must|it ends|after",
        ),
        (np.zeros(5, np.uint8), "it ends within its packed codes"),
    ],
)
def test_damage_is_named(coded: NDArray[np.uint8], message: str) -> None:
    with pytest.raises(InputError, match=message):
        _core.decode_codes(coded, 5, 1, CODES.size)


def test_symbol_that_is_not_filled_with_zeros() -> None:
    coded = encode(np.append(np.zeros(4000, np.int64), 1), 4)  # 4001 codes: the last symbol holds one
    with pytest.raises(InputError, match="its last symbol is not filled with zeros"):
        _core.decode_codes(encode(np.append(np.zeros(4000, np.int64), [1, 2]), 4), 4, 1, 4001)
    _core.decode_codes(coded, 4, 1, 4001)


@pytest.mark.parametrize("bits", [4, 5, 8, 11])
def test_any_damage_is_refused_or_decodes_to_codes(bits: int, rng: np.random.Generator) -> None:
    """Flips of a table may give another stream that is whole; what is decoded then is as long as it must be."""
    codes = skewed(rng, 1 << bits, 2000, 0.3 if bits < 11 else 0.01)
    coded, packed = encode(codes, bits), pack_codes(codes, bits)
    noticed = 0
    for _ in range(1500):
        spoilt = coded.copy()
        spoilt[rng.integers(coded.size)] ^= 1 << rng.integers(8)
        try:
            assert _core.decode_codes(spoilt, bits, 1, codes.size).size == packed.size
        except InputError:
            noticed += 1
    assert noticed > 1450
    for length in range(coded.size):
        with pytest.raises(InputError):
            _core.decode_codes(coded[:length], bits, 1, codes.size)
    for _ in range(300):
        noise = rng.integers(256, size=int(rng.integers(1, 200)), dtype=np.uint8)
        noise[0] = ENTROPY_CODED
        with pytest.raises(InputError):
            _core.decode_codes(noise, bits, 1, codes.size)


@pytest.mark.parametrize(("bits", "models", "count"), [(0, 1, 8), (17, 1, 8), (8, -1, 8), (8, 2**40, 2**40), (8, 1, 9)])
def test_impossible_sizes(bits: int, models: int, count: int) -> None:
    with pytest.raises(InputError):
        _core.encode_codes(np.zeros(8, np.uint8), bits, models, count)
