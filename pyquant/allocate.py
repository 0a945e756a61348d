"""Size targets: which codec each layer gets so that the file has a given size and the outputs the least error.

Every weight has a list of candidate codecs with their bytes and the error that they are predicted to cause
(`pyquant.sensitivity`); a dynamic programme over bytes picks one for each, so that a network may mix codecs. Rules of
the recipe stay as they are. Sizes are those of tensors at fixed length, and of grids at a rate the most that they may
take, as the writer keeps them in a file that was made for a size (`pyquant.file`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.choose import Choice, Recipe, block_count, clamped_centroids
from pyquant.codecs import CodecConfig, CodedConfig, DenseConfig, ProductConfig, ScalarConfig, SparseConfig, scalar
from pyquant.codecs.packing import packed_bytes
from pyquant.codecs.product import CODEBOOK_BYTES, CODEBOOK_DTYPES, INT8_MAX, as_conv_shape, codebook_tensors
from pyquant.codecs.sparse import RUNS
from pyquant.container import ALIGNMENT
from pyquant.distortion import Block
from pyquant.errors import ConfigError
from pyquant.graph import Graph, Network, Weight
from pyquant.rates import at_rate, with_shared_rates
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

TOLERANCE = 0.01  # of the target, how far below it the file may stay
UNUSED = 0.003  # of it, as far as that is possible
RESOLUTION = 16384  # steps between the smallest file and the target that the dynamic programme tells apart
SAMPLED_WEIGHTS = 4096  # looked at to see whether fp16 can hold a weight's numbers
HEADROOM = 2  # centroids fitted to outputs may be larger than any weight
LEAST_ADDITIVE_DIM = 4  # weights of a block, from which on one codebook of many centroids costs too many bytes
MAX_ROUNDS = 20  # of correcting for the header, whose length depends on what is chosen
LEFT_DENSE = "the size target leaves room for it"

FileSize = Callable[[Mapping[str, Choice]], int]  # the bytes of the file that these choices give


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One codec that a weight may get: its bytes in the file, and the relative error of the outputs it is to cause."""

    codec: CodecConfig
    bytes: int
    error: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidates:
    """What weights that no rule names may get besides staying dense."""

    codecs: tuple[type[CodecConfig], ...]
    max_codebooks: int  # the most additive codebooks of a weight


def candidate_blocks(recipe: Recipe, graph: Graph) -> dict[str, tuple[Block, ...]]:
    """Return the shapes of blocks that each weight may get, by the weight's name; one where a rule fixes it.

    Raises:
        ConfigError: as `Recipe.choose`.
    """
    ruled = recipe.choose(graph)
    result: dict[str, tuple[Block, ...]] = {}
    for name, (weight, is_ruled) in _weights(recipe, graph).items():
        if is_ruled:
            codec = ruled[name].codec
            result[name] = () if isinstance(codec, DenseConfig) else (codec.block,)
            continue
        _, c, kh, kw = as_conv_shape(weight.shape)
        shapes = CANDIDATE_BLOCKS.get((kh, kw), ((1, 1, 1), (1, 1, kw), (1, kh, kw)))
        result[name] = tuple(dict.fromkeys((min(channels, c), bh, bw) for channels, bh, bw in shapes))
    return result


def allocate(
    network: Network, recipe: Recipe, curves: Curves, *, target_bytes: int, candidates: Candidates, size_of: FileSize
) -> dict[str, Choice]:
    """Return the choices, by the weight's name, whose file has at most `target_bytes` and at least 1 % less.

    Of all that fit, these are predicted to change the network's outputs least.

    Args:
        network: dense.
        curves: for every shape of block in `candidate_blocks(recipe, network.graph)`.
        candidates: what is chosen from.
        size_of: exact, header and all, or a little more than the file will have.

    Raises:
        ConfigError: no such file is possible; the message names the sizes that are.
    """
    ruled = with_shared_rates(recipe.choose(network.graph), network.graph, curves)
    options = _options(network, recipe, ruled, curves, candidates)
    least, most = _extremes(network, recipe, ruled, options, size_of)
    lowest = target_bytes - int(TOLERANCE * target_bytes)
    if not (least <= target_bytes and most >= lowest):
        raise ConfigError(
            f"a file of {target_bytes:,} bytes is not possible for this network with these rules: the smallest has "
            f"{least:,} bytes, the largest {most:,}"
        )
    # Dense weights have shorter headers than coded ones.
    shortest, longest = sorted(
        (least - sum(some[0].bytes for some in options), most - sum(some[-1].bytes for some in options))
    )
    # Options that cost more bytes for no less error fill a gap where the others leave one. Where there is a choice, the
    # file stays large enough if its header then needs a step less than was expected, or grids do not use up their rate.
    close = target_bytes - int(UNUSED * target_bytes)
    sizes = close, lowest + ALIGNMENT, lowest
    for least_size, lists in product(sizes, ([_frontier(some) for some in options], options)):
        low, high = least_size - longest, target_bytes - shortest
        for _ in range(MAX_ROUNDS):
            if (picked := _least_error(lists, low, high)) is None:
                break
            choices = _choices(network, recipe, ruled, picked)
            size = size_of(choices)
            if least_size <= size <= target_bytes:
                return choices
            # The header has grown or shrunk with the choices, or bytes were rounded: move the window by as much, and at
            # least past what was picked, lest the same is picked again.
            total = sum(option.bytes for option in picked)
            if size > target_bytes:
                high = min(high - (size - target_bytes), total - 1)
            else:
                low = max(low + (least_size - size), total + 1)
    raise ConfigError(
        f"no choice of codecs gives a file of {lowest:,} to {target_bytes:,} bytes; try another size between {least:,} "
        f"and {most:,}"
    )


def possible_sizes(network: Network, recipe: Recipe, candidates: Candidates, size_of: FileSize) -> tuple[int, int]:
    """Return the bytes of the smallest and of the largest file that `allocate` can choose; nothing is measured."""
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
    ruled = recipe.choose(network.graph)
    return _extremes(network, recipe, ruled, _options(network, recipe, ruled, curves, candidates), size_of)


def predicted_errors(choices: Mapping[str, Choice], curves: Curves) -> dict[str, float]:
    """Return the relative squared error of the network's outputs that each weight is to cause, by the weight's name."""
    codecs = {name: choice.codec for name, choice in choices.items()}
    return {
        name: 0.0 if isinstance(codec, DenseConfig) else curves[name, codec.block].error(codec)
        for name, codec in codecs.items()
    }


def drafted(network: Network, choices: Mapping[str, Choice]) -> Network:
    """Return `network` with these choices and of the size it will have; its codes and codebooks are zeros."""
    tensors = dict(network.tensors)
    nodes = []
    for node in network.graph.nodes:
        if (weight := node.weight) is not None:
            config = choices[weight.name].codec
            if not isinstance(config, DenseConfig) and tensors.pop(weight.tensor("weight"), None) is not None:
                kept = _blank(network, weight, config)
                tensors |= {weight.tensor(role): tensor for role, tensor in kept.items()}
            node = replace(node, weight=replace(weight, codec=config))
        nodes.append(node)
    return Network(graph=replace(network.graph, nodes=tuple(nodes)), tensors=tensors)


def _blank(network: Network, weight: Weight, config: CodedConfig) -> dict[str, NDArray[Any]]:
    """Return the tensors of a weight, by role, of the size that they will have; all their numbers are zeros."""
    if isinstance(config, ScalarConfig):
        none = np.zeros(weight.shape[0])
        return scalar.tensors_of(np.zeros(weight.shape, np.uint8), none, none, config)
    if isinstance(config, SparseConfig):
        packed = {role: np.zeros(size, np.uint8) for role, size in config.planned_bytes(weight.shape).items()}
        return {**packed, "step": np.zeros(weight.shape[0], np.float32), "zero": np.zeros(weight.shape[0], np.uint8)}
    codes = np.zeros(
        packed_bytes(config.codebooks * block_count(weight.shape, config.block), config.code_bits), np.uint8
    )
    codebook = np.zeros((config.codebooks, config.centroids, config.dim), np.float32)
    if config.codebook_dtype == "float":
        return {"codes": codes, "codebook": codebook.astype(f"<f{_float_bytes(network, weight)}")}
    return {"codes": codes, **codebook_tensors(codebook, config)}


def _weights(recipe: Recipe, graph: Graph) -> dict[str, tuple[Weight, bool]]:
    """Return each weight by name, and whether a rule decides its codec."""
    result: dict[str, tuple[Weight, bool]] = {}
    for node, weight in graph.weighted():
        _, before = result.get(weight.name, (weight, False))
        result[weight.name] = weight, before or any(rule.matches(node.name) for rule in recipe.rules)
    return result


def _options(
    network: Network, recipe: Recipe, ruled: Mapping[str, Choice], curves: Curves, candidates: Candidates
) -> list[list[Option]]:
    """Return the options of each weight, the smallest first; of one that a rule names, what is chosen in `ruled`."""
    return [
        [_ruled_option(network, weight, ruled[name].codec, curves)]
        if is_ruled
        else _free_options(network, weight, curves, candidates)
        for name, (weight, is_ruled) in _weights(recipe, network.graph).items()
    ]


def _choices(
    network: Network, recipe: Recipe, ruled: Mapping[str, Choice], picked: Sequence[Option]
) -> dict[str, Choice]:
    """Return the choices that one option for each weight stands for."""
    choices = {}
    for (name, (_, is_ruled)), option in zip(_weights(recipe, network.graph).items(), picked, strict=True):
        reason = LEFT_DENSE if isinstance(option.codec, DenseConfig) else ""
        choices[name] = ruled[name] if is_ruled else Choice(codec=option.codec, reason=reason)
    return choices


def _extremes(
    network: Network,
    recipe: Recipe,
    ruled: Mapping[str, Choice],
    options: Sequence[Sequence[Option]],
    size_of: FileSize,
) -> tuple[int, int]:
    """Return the bytes of the smallest and of the largest file."""
    least, most = (size_of(_choices(network, recipe, ruled, [some[end] for some in options])) for end in (0, -1))
    return least, most


def _free_options(network: Network, weight: Weight, curves: Curves, candidates: Candidates) -> list[Option]:
    """Return all options of a weight that no rule names, the smallest first."""
    options = [_dense_option(network, weight)]
    numbers = _Numbers.of(network, weight)
    configs: list[CodedConfig] = []
    for name, block in curves:
        if name == weight.name and ProductConfig in candidates.codecs:
            configs += _product_configs(weight, block, candidates.max_codebooks)
    if ScalarConfig in candidates.codecs:
        configs += [c for c in map(at_rate, CANDIDATE_RATES) if c.coded_bytes(weight.shape) >= LEAST_RATED_BYTES]
    if SparseConfig in candidates.codecs:
        settings = product(CANDIDATE_SHARES, CANDIDATE_BITS, RUNS)
        sparse = [SparseConfig(kept=kept, bits=bits, run=run) for kept, bits, run in settings]
        configs += [config for config in sparse if not config.misfit(weight.shape)]
    options += [_coded_option(weight, config, curves[weight.name, config.block], numbers) for config in configs]
    return sorted(options, key=lambda option: (option.bytes, option.error))


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


def _ruled_option(network: Network, weight: Weight, codec: CodecConfig, curves: Curves) -> Option:
    if isinstance(codec, DenseConfig):
        return _dense_option(network, weight)
    return _coded_option(weight, codec, curves[weight.name, codec.block], _Numbers.of(network, weight))


def _dense_option(network: Network, weight: Weight) -> Option:
    return Option(codec=DenseConfig(), bytes=network.tensors[weight.tensor("weight")].nbytes, error=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Numbers:
    """What the size of a weight's numbers means for its codebooks."""

    float_bytes: int  # of a number that is no integer
    int8_error: float  # relative squared error of the weight, from rounding its centroids to int8

    @classmethod
    def of(cls, network: Network, weight: Weight) -> _Numbers:
        numbers = network.tensors[weight.tensor("weight")]
        mean_square = float(np.square(numbers, dtype=np.float64).mean())
        step = _largest(numbers) / INT8_MAX
        error = step**2 / 12 / mean_square if mean_square > 0 else 0.0
        return cls(float_bytes=_float_bytes(network, weight), int8_error=error)


def _float_bytes(network: Network, weight: Weight) -> int:
    """Return the bytes of a number in a float codebook: fp32 where fp16 cannot hold numbers like the weight's."""
    numbers = network.tensors[weight.tensor("weight")].reshape(-1)
    some = numbers[:: -(-len(numbers) // SAMPLED_WEIGHTS)]
    like = np.concatenate([some, [_largest(numbers)]]).astype(np.float32)[None, None]
    return int(codebook_tensors(like, ProductConfig(block=(1, 1, 1), centroids=2))["codebook"].itemsize)


def _largest(numbers: NDArray[np.floating]) -> float:
    """Return how large the numbers of centroids may become, for a weight's."""
    return float(HEADROOM * np.float32(max(numbers.max(), -numbers.min())))


def _coded_option(weight: Weight, codec: CodedConfig, curve: Curve, numbers: _Numbers) -> Option:
    size = codec.coded_bytes(weight.shape)
    if isinstance(codec, ScalarConfig):
        return Option(codec=codec, bytes=size + GRID_OVERHEAD, error=curve.error(codec))
    if isinstance(codec, SparseConfig):
        return Option(codec=codec, bytes=size + MASK_OVERHEAD, error=curve.error(codec))
    if codec.codebook_dtype == "int8":
        return Option(codec=codec, bytes=size + INT8_OVERHEAD, error=curve.error(codec, numbers.int8_error))
    wider = (numbers.float_bytes - CODEBOOK_BYTES["float"]) * codec.codebooks * codec.centroids * codec.dim
    return Option(codec=codec, bytes=size + wider, error=curve.error(codec))


def _frontier(options: Sequence[Option]) -> list[Option]:
    """Return the options that have less error than all smaller ones."""
    kept: list[Option] = []
    for option in options:
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept


def _least_error(lists: Sequence[Sequence[Option]], low: int, high: int) -> list[Option] | None:
    """Return one option of each list: of all sums of bytes from `low` to `high`, those with the least sum of errors.

    Bytes are rounded down to steps, so a sum may be a little too large; None where no sum of steps is in the range.
    """
    least = sum(options[0].bytes for options in lists)
    step = max(1, (high - least) // RESOLUTION)
    count = max(0, (high - least) // step)
    best = np.full(count + 1, np.inf)  # by steps above the smallest file
    best[0] = 0.0
    picks = np.zeros((len(lists), count + 1), np.int32)
    costs = [[(option.bytes - options[0].bytes) // step for option in options] for options in lists]
    for row, (options, steps) in enumerate(zip(lists, costs, strict=True)):
        new = np.full_like(best, np.inf)
        for index, (option, cost) in enumerate(zip(options, steps, strict=True)):
            if cost > count:
                break
            candidate: NDArray[np.float64] = best[: count + 1 - cost] + option.error
            better = candidate < new[cost:]
            new[cost:][better] = candidate[better]
            picks[row, cost:][better] = index
        best = new
    first = max(0, (low - least) // step)
    if first > count or not np.isfinite(best[first:]).any():
        return None
    at = first + int(best[first:].argmin())
    picked = []
    for row in range(len(lists) - 1, -1, -1):
        index = int(picks[row, at])
        picked.append(lists[row][index])
        at -= costs[row][index]
    return picked[::-1]
