"""The order of channels that makes blocks easiest to code: the one with the least volume of the blocks' covariance.

Martinez et al., "Permute, Quantize, and Fine-tune", CVPR 2021: the error that k-means leaves on d-dimensional blocks
grows with the d-th root of the determinant of their covariance Σ. The determinant is at most the product of Σ's
diagonal, the variances of the d places in a block; that product is least where the channels of large variance fill one
place, those that follow fill the next one, and so on. From there, swaps of two channels are tried at random, and kept
where the determinants fall. Several layers may read what moves together: `log det Σ / d` is summed over all of them.

Dimensions: C channels read by a layer, in G groups · c channels and e kernel positions of a block, d = c · e · R rows
of a channel: outputs of a group and kernel tiles · U units, each of the blocks of c neighbouring channels · S sets of
channels that move together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.choose import Choice
from pyquant.codecs import ProductConfig
from pyquant.codecs.product import as_conv_shape
from pyquant.console import Progress
from pyquant.graph import Network, Weight
from pyquant.learn.permute import Channels, Indices, channels_of, places, reordered
from pyquant.learn.workers import Workers

if TYPE_CHECKING:
    from pyquant.learn.norms import Norm

SWAPS = 50  # tried for each set of channels
PAIRS_AT_ONCE = 64
NUMBERS_AT_ONCE = 1 << 22
ENOUGH = 1e-9  # by which a swap must lower the sum: more than rounding
# Of Σ's mean diagonal, added to the diagonal: a channel that is always 0 must not make every order perfect.
FLOOR = 1e-4


def in_best_order(
    network: Network,
    norms: Mapping[str, Norm],
    choices: Mapping[str, Choice],
    *,
    seed: int,
    workers: Workers,
    progress: Progress,
) -> tuple[Network, Mapping[str, Norm]]:
    """Return a network that computes the same with its channels in the best order, and its batch norms likewise.

    Args:
        network: dense.
        norms: by module path.
        choices: the codecs by the weight's name.
    """
    channels = channels_of(network)
    order = best_order(network, choices, channels, seed=seed, workers=workers, progress=progress)
    return reordered(network, norms, channels, order)


def best_order(
    network: Network,
    choices: Mapping[str, Choice],
    channels: Channels,
    *,
    seed: int,
    workers: Workers,
    progress: Progress,
) -> Indices:
    """Return, for each set of channels `[S]`, the set that takes its place, as `permute.reordered` wants it.

    Args:
        network: dense.
        choices: the codecs by the weight's name; those whose blocks have one channel have no say.
    """
    coded: dict[str, tuple[Weight, ProductConfig]] = {}
    for _, weight in network.graph.weighted():
        config = choices[weight.name].codec
        if isinstance(config, ProductConfig) and config.block[0] > 1 and weight.shape[1] > 1:
            coded[weight.name] = (weight, config)

    def searched(part: tuple[list[Indices], list[str]]) -> tuple[list[Indices], Indices]:
        exchangeable, names = part
        readers = []
        for name in names:
            weight, config = coded[name]
            readers.append(_Reader(network.weight(weight), config, channels.inputs[name]))
        return exchangeable, _Search(readers, channels.count).run(exchangeable, seed)

    def add(order: Indices | None, found: tuple[list[Indices], Indices]) -> Indices:
        result = np.arange(channels.count) if order is None else order
        for sets in found[0]:
            result[sets] = found[1][sets]
            done.append(len(sets))
        progress("ordering channels", sum(done), total)
        return result

    parts = _independent(channels, {name: channels.inputs[name] for name in coded})
    if not parts:
        return np.arange(channels.count)
    done: list[int] = []
    total = sum(len(sets) for exchangeable, _ in parts for sets in exchangeable)
    progress("ordering channels", 0, total)
    return workers.fold(searched, parts, add)


def _independent(channels: Channels, inputs: Mapping[str, Indices]) -> list[tuple[list[Indices], list[str]]]:
    """Return the exchangeable channels and the weights that read them, in parts that have nothing to do with another.

    Several kinds of channels that one weight reads, after a concatenation, share blocks.
    """
    parts: list[tuple[list[Indices], list[str]]] = []
    for sets in channels.exchangeable:
        names = [name for name, read in inputs.items() if np.isin(read, sets).any()]
        if not names:
            continue
        exchangeable = [sets]
        for part in [part for part in parts if set(part[1]) & set(names)]:
            parts.remove(part)
            exchangeable = part[0] + exchangeable
            names = part[1] + [name for name in names if name not in part[1]]
        parts.append((exchangeable, names))
    return parts


class _Reader:
    """A weight whose blocks the order changes, and the second moments of its blocks in the order so far."""

    def __init__(self, weight: NDArray[np.float32], config: ProductConfig, sets: Indices) -> None:
        outputs, width, kh, kw = as_conv_shape(weight.shape)
        c, bh, bw = config.block
        tall, wide = -(-kh // bh), -(-kw // bw)
        groups = len(sets) // width
        # Squares of weights of any size must neither overflow nor vanish.
        scaled = weight.reshape(outputs, width, kh, kw) / (float(np.abs(weight).max()) or 1.0)
        scaled /= float(np.sqrt(np.square(scaled).mean())) or 1.0
        padded = np.pad(scaled, [(0, 0), (0, 0), (0, tall * bh - kh), (0, wide * bw - kw)])
        cut = padded.reshape(groups, outputs // groups, width, tall, bh, wide, bw).transpose(0, 2, 4, 6, 1, 3, 5)
        rows = torch.from_numpy(np.ascontiguousarray(cut).reshape(len(sets), bh * bw, -1))
        self.sets = sets
        # One more channel, of zeros, fills units that have fewer than c.
        self._rows = torch.cat([rows, torch.zeros(1, *rows.shape[1:])])  # [C + 1, e, R]
        per_group = -(-width // c)
        units = np.full((groups, per_group * c), len(sets), np.int64)
        units[:, :width] = np.arange(len(sets)).reshape(groups, width)
        self._units = units.reshape(-1, c)  # [U, c], places
        self._unit_of = np.arange(len(sets)) // width * per_group + np.arange(len(sets)) % width // c
        self.size = weight.size
        self._count = len(self._units) * rows.shape[2]
        self._of_set = {int(which): np.flatnonzero(sets == which) for which in np.unique(sets)}
        self.arrange(np.arange(int(sets.max()) + 1))

    def has(self, which: int) -> bool:
        """Say whether a set has channels among those that are read."""
        return which in self._of_set

    def energy(self, which: int) -> float:
        """Return the mean square of the weights that a set of channels meets."""
        rows: Tensor = self._rows[torch.from_numpy(self._now[self._of_set[which]])]
        return float(rows.square().mean())

    def first_place(self, which: int) -> int:
        """Return the channel of a block in which the first channel of a set is."""
        unit_and_place = np.argwhere(self._units == self._of_set[which][0])
        return int(unit_and_place[0, 1])

    def arrange(self, source: Indices) -> None:
        """Put the channels in the order that `source` says, `[S]` as of the beginning."""
        self._now = np.append(places(self.sets, source), len(self.sets))  # [C + 1], the channel in each place
        self._squares, self._sums = self._moments(self._now[self._units])
        self._total_squares, self._total_sums = self._squares.sum(0), self._sums.sum(0)
        self.value = float(self._value(self._total_squares, self._total_sums))

    def pairs_at_once(self, which: int) -> int:
        """Return how many swaps with a set `try_swaps` can look at in the memory it may use."""
        size, rows = len(self._total_sums), self._rows.shape[2]
        return max(1, NUMBERS_AT_ONCE // (2 * len(self._of_set[which]) * size * (size + rows)))

    def try_swaps(self, pairs: Indices) -> NDArray[np.float64]:
        """Return, for pairs of sets `[P, 2]`, how the value would change if the channels of the two changed places."""
        at_a, at_b = (np.stack([self._of_set[which] for which in sets]) for sets in pairs.T.tolist())  # [P, m]
        units = np.sort(self._unit_of[np.concatenate([at_a, at_b], axis=1)], axis=1)  # [P, 2 m]
        twice = np.zeros(units.shape, bool)
        twice[:, 1:] = units[:, 1:] == units[:, :-1]
        before = self._now[self._units[units]]  # [P, 2 m, c]
        after = before.copy()
        for a, b in zip(self._now[at_a].T[:, :, None, None], self._now[at_b].T[:, :, None, None], strict=True):
            after = np.where(before == a, b, np.where(before == b, a, after))
        squares, sums = self._moments(after.reshape(-1, after.shape[2]))
        once = torch.from_numpy(~twice).double()
        index = torch.from_numpy(units)
        change = squares.reshape(*units.shape, *squares.shape[1:]) - self._squares[index]
        total_squares = self._total_squares + torch.einsum("pu,puij->pij", once, change)
        change = sums.reshape(*units.shape, -1) - self._sums[index]
        total_sums = self._total_sums + torch.einsum("pu,pui->pi", once, change)
        values: NDArray[np.float64] = self._value(total_squares, total_sums).numpy()
        return values - self.value

    def swap(self, a: int, b: int) -> None:
        """Let the channels of two sets change places."""
        at_a, at_b = self._of_set[a], self._of_set[b]
        self._now[at_a], self._now[at_b] = self._now[at_b], self._now[at_a]
        units = np.unique(self._unit_of[np.concatenate([at_a, at_b])])
        index = torch.from_numpy(units)
        squares, sums = self._moments(self._now[self._units[units]])
        self._total_squares += (squares - self._squares[index]).sum(0)
        self._total_sums += (sums - self._sums[index]).sum(0)
        self._squares[index], self._sums[index] = squares, sums
        self.value = float(self._value(self._total_squares, self._total_sums))

    def _moments(self, channels: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return the sums of squares `[U, d, d]` and the sums `[U, d]` of the blocks of units of channels `[U, c]`."""
        blocks = self._rows[torch.from_numpy(channels.reshape(-1))].reshape(len(channels), -1, self._rows.shape[2])
        return torch.bmm(blocks, blocks.transpose(1, 2)).double(), blocks.sum(2).double()

    def _value(self, squares: Tensor, sums: Tensor) -> Tensor:
        """Return log det Σ / d of all blocks, for sums over them `[.., d, d]` and `[.., d]`."""
        mean = sums / self._count
        covariance = squares / self._count - mean[..., :, None] * mean[..., None, :]
        floor = FLOOR * torch.eye(sums.shape[-1], dtype=torch.float64)
        result: Tensor = torch.linalg.slogdet(covariance + floor).logabsdet / sums.shape[-1]
        return result


class _Search:
    """The search for the order of channels that some weights read."""

    def __init__(self, readers: list[_Reader], count: int) -> None:
        self._readers = readers
        self._source = np.arange(count)

    def run(self, exchangeable: Sequence[Indices], seed: int) -> Indices:
        """Return, for each set of channels `[S]`, the set that takes its place."""
        for sets in exchangeable:
            self._fill(sets)
        for sets in exchangeable:
            # A seed for each, so that it does not depend on which channels are searched first.
            self._swap(sets, np.random.default_rng(crc32(f"{seed} {sets[0]}".encode())))
        return self._source

    def _fill(self, sets: Indices) -> None:
        """Let the channels of large variance fill the first place in the blocks, and so on, where that is better."""
        readers = [reader for reader in self._readers if reader.has(int(sets[0]))]
        energies = np.array([[reader.energy(which) for which in sets.tolist()] for reader in readers])
        tiny = np.finfo(np.float64).tiny
        by_energy = np.argsort(-np.log(energies + tiny).mean(axis=0), kind="stable")
        # Where layers have blocks of different sizes, places are those in the blocks of the layer with most weights.
        largest = max(readers, key=lambda reader: reader.size)
        by_place = np.argsort([largest.first_place(which) for which in sets.tolist()], kind="stable")
        source = self._source.copy()
        source[sets[by_place]] = sets[by_energy]
        before = sum(reader.value for reader in readers)
        for reader in readers:
            reader.arrange(source)
        if sum(reader.value for reader in readers) < before:
            self._source = source
        else:
            for reader in readers:
                reader.arrange(self._source)

    def _swap(self, sets: Indices, rng: np.random.Generator) -> None:
        """Try swaps at random, many at once, and keep those that still lower the sum when their turn comes."""
        readers = [reader for reader in self._readers if reader.has(int(sets[0]))]
        pairs = sets[rng.integers(len(sets), size=(SWAPS * len(sets), 2))]
        step = min(PAIRS_AT_ONCE, *(reader.pairs_at_once(int(sets[0])) for reader in readers))
        for start in range(0, len(pairs), step):
            batch = pairs[start : start + step]
            changes = _changes(readers, batch)
            order = np.argsort(changes, kind="stable")
            better = batch[order[changes[order] < -ENOUGH]]
            for count, pair in enumerate(better):
                # The first is as good as it was found to be; those after it may not be, any more.
                if count == 0 or _changes(readers, pair[None])[0] < -ENOUGH:
                    for reader in readers:
                        reader.swap(*pair.tolist())
                    self._source[pair] = self._source[pair[::-1]]


def _changes(readers: Sequence[_Reader], pairs: Indices) -> NDArray[np.float64]:
    """Return how swaps of pairs of sets `[P, 2]` would change the sum of the readers' values."""
    result = np.zeros(len(pairs))
    for reader in readers:
        result += reader.try_swaps(pairs)
    return result
