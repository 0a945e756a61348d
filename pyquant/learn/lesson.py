"""What fine-tuning teaches: the order of the pictures, the dense network's outputs for them, and pictures held back."""

from __future__ import annotations

from math import inf, isfinite, prod

import numpy as np
import torch
from torch import Tensor

from pyquant.detector import is_detector
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration
from pyquant.learn.subject import subject_of
from pyquant.learn.targets import MixedPictures, Pictures, Rows, Targets, as_tuple
from pyquant.learn.trainable import Trainable

BATCH = 64  # pictures of a step: fewer are noisier, and weights are put together for each step
LEAST_BATCH = 16
BATCH_VALUES = 1 << 30  # of a batch, in all layers together, which are kept for the gradients; above, it is halved
HELD_BACK = 512  # pictures at most
# Of a detector: each picture has the pixels and boxes of dozens, and its targets are all of its features.
DETECTOR_BATCH, DETECTOR_HELD_BACK = 4, 32
HELD_BACK_SHARE = 8  # one picture in so many, where there are few
LEAST_PICTURES = 2 * HELD_BACK_SHARE


class Lesson:
    """The loss of a student on numbered batches of pictures, and on the pictures held back.

    A batch follows from its number and the seed alone, and so, on the CPU, do its bits: training can go on anywhere.
    """

    def __init__(
        self, dense: Network, calibration: Calibration, *, device: torch.device, seed: int, mixed: bool = False
    ) -> None:
        """Prepare batches for training; if `mixed`, of mixtures of the pictures in place of themselves."""
        self.device = device
        self.has_bfloat16 = _has_bfloat16(device)
        self._bfloat16 = self.has_bfloat16
        self._seed = seed
        order = np.random.default_rng(seed).permutation(calibration.count)
        most = DETECTOR_HELD_BACK if is_detector(dense.graph) else HELD_BACK
        held_back = min(most, calibration.count // HELD_BACK_SHARE)
        self._held_back, self._trained_on = order[:held_back], order[held_back:]
        self._batch = min(_batch(dense, calibration), len(self._trained_on))
        self._pictures = Pictures(calibration, device)
        self._shown = MixedPictures(calibration, device, self._trained_on, seed) if mixed else self._pictures
        self._subject = subject_of(dense, device)
        self._targets = self._new_targets()
        self._held_back_targets: list[tuple[Tensor, ...]] = []

    @property
    def bfloat16(self) -> bool:
        """Whether students are trained in mixed precision."""
        return self._bfloat16

    @bfloat16.setter
    def bfloat16(self, wanted: bool) -> None:
        if wanted != self._bfloat16:
            self._bfloat16 = wanted
            self._targets = self._new_targets()  # in the same precision as the student's outputs

    @property
    def new_batches(self) -> float:
        """How many batches there are until the dense network has met every picture, as it is and mirrored."""
        per_pass = len(self._trained_on) // self._batch
        return 2 * per_pass if self._targets.keeps_all else inf

    def part(self, network: Network) -> Network:
        """Return the part of a compressed network that is a student: of a detector, all but its choices."""
        return self._subject.part(network)

    def loss(self, student: Trainable, number: int) -> Tensor:
        """Return the loss on the batch of that number, with gradients."""
        rows, mirrored = self._rows(number)
        student.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self._bfloat16):
            targets = self._targets.read(rows, mirrored)
            return self._subject.loss(student, self._shown.read(rows, mirrored), targets)

    @torch.no_grad()
    def judge(self, student: Trainable) -> float:
        """Return the loss on the pictures held back, in float32, of the network as it would be written."""
        student.eval()
        chunks = [self._held_back[start:][: self._batch] for start in range(0, len(self._held_back), self._batch)]
        total = 0.0
        for index, rows in enumerate(chunks):
            x = self._pictures.read(rows, mirrored=False)
            if index == len(self._held_back_targets):
                self._held_back_targets.append(as_tuple(self._subject(x)))
            total += float(self._subject.loss(student, x, self._held_back_targets[index])) * len(rows)
        mean = total / len(self._held_back)
        return mean if isfinite(mean) else inf

    def _rows(self, number: int) -> tuple[Rows, bool]:
        """Return the pictures of a batch, and whether they are mirrored.

        The first pass takes them as they are, the second one mirrored, in the same batches: so the dense network runs
        once for each. Later passes mix both.
        """
        per_pass = len(self._trained_on) // self._batch
        current, index = divmod(number, per_pass)
        if current == 0:
            return self._trained_on[index * self._batch :][: self._batch], False
        rng = np.random.default_rng((self._seed, 1, current))
        if current == 1:
            index = rng.permutation(per_pass)[index]
            return self._trained_on[index * self._batch :][: self._batch], True
        order, mirrored = rng.permutation(self._trained_on), rng.integers(2, size=per_pass)
        return order[index * self._batch :][: self._batch], bool(mirrored[index])

    def _new_targets(self) -> Targets:
        return Targets(self._subject, self._shown, self._trained_on, self._batch)


def _batch(network: Network, calibration: Calibration) -> int:
    """Return how many pictures a step takes: fewer where they are large."""
    if is_detector(network.graph):
        return DETECTOR_BATCH
    shapes = network.graph.infer_shapes([(1, *calibration.shape)])
    values = sum(prod(shapes[name]) for node in network.graph.nodes for name in node.outputs)
    batch = BATCH
    while batch > LEAST_BATCH and batch * values > BATCH_VALUES:
        batch //= 2
    return batch


def _has_bfloat16(device: torch.device) -> bool:
    """Say whether the device multiplies bfloat16 in instructions of its own."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return any(capabilities.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
