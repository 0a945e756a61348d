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
from typing import NamedTuple
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
from pyquant.learn.permute import Channels, Indices, places
from pyquant.learn.workers import Workers

SWAPS = 20  # tried for each set of channels
# Of Σ's mean diagonal, added to the diagonal: a channel that is always 0 must not make every order perfect.
FLOOR = 1e-4


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


class _Trial(NamedTuple):
    """The order of a reader's channels after a swap, what it does to some units and to all, and the value then."""

    now: Indices
    units: Tensor
    squares: Tensor
    sums: Tensor
    total_squares: Tensor
    total_sums: Tensor
    value: float


class _Reader:
    """A weight whose blocks the order changes, and the second moments of its blocks in the order so far."""

    def __init__(self, weight: NDArray[np.float32], config: ProductConfig, sets: Indices) -> None:
        outputs, width, kh, kw = as_conv_shape(weight.shape)
        c, bh, bw = config.block
        tall, wide = -(-kh // bh), -(-kw // bw)
        groups = len(sets) // width
        scaled = weight.reshape(outputs, width, kh, kw) / (float(np.sqrt(np.square(weight).mean())) or 1.0)
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
        self._squares, self._sums = self._moments(np.arange(len(self._units)))
        self._total_squares, self._total_sums = self._squares.sum(0), self._sums.sum(0)
        self.value = self._value(self._total_squares, self._total_sums)

    def try_swap(self, a: int, b: int) -> _Trial:
        """Return what would be if the channels of two sets changed places."""
        now, at_a, at_b = self._now.copy(), self._of_set[a], self._of_set[b]
        now[at_a], now[at_b] = self._now[at_b], self._now[at_a]
        units = np.unique(self._unit_of[np.concatenate([at_a, at_b])])
        before, self._now = self._now, now
        squares, sums = self._moments(units)
        self._now = before
        index = torch.from_numpy(units)
        total_squares = self._total_squares + (squares - self._squares[index]).sum(0)
        total_sums = self._total_sums + (sums - self._sums[index]).sum(0)
        value = self._value(total_squares, total_sums)
        return _Trial(now, index, squares, sums, total_squares, total_sums, value)

    def keep(self, trial: _Trial) -> None:
        """Make what was tried the order."""
        self._now, self._total_squares, self._total_sums = trial.now, trial.total_squares, trial.total_sums
        self._squares[trial.units], self._sums[trial.units] = trial.squares, trial.sums
        self.value = trial.value

    def _moments(self, units: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Return sums over the blocks of each unit of their squares `[U, d, d]` and of themselves `[U, d]`."""
        which = torch.from_numpy(self._now[self._units[units]].reshape(-1))
        blocks = self._rows[which].reshape(len(units), -1, self._rows.shape[2])  # [U, d, R]
        return torch.bmm(blocks, blocks.transpose(1, 2)).double(), blocks.sum(2).double()

    def _value(self, squares: Tensor, sums: Tensor) -> float:
        """Return log det Σ / d of all blocks."""
        size = len(sums)
        covariance = squares / self._count - torch.outer(sums, sums) / self._count**2
        floor = FLOOR * torch.eye(size, dtype=torch.float64)
        return float(torch.linalg.slogdet(covariance + floor).logabsdet) / size


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
        readers = [reader for reader in self._readers if reader.has(int(sets[0]))]
        for a, b in rng.integers(len(sets), size=(SWAPS * len(sets), 2)).tolist():
            if a == b:
                continue
            one, other = int(sets[a]), int(sets[b])
            trials = [reader.try_swap(one, other) for reader in readers]
            if sum(trial.value - reader.value for trial, reader in zip(trials, readers, strict=True)) < 0:
                for trial, reader in zip(trials, readers, strict=True):
                    reader.keep(trial)
                self._source[[one, other]] = self._source[[other, one]]
