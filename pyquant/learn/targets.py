"""The inputs and targets of fine-tuning: calibration pictures and the dense network's outputs, kept within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pyquant.learn.calibration import Calibration
from pyquant.torch_network import TorchNetwork

KEPT_BYTES = 1 << 30  # of pictures, and as much again of outputs; beyond it they are made anew each time

Rows = NDArray[np.int64]


class Pictures:
    """Calibration pictures by number, read when they are first asked for."""

    def __init__(self, calibration: Calibration, device: torch.device) -> None:
        self._calibration = calibration
        self._device = device
        self._kept: dict[int, Tensor] = {}
        self._room = KEPT_BYTES

    def read(self, rows: Rows, mirrored: bool) -> Tensor:
        """Return pictures `[n, C, H, W]` on the device, left and right exchanged if `mirrored`."""
        batch = torch.stack([self._read(int(row)) for row in rows])
        batch = batch.flip(3) if mirrored else batch
        return batch.to(self._device, memory_format=torch.channels_last)

    def _read(self, row: int) -> Tensor:
        if (picture := self._kept.get(row)) is None:
            picture = torch.from_numpy(self._calibration.read(slice(row, row + 1))[0])
            if (size := picture.nbytes) <= self._room:
                self._kept[row] = picture
                self._room -= size
        return picture


class Targets:
    """The outputs of the dense network for calibration pictures."""

    def __init__(self, dense: TorchNetwork) -> None:
        self._dense = dense
        self._kept: dict[tuple[int, bool], list[Tensor]] = {}
        self._room = KEPT_BYTES

    @torch.no_grad()
    def read(self, rows: Rows, mirrored: bool, pictures: Tensor) -> Sequence[Tensor]:
        """Return the outputs for `pictures`, which are those numbered `rows`, mirrored or not."""
        keys = [(int(row), mirrored) for row in rows]
        if all(key in self._kept for key in keys):
            return [torch.stack(parts) for parts in zip(*(self._kept[key] for key in keys), strict=True)]
        outputs = as_tuple(self._dense(pictures))
        size = sum(output[0].nbytes for output in outputs)
        for index, key in enumerate(keys):
            if key not in self._kept and size <= self._room:
                self._kept[key] = [output[index].clone() for output in outputs]
                self._room -= size
        return outputs


def as_tuple(outputs: Tensor | dict[str, Tensor]) -> Sequence[Tensor]:
    """Return the outputs of a network in order."""
    return tuple(outputs.values()) if isinstance(outputs, dict) else (outputs,)
