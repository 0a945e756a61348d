"""Targets: which codec each layer gets so that a file has a given size, or few bit operations, for the least error.

Every weight has a list of candidate codecs (`pyquant.candidates`) with their bytes, their bit operations and the error
that they are predicted to cause; a dynamic programme over bytes picks one for each, so that a network may mix codecs.
Rules of the recipe stay as they are. Sizes are those of tensors at fixed length, and of grids at a rate and
of masks the most that they may take, as the writer keeps them in a file that was made for a size (`pyquant.file`).

Where bit operations are bounded and no size is given, the programme is over bit operations. Where both are, they have a
price that is added to errors, the least at which they keep to their bound (a Lagrangian).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.candidates import (
    Candidates,
    Option,
    float_bytes,
    options_of,
    ruled_weights,
    unmeasured_options,
)
from pyquant.choose import Choice, Recipe, block_count
from pyquant.codecs import CodedConfig, DenseConfig, ScalarConfig, SparseConfig, codec_name, scalar
from pyquant.codecs.packing import packed_bytes
from pyquant.codecs.product import codebook_tensors
from pyquant.container import ALIGNMENT
from pyquant.errors import ConfigError
from pyquant.graph import Network, Weight
from pyquant.rates import with_shared_rates
from pyquant.sensitivity import LEAST_FACTOR, Curves

TOLERANCE = 0.01  # of the target, how far below it the file may stay
UNUSED = 0.003  # of it, as far as that is possible
RESOLUTION = 16384  # steps between the smallest file and the target that the dynamic programme tells apart
MAX_ROUNDS = 20  # of correcting for the header, whose length depends on what is chosen
# Of bit operations: how many are tried, and how they grow until one is high enough; then how close they come.
MAX_PRICES, DEARER, CLOSE_PRICES = 40, 4.0, 1.05
LEFT_DENSE = "the target has room for it in fp32"

FileSize = Callable[[Mapping[str, Choice]], int]  # the bytes of the file that these choices give


def allocate(
    network: Network,
    recipe: Recipe,
    curves: Curves,
    *,
    target_bytes: int | None,
    candidates: Candidates,
    size_of: FileSize,
    max_operations: int | None = None,
) -> dict[str, Choice]:
    """Return the choices, by the weight's name, that keep to their bounds and are predicted to change outputs least.

    Args:
        network: dense.
        curves: for every shape of block in `candidate_blocks(recipe, network.graph)`.
        target_bytes: the file has at most so many, and at least 1 % less; None: `max_operations` alone counts.
        candidates: what is chosen from.
        size_of: exact, header and all, or a little more than the file will have.
        max_operations: the most bit operations for one input, as `pyquant.report.bit_operations` counts them.

    Raises:
        ConfigError: there are no such choices; the message names the sizes, or the bit operations, that are possible.
    """
    ruled = with_shared_rates(recipe.choose(network.graph), network.graph, curves)
    options = options_of(network, recipe, ruled, curves, candidates)
    allocation = _Allocation(network=network, recipe=recipe, ruled=ruled, size_of=size_of)
    if target_bytes is None:
        assert max_operations is not None
        picked = _within_operations(options, max_operations)
    elif max_operations is None:
        picked = allocation.sized(options, target_bytes)
    else:
        picked = _at_least_price(options, max_operations, partial(allocation.sized, target_bytes=target_bytes))
    return allocation.choices(picked)


def possible_sizes(network: Network, recipe: Recipe, candidates: Candidates, size_of: FileSize) -> tuple[int, int]:
    """Return the bytes of the smallest and of the largest file that `allocate` can choose; nothing is measured."""
    ruled = recipe.choose(network.graph)
    allocation = _Allocation(network=network, recipe=recipe, ruled=ruled, size_of=size_of)
    return allocation.extremes(unmeasured_options(network, recipe, candidates))


def check_operations(network: Network, recipe: Recipe, candidates: Candidates, most: int) -> None:
    """Raise ConfigError where nothing that `allocate` can choose has so few bit operations; nothing is measured."""
    _within_operations(unmeasured_options(network, recipe, candidates), most)


def predicted_errors(choices: Mapping[str, Choice], curves: Curves) -> dict[str, float]:
    """Return the relative squared error of the network's outputs that each weight is to cause, by the weight's name."""
    codecs = {name: choice.codec for name, choice in choices.items()}
    return {
        name: 0.0 if isinstance(codec, DenseConfig) else curves[name, codec.block].error(codec)
        for name, codec in codecs.items()
    }


def errors_by_codec(
    network: Network, recipe: Recipe, curves: Curves, candidates: Candidates, choices: Mapping[str, Choice]
) -> dict[str, dict[str, float]]:
    """Return what each codec would cause at best in no more bytes than the chosen one takes, by the weight's name.

    That is the relative squared error of the network's outputs, by the codec's name; a codec that has nothing so small
    is left out. Of a weight that a rule names there is one.
    """
    result: dict[str, dict[str, float]] = {}
    lists = options_of(network, recipe, choices, curves, candidates)
    for name, options in zip(ruled_weights(recipe, network.graph), lists, strict=True):
        most = next(option.bytes for option in options if option.codec == choices[name].codec)
        least: dict[str, float] = {}
        for option in options:
            codec = codec_name(type(option.codec))
            if option.bytes <= most:
                least[codec] = min(option.error, least.get(codec, option.error))
        result[name] = least
    return result


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
        packed = {role: np.zeros(size, np.uint8) for role, size in config.packed_bytes(weight.shape).items()}
        return {**packed, "step": np.zeros(weight.shape[0], np.float32), "zero": np.zeros(weight.shape[0], np.uint8)}
    codes = np.zeros(
        packed_bytes(config.codebooks * block_count(weight.shape, config.block), config.code_bits), np.uint8
    )
    codebook = np.zeros((config.codebooks, config.centroids, config.dim), np.float32)
    if config.codebook_dtype == "float":
        return {"codes": codes, "codebook": codebook.astype(f"<f{float_bytes(network, weight)}")}
    return {"codes": codes, **codebook_tensors(codebook, config)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Allocation:
    """One network whose weights get options, a list of them for each weight; rules decide for some."""

    network: Network
    recipe: Recipe
    ruled: Mapping[str, Choice]  # what the recipe chooses, by the weight's name
    size_of: FileSize

    def choices(self, picked: Sequence[Option]) -> dict[str, Choice]:
        """Return the choices that one option for each weight stands for."""
        choices = {}
        weights = ruled_weights(self.recipe, self.network.graph)
        for (name, (_, is_ruled)), option in zip(weights.items(), picked, strict=True):
            reason = LEFT_DENSE if isinstance(option.codec, DenseConfig) else ""
            choices[name] = self.ruled[name] if is_ruled else Choice(codec=option.codec, reason=reason)
        return choices

    def extremes(self, options: Sequence[Sequence[Option]]) -> tuple[int, int]:
        """Return the bytes of the smallest and of the largest file."""
        least, most = (self.size_of(self.choices([some[end] for some in options])) for end in (0, -1))
        return least, most

    def sized(self, options: Sequence[Sequence[Option]], target_bytes: int) -> list[Option]:
        """Return one option of each list, the smallest first there, for a file of this size and the least error."""
        least, most = self.extremes(options)
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
        # Options that cost more bytes for no less error fill a gap where the others leave one. Where there is a choice,
        # the file stays large enough if its header then needs a step less than was expected, or grids do not use up
        # their rate.
        close = target_bytes - int(UNUSED * target_bytes)
        sizes = close, lowest + ALIGNMENT, lowest
        for least_size, lists in product(sizes, ([_frontier(some) for some in options], options)):
            low, high = least_size - longest, target_bytes - shortest
            for _ in range(MAX_ROUNDS):
                if (picked := _least_error(lists, low, high, _bytes_of)) is None:
                    break
                choices = self.choices(picked)
                size = self.size_of(choices)
                if least_size <= size <= target_bytes:
                    return picked
                # The header has grown or shrunk with the choices, or bytes were rounded: move the window by as much,
                # and at least a step past what was picked, lest the same is picked again.
                total, step = sum(option.bytes for option in picked), high // RESOLUTION + 1
                if size > target_bytes:
                    high = min(high - max(size - target_bytes, step), total - step)
                else:
                    low = max(low + max(least_size - size, step), total + step)
        raise ConfigError(
            f"no choice of codecs gives a file of {lowest:,} to {target_bytes:,} bytes; try another size between "
            f"{least:,} and {most:,}"
        )


def _frontier(options: Sequence[Option]) -> list[Option]:
    """Return the options that have less error than all smaller ones."""
    kept: list[Option] = []
    for option in options:
        if not kept or option.error < kept[-1].error:
            kept.append(option)
    return kept


def _within_operations(options: Sequence[Sequence[Option]], most: int) -> list[Option]:
    """Return one option of each list that together have at most so many bit operations, and the least sum of errors.

    Raises:
        ConfigError: all have more.
    """
    lists = [sorted(some, key=lambda option: (option.operations, option.error, option.bytes)) for some in options]
    least = sum(some[0].operations for some in lists)
    if most < least:
        raise ConfigError(
            f"{most:,} bit operations for one input are not possible for this network with these rules: the least are "
            f"{least:,}"
        )
    high = most
    while least <= high:
        picked = _least_error(lists, 0, high, _operations_of)
        assert picked is not None
        if (excess := _operations(picked) - most) <= 0:
            return picked
        high -= max(excess, high // RESOLUTION + 1)  # at least a step, lest the same is picked again
    return [some[0] for some in lists]


def _at_least_price(
    options: Sequence[Sequence[Option]], most: int, sized: Callable[[Sequence[Sequence[Option]]], list[Option]]
) -> list[Option]:
    """Return what `sized` picks where bit operations have a price, the least at which it picks at most so many.

    Raises:
        ConfigError: it picks more at any price.
    """
    picked = sized(options)
    if _operations(picked) <= most:
        return picked
    low, high, best = 0.0, 0.0, None
    price = max(sum(option.error for option in picked), LEAST_FACTOR) / most
    for _ in range(MAX_PRICES):
        priced = [[replace(o, error=o.error + price * o.operations) for o in some] for some in options]
        picked = sized([sorted(some, key=lambda option: (option.bytes, option.error)) for some in priced])
        if _operations(picked) <= most:
            best, high = picked, price
        else:
            low = price
        if best is not None and low > 0 and high < CLOSE_PRICES * low:
            break
        price = DEARER * price if best is None else price / DEARER if low == 0 else sqrt(low * high)
    if best is None:
        raise ConfigError(
            f"no choice of codecs gives a file of this size with at most {most:,} bit operations; with these rules the "
            f"fewest have {_operations(picked):,}"
        )
    return best


def _operations(picked: Iterable[Option]) -> int:
    return sum(option.operations for option in picked)


def _bytes_of(option: Option) -> int:
    return option.bytes


def _operations_of(option: Option) -> int:
    return option.operations


def _least_error(
    lists: Sequence[Sequence[Option]], low: int, high: int, cost_of: Callable[[Option], int]
) -> list[Option] | None:
    """Return one option of each list: of all sums of costs from `low` to `high`, those with the least sum of errors.

    Costs are rounded down to steps, so a sum may be a little too large; None where no sum of steps is in the range.
    Each list begins with an option of the least cost.
    """
    least = sum(cost_of(options[0]) for options in lists)
    step = max(1, (high - least) // RESOLUTION)
    count = max(0, (high - least) // step)
    best = np.full(count + 1, np.inf)  # by steps above the least cost
    best[0] = 0.0
    picks = np.zeros((len(lists), count + 1), np.int32)
    costs = [[(cost_of(option) - cost_of(options[0])) // step for option in options] for options in lists]
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
