"""Candidates: the codecs that each weight may get for a target, their bytes, bit operations and predicted errors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod

import numpy as np
from numpy.typing import NDArray

from pyquant.choose import Choice, Recipe, block_count, clamped_centroids
from pyquant.codecs import CodecConfig, CodedConfig, DenseConfig, ProductConfig, ScalarConfig, SparseConfig
from pyquant.codecs.product import CODEBOOK_BYTES, CODEBOOK_DTYPES, INT8_MAX, as_conv_shape, codebook_tensors
from pyquant.codecs.scalar import MAX_BITS, MIN_BITS
from pyquant.codecs.sparse import RUNS
from pyquant.distortion import Block
from pyquant.graph import Graph, Network, Weight
from pyquant.rates import at_rate
from pyquant.report import FLOAT_BITS, weight_macs
from pyquant.sensitivity import Curve, Curves

# Shapes of blocks by kernel, and numbers of centroids: the codecs that a size target chooses from.
CANDIDATE_BLOCKS: dict[tuple[int, int], tuple[Block, ...]] = {
    (1, 1): ((1, 1, 1), (2, 1, 1), (4, 1, 1), (8, 1, 1), (16, 1, 1)),
    (3, 3): ((1, 1, 1), (1, 1, 3), (1, 3, 3), (2, 3, 3), (4, 3, 3)),
}
CANDIDATE_CENTROIDS = tuple(
    sorted({16 * 2**octave * step // 4 for octave in range(8) for step in (4, 5, 6, 7)} | {4096})
)
# Of additive codebooks: the numbers of codebooks and of each one's centroids.
CANDIDATE_ADDITIVE = tuple((books, count) for books in (2, 3, 4) for count in (16, 32, 64, 128, 256))
# Of grids, bits per weight when coded: eight to an octave.
CANDIDATE_RATES = tuple(0.25 * 2 ** (step / 8) for step in range(39))
# Of sparse grids, shares that are kept, alone and in runs, and bits.
CANDIDATE_SHARES = (0.05, 0.08, 0.12, 0.18, 0.25, 0.35, 0.5, 0.7)
CANDIDATE_BITS = (3, 4, 6, 8)
LEAST_RATED_BYTES = 512  # of a weight at a rate: of less, the tables of the code would be too much
# What the header says more of a weight than of one with a float codebook: of an int8 codebook's scale, of grids, and of
# those with a mask.
INT8_OVERHEAD, GRID_OVERHEAD, MASK_OVERHEAD = 120, 90, 180
SAMPLED_WEIGHTS = 4096  # looked at to see whether fp16 can hold a weight's numbers
HEADROOM = 2  # centroids fitted to outputs may be larger than any weight
LEAST_ADDITIVE_DIM = 4  # weights of a block, from which on one codebook of many centroids costs too many bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One codec that a weight may get: its bytes in the file, and the relative error of the outputs it is to cause."""

    codec: CodecConfig
    bytes: int
    error: float
    operations: int  # on bits, for one input


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What weights that no rule names may get besides staying dense."""

    codecs: tuple[type[CodecConfig], ...]
    max_codebooks: int  # the most additive codebooks of a weight
    # Whether weights too small for a rate may have packed grids: few bytes, but operations count however small it is.
    small_grids: bool = False


def candidate_blocks(recipe: Recipe, graph: Graph) -> dict[str, tuple[Block, ...]]:
    """Return the shapes of blocks that each weight may get, by the weight's name; one where a rule fixes it.

    Raises:
        ConfigError: as `Recipe.choose`.
    """
    ruled = recipe.choose(graph)
    result: dict[str, tuple[Block, ...]] = {}
    for name, (weight, is_ruled) in ruled_weights(recipe, graph).items():
        if is_ruled:
            codec = ruled[name].codec
            result[name] = () if isinstance(codec, DenseConfig) else (codec.block,)
            continue
        _, c, kh, kw = as_conv_shape(weight.shape)
        shapes = CANDIDATE_BLOCKS.get((kh, kw), ((1, 1, 1), (1, 1, kw), (1, kh, kw)))
        result[name] = tuple(dict.fromkeys((min(channels, c), bh, bw) for channels, bh, bw in shapes))
    return result


def ruled_weights(recipe: Recipe, graph: Graph) -> dict[str, tuple[Weight, bool]]:
    """Return each weight by name, and whether a rule decides its codec."""
    result: dict[str, tuple[Weight, bool]] = {}
    for node, weight in graph.weighted():
        _, before = result.get(weight.name, (weight, False))
        result[weight.name] = weight, before or any(rule.matches(node.name) for rule in recipe.rules)
    return result


def options_of(
    network: Network, recipe: Recipe, ruled: Mapping[str, Choice], curves: Curves, candidates: Candidates
) -> list[list[Option]]:
    """Return the options of each weight, the smallest first; of one that a rule names, what is chosen in `ruled`."""
    macs = weight_macs(network.graph)
    result = []
    for name, (weight, is_ruled) in ruled_weights(recipe, network.graph).items():
        blocks = [block for measured, block in curves if measured == name]
        configs = [ruled[name].codec] if is_ruled else [DenseConfig(), *_configs(weight, blocks, candidates)]
        numbers = _Numbers.of(network, weight)
        options = [_option(weight, config, curves, numbers, macs[name]) for config in configs]
        result.append(sorted(options, key=lambda option: (option.bytes, option.error)))
    return result


def unmeasured_options(network: Network, recipe: Recipe, candidates: Candidates) -> list[list[Option]]:
    """Return the options of each weight, the smallest first, whose errors say nothing.

    Raises:
        ConfigError: as `Recipe.choose`.
    """
    blocks = candidate_blocks(recipe, network.graph)
    unmeasured = Curve(
        num_blocks=1,
        factor=0.0,
        log_centroids=(0.0, 1.0),
        log_errors=(0.0, -1.0),
        rates=(0.0, 1.0),
        log_rate_errors=(0.0, -1.0),
        shares=(0.0, 1.0),
        log_share_errors=(0.0, -1.0),
        log_run_errors=(0.0, -1.0),
    )
    curves = {(name, block): unmeasured for name, shapes in blocks.items() for block in shapes}
    return options_of(network, recipe, recipe.choose(network.graph), curves, candidates)


def float_bytes(network: Network, weight: Weight) -> int:
    """Return the bytes of a number in a float codebook: fp32 where fp16 cannot hold numbers like the weight's."""
    numbers = network.tensors[weight.tensor("weight")].reshape(-1)
    some = numbers[:: -(-len(numbers) // SAMPLED_WEIGHTS)]
    like = np.concatenate([some, [_largest(numbers)]]).astype(np.float32)[None, None]
    return int(codebook_tensors(like, ProductConfig(block=(1, 1, 1), centroids=2))["codebook"].itemsize)


def _configs(weight: Weight, blocks: Sequence[Block], candidates: Candidates) -> Iterator[CodedConfig]:
    """Yield the codecs that a weight, which no rule names, may get."""
    if ProductConfig in candidates.codecs:
        for block in blocks:
            yield from _product_configs(weight, block, candidates.max_codebooks)
    if ScalarConfig in candidates.codecs:
        rated = [c for c in map(at_rate, CANDIDATE_RATES) if c.coded_bytes(weight.shape) >= LEAST_RATED_BYTES]
        yield from rated
        if not rated and candidates.small_grids:
            yield from (ScalarConfig(bits=bits) for bits in range(MIN_BITS, MAX_BITS + 1))
    if SparseConfig in candidates.codecs:
        settings = product(CANDIDATE_SHARES, CANDIDATE_BITS, RUNS)
        sparse = [SparseConfig(kept=kept, bits=bits, run=run) for kept, bits, run in settings]
        yield from (config for config in sparse if not config.misfit(weight.shape))


def _product_configs(weight: Weight, block: Block, max_codebooks: int) -> Iterator[ProductConfig]:
    most = clamped_centroids(block_count(weight.shape, block))
    counts = [count for count in CANDIDATE_CENTROIDS if count <= most] or ([most] if most > 1 else [])
    if prod(block) == 1:
        counts = [count for count in counts if count <= 256]  # fp16 itself has no more to say
    kinds = [(1, count) for count in counts]
    if prod(block) >= LEAST_ADDITIVE_DIM:
        kinds += [(books, count) for books, count in CANDIDATE_ADDITIVE if books <= max_codebooks and count <= most]
    for (books, count), dtype in product(kinds, CODEBOOK_DTYPES):
        yield ProductConfig(block=block, centroids=count, codebooks=books, codebook_dtype=dtype)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """What the size of a weight's numbers means for its codebooks."""

    dense_bytes: int  # of the weight itself
    float_bytes: int  # of a number that is no integer
    int8_error: float  # relative squared error of the weight, from rounding its centroids to int8

    @classmethod
    def of(cls, network: Network, weight: Weight) -> _Numbers:
        numbers = network.tensors[weight.tensor("weight")]
        mean_square = float(np.square(numbers, dtype=np.float64).mean())
        step = _largest(numbers) / INT8_MAX
        error = step**2 / 12 / mean_square if mean_square > 0 else 0.0
        return cls(dense_bytes=numbers.nbytes, float_bytes=float_bytes(network, weight), int8_error=error)


def _largest(numbers: NDArray[np.floating]) -> float:
    """Return how large the numbers of centroids may become, for a weight's."""
    return float(HEADROOM * np.float32(max(numbers.max(), -numbers.min())))


def _option(weight: Weight, codec: CodecConfig, curves: Curves, numbers: _Numbers, macs: int) -> Option:
    operations = round(macs * codec.weight_bits * FLOAT_BITS)
    if isinstance(codec, DenseConfig):
        return Option(codec=codec, bytes=numbers.dense_bytes, error=0.0, operations=operations)
    curve, size, rounding = curves[weight.name, codec.block], codec.coded_bytes(weight.shape), 0.0
    if isinstance(codec, ScalarConfig):
        size += GRID_OVERHEAD
    elif isinstance(codec, SparseConfig):
        size += MASK_OVERHEAD
    elif codec.codebook_dtype == "int8":
        size += INT8_OVERHEAD
        rounding = numbers.int8_error
    else:
        size += (numbers.float_bytes - CODEBOOK_BYTES["float"]) * codec.codebooks * codec.centroids * codec.dim
    return Option(codec=codec, bytes=size, error=curve.error(codec, rounding), operations=operations)
