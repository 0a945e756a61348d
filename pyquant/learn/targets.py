"""The inputs and targets of fine-tuning: calibration pictures and the dense network's outputs, kept within a budget."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from math import prod
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.graph import Graph
from pyquant.learn.calibration import Calibration

KEPT_BYTES = 1 << 30  # of pictures, and as much again of outputs; beyond it they are made anew each time

Rows = NDArray[np.int64]


class Pictures:
    """Calibration pictures by number, read when they are first asked for."""

    def __init__(self, calibration: Calibration, device: torch.device) -> None:
        self.shape = calibration.shape
        self._calibration = calibration
        self._device = device
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT_BYTES

    def read(self, rows: Rows, mirrored: bool) -> Tensor:
        """Return pictures `[n, C, H, W]` on the device, left and right exchanged if `mirrored`."""
        numbers = [int(row) for row in rows]
        known = {row: self._kept[row] for row in numbers if row in self._kept}
        known |= self._new([row for row in dict.fromkeys(numbers) if row not in known])
        batch = torch.stack([known[row] for row in numbers])
        batch = batch.flip(3) if mirrored else batch
        return batch.to(self._device, memory_format=torch.channels_last)

    def _new(self, rows: list[int]) -> dict[int, Tensor]:
        """Return pictures that are not kept, by number, and keep those that there is room for.

        They are decoded on as many threads as train: training waits for them.
        """
        if not rows:
            return {}
        with ThreadPoolExecutor(torch.get_num_threads()) as threads:
            arrays = list(threads.map(lambda row: self._calibration.read(slice(row, row + 1))[0], rows))
        pictures = {row: torch.from_numpy(array) for row, array in zip(rows, arrays, strict=True)}
        for row, picture in pictures.items():
            if (size := picture.nbytes) <= self._room:
                self._kept[row] = picture
                self._room -= size
        return pictures


class MixedPictures(Pictures):
    """Each picture with another one laid over it; which one, and how strongly, is drawn once.

    Calibration pictures are often those that the network was trained on. It knows them by heart, and is surer of them
    than of new ones, which a student that sees them as they are would learn, too. Of mixtures (Zhang et al., "mixup",
    ICLR 2018) the network's own outputs are taught, as by Beyer et al. ("Knowledge distillation: A good teacher is
    patient and consistent", CVPR 2022); that they stay the same lets these outputs be kept.
    """

    def __init__(self, calibration: Calibration, device: torch.device, among: Rows, seed: int) -> None:
        """Mix the pictures numbered `among` with each other; mirrored ones with others than those that are not."""
        super().__init__(calibration, device)
        rng = np.random.default_rng((seed, 2))
        count = calibration.count
        self._partners = np.tile(np.arange(count), (2, 1))
        self._shares = np.ones((2, count), np.float32)
        for mirrored in (0, 1):
            self._partners[mirrored, among] = rng.permutation(among)
            self._shares[mirrored, among] = rng.random(len(among), np.float32)

    def read(self, rows: Rows, mirrored: bool) -> Tensor:
        """Return mixtures `[n, C, H, W]` on the device, of pictures with left and right exchanged if `mirrored`."""
        first, second = (
            super(MixedPictures, self).read(r, mirrored) for r in (rows, self._partners[int(mirrored), rows])
        )
        share = torch.from_numpy(self._shares[int(mirrored), rows])[:, None, None, None].to(first.device)
        return torch.lerp(second, first, share)


class Shown(Protocol):
    """A dense network, or what it shows of pictures."""

    graph: Graph  # whose outputs are those of a call

    def __call__(self, images: Tensor) -> Tensor | dict[str, Tensor]:
        """Return the outputs for images `[N, C, H, W]`, all with N first."""


class Targets:
    """The outputs of the dense network for pictures in a given order.

    What is kept is computed in batches of neighbours in that order, whoever asks first: a target's last bits may depend
    on its batch, and must not depend on what was asked before.
    """

    def __init__(self, dense: Shown, pictures: Pictures, order: Rows, batch: int) -> None:
        self._dense = dense
        self._pictures = pictures
        self._order = order
        self._batch = batch
        self._place = {int(row): place for place, row in enumerate(order)}
        self._kept: dict[tuple[int, bool], Sequence[Tensor]] = {}  # by number of the batch of neighbours
        shapes = dense.graph.infer_shapes([(batch, *pictures.shape)])
        size = sum(4 * prod(shapes[name]) for name in dense.graph.outputs)
        self._room = KEPT_BYTES // (2 * size)  # in batches of neighbours: both as they are and mirrored

    @property
    def keeps_all(self) -> bool:
        """Whether there is room for the outputs of all pictures."""
        return self._room * self._batch >= len(self._order)

    @torch.no_grad()
    def read(self, rows: Rows, mirrored: bool) -> Sequence[Tensor]:
        """Return the outputs for the pictures numbered `rows`, mirrored or not."""
        places = [divmod(self._place[int(row)], self._batch) for row in rows]
        if max(batch for batch, _ in places) < self._room:
            found = [self._neighbours(batch, mirrored) for batch, _ in places]
            parts = ([output[index] for output in outputs] for outputs, (_, index) in zip(found, places, strict=True))
            return [torch.stack(part) for part in zip(*parts, strict=True)]
        return as_tuple(self._dense(self._pictures.read(rows, mirrored)))

    def _neighbours(self, batch: int, mirrored: bool) -> Sequence[Tensor]:
        if (outputs := self._kept.get((batch, mirrored))) is None:
            rows = self._order[batch * self._batch :][: self._batch]
            outputs = as_tuple(self._dense(self._pictures.read(rows, mirrored)))
            self._kept[batch, mirrored] = outputs
        return outputs


def as_tuple(outputs: Tensor | dict[str, Tensor]) -> tuple[Tensor, ...]:
    """Return the outputs of a network in order."""
    return tuple(outputs.values()) if isinstance(outputs, dict) else (outputs,)
