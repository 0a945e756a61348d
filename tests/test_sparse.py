"""The sparse codec: which weights are kept, and what is kept of them, in the file, in NumPy and in PyTorch."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pyquant.codecs import SparseConfig, scalar, sparse
from pyquant.codecs.packing import unpack_codes
from pyquant.errors import ConfigError, InputError

# (config, weight shape): units of every kind, kernels, spare bits at the end of mask and codes.
CASES = [
    (SparseConfig(kept=0.25), (6, 5, 3, 3)),
    (SparseConfig(kept=0.3, bits=3), (5, 7)),
    (SparseConfig(kept=0.001, bits=5), (3, 5)),  # one is kept
    (SparseConfig(kept=0.999, bits=2), (3, 5)),  # all are
    (SparseConfig(kept=0.25, run=4, bits=4), (5, 8, 3, 3)),
    (SparseConfig(kept=0.6, run=4, bits=7), (3, 12)),
    (SparseConfig(kept=0.5, of=4, bits=4), (4, 8, 3, 3)),
    (SparseConfig(kept=0.25, of=4, bits=3), (3, 12)),
    (SparseConfig(kept=4 / 8, of=8, bits=6), (3, 16, 1, 2)),
    (SparseConfig(kept=2 / 3, of=3), (5, 3, 3, 1)),
    (SparseConfig(kept=1 / 256, of=256, bits=2), (3, 256)),
]


def random_mask(rng: np.random.Generator, config: SparseConfig, shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """Return a mask `[O, D]`, in the order of the weight itself, that agrees with a config."""
    units = int(np.prod(shape)) // config.unit
    if config.of:
        kept = np.array([rng.permutation(config.of) < config.kept_of for _ in range(units)])
    else:
        kept = np.repeat(rng.permutation(units) < config.kept_weights(shape) // config.run, config.run)
    return sparse.from_channels_last(kept.reshape(shape[0], -1), shape).reshape(shape[0], -1)


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_a_weight_is_kept_or_zero(config: SparseConfig, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    outputs, depth = shape[0], int(np.prod(shape[1:]))
    kept = random_mask(rng, config, shape)
    codes = np.where(kept, rng.integers(1 << config.bits, size=(outputs, depth)), -7)
    step = scalar.rounded_steps(rng.uniform(0.001, 10, outputs))
    zero = rng.integers(256, size=outputs)
    tensors = sparse.tensors_of(kept, codes, step, zero, config, shape)
    assert not list(config.faults(tensors, shape))
    weight = config.decoded(tensors, shape)
    assert weight.shape == shape
    for o, i in np.ndindex(outputs, depth):
        expected = float(step[o]) * (int(codes[o, i]) - int(zero[o]) / 2) if kept[o, i] else 0.0
        assert weight.reshape(outputs, -1)[o, i] == np.float32(expected)
    assert not np.signbit(weight.reshape(outputs, -1)[~kept]).any()
    assert int(kept.sum()) == config.kept_weights(shape)
    sizes = {role: tensor.nbytes for role, tensor in tensors.items()}
    assert sum(sizes.values()) == config.coded_bytes(shape)
    assert {role: sizes[role] for role in ("mask", "codes")} == config.planned_bytes(shape)


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
    | st.tuples(st.integers(1, 4), st.integers(1, 9))
)
def test_neighbours_are_the_channels_of_one_position(shape: tuple[int, ...]) -> None:
    weight = np.arange(np.prod(shape)).reshape(shape)
    rows = sparse.channels_last(weight)
    assert rows.shape == (shape[0], np.prod(shape[1:]))
    for at in np.ndindex(shape):
        o, c, y, x = (*at, 0, 0)[:4]
        _, channels, _, width = (*shape, 1, 1)[:4]
        assert rows[o, (y * width + x) * channels + c] == weight[at]
    np.testing.assert_array_equal(sparse.from_channels_last(rows, shape), weight, strict=True)


@pytest.mark.parametrize(("kept", "of"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (3, 10), (1, 256), (255, 256)])
def test_patterns_are_numbered_in_lexicographic_order(kept: int, of: int) -> None:
    config = SparseConfig(kept=kept / of, of=of, bits=2)
    patterns = sparse.patterns_of(kept, of)
    assert [tuple(np.flatnonzero(pattern)) for pattern in patterns] == list(combinations(range(of), kept))
    shape = (len(patterns), of)
    tensors = sparse.tensors_of(patterns, np.zeros(shape, int), np.ones(shape[0]), np.zeros(shape[0]), config, shape)
    ranks = unpack_codes(tensors["mask"], config.mask_bits, len(patterns))
    np.testing.assert_array_equal(ranks, np.arange(len(patterns)))


def test_the_mask_of_2_in_4_by_hand() -> None:
    config = SparseConfig(kept=0.5, of=4, bits=4)
    kept = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]], bool)
    codes = np.arange(16).reshape(2, 8)
    tensors = sparse.tensors_of(kept, codes, np.array([2.0, 1.0]), np.array([3, 15]), config, (2, 8))
    # Patterns 3, 2 and 0, 5; codes 1, 2, 4, 7 and 8, 9, 14, 15.
    assert tensors["mask"].tolist() == [0b00_010_011, 0b1010]
    assert tensors["codes"].tolist() == [0x21, 0x74, 0x98, 0xFE]
    np.testing.assert_array_equal(
        config.decoded(tensors, (2, 8)), [[0, -1, 1, 0, 5, 0, 0, 11], [0.5, 1.5, 0, 0, 0, 0, 6.5, 7.5]]
    )


@pytest.mark.parametrize(
    ("config", "kept", "message"),
    [
        (SparseConfig(kept=0.5), [[1, 0, 0, 0], [1, 0, 0, 1]], "expected 4 weights to be kept for 'sparse:0.5;bits:8'"),
        (SparseConfig(kept=0.5, run=4), [[1, 0, 1, 0], [1, 0, 0, 1]], "expected runs of 4 neighbouring inputs"),
        (SparseConfig(kept=0.5, of=4), [[1, 1, 1, 0], [1, 0, 0, 0]], "expected 2 of each 4 neighbouring inputs"),
    ],
)
def test_masks_that_do_not_agree_with_the_config(config: SparseConfig, kept: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparse.tensors_of(np.array(kept, bool), np.zeros((2, 4), int), np.ones(2), np.ones(2), config, (2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 0.0}, "the share that is kept must lie between 0 and 1, got 0"),
        ({"kept": 1.0}, "must lie between 0 and 1, got 1"),
        ({"kept": float("nan")}, "must lie between 0 and 1, got nan"),
        ({"kept": 0.5, "bits": 1}, "bits must be 2 to 8, got 1"),
        ({"kept": 0.5, "bits": 9}, "bits must be 2 to 8, got 9"),
        ({"kept": 0.5, "run": 2}, "run must be 1 or 4, got 2"),
        ({"kept": 0.5, "run": 4, "of": 4}, "run must be 1 where so many of 4 inputs are kept, got 4"),
        ({"kept": 0.5, "of": 1}, "kept of 2 to 256 neighbouring inputs, got 1"),
        ({"kept": 0.5, "of": -4}, "kept of 2 to 256 neighbouring inputs, got -4"),
        ({"kept": 0.5, "of": 2**31 - 1}, "kept of 2 to 256 neighbouring inputs, got 2147483647"),
        ({"kept": 0.4, "of": 4}, "of 4 inputs a whole number must be kept, at least 1 and not all, got 1.6"),
        ({"kept": 0.05, "of": 4}, "a whole number must be kept, at least 1 and not all, got 0.2"),
        ({"kept": 8 / 16, "of": 16}, "8 of 16 inputs can be kept in 12,870 ways; expected at most 256"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseConfig(**options)


@pytest.mark.parametrize(
    ("config", "bits", "mask_bits"),
    [
        (SparseConfig(kept=0.25, bits=4), 1.0, 1),
        (SparseConfig(kept=0.5, run=4, bits=8), 4.0, 1),
        (SparseConfig(kept=0.5, of=4, bits=4), 2.0, 3),
        (SparseConfig(kept=0.25, of=4), 2.0, 2),
        (SparseConfig(kept=0.5, of=8, bits=2), 1.0, 7),
    ],
)
def test_bits_of_weights_and_masks(config: SparseConfig, bits: float, mask_bits: int) -> None:
    assert (config.weight_bits, config.mask_bits) == (bits, mask_bits)
    assert (config.rate, config.block, config.centroids) == (0.0, (1, 1, 1), 1 << config.bits)


def test_inputs_must_be_whole_units() -> None:
    config = SparseConfig(kept=0.5, run=4)
    assert config.misfit((3, 8, 3, 3)) == ""
    assert config.misfit((3, 6)) == (
        "its 6 input channels are no multiple of the 4 that 'sparse:0.5;run:4;bits:8' takes together"
    )
    assert SparseConfig(kept=0.5, of=2).misfit((3, 1, 3, 3)).startswith("its 1 input channels are no multiple of the 2")
    assert SparseConfig(kept=0.5).misfit((3, 1, 3, 3)) == ""
