"""The networks that methods are compared on, with their pictures, and how many of those a network gets right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from train_second import CLASSES, SIDE, bottlenecks

from pyquant import console, demo
from pyquant.classes import ClassName
from pyquant.errors import InputError
from pyquant.models import build_network, read_weights
from pyquant.pictures import find_pictures, load_batch, match_folders, read_classes
from pyquant.preprocessing import Preprocessing

BATCH = 50  # pictures


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A network and its pictures, in class folders."""

    build: Callable[[], nn.Module]
    calibration: Path  # its labels are not looked at
    validation: Path
    classes: tuple[ClassName, ...]
    preprocessing: Preprocessing

    def answers(self, network: Callable[[NDArray[np.float32]], object]) -> Answers:
        """Return what a network says of the validation pictures, in the order of their names."""
        refs = find_pictures(self.validation)
        index = match_folders((ref.folder for ref in refs), self.classes, len(self.classes))
        labels = np.array([index[ref.folder] for ref in refs])
        scores: list[Any] = [
            network(load_batch(refs[start : start + BATCH], self.preprocessing))
            for start in console.track(range(0, len(refs), BATCH), f"evaluating in batches of {BATCH}")
        ]
        return Answers(scores=np.concatenate([np.asarray(batch) for batch in scores]), labels=labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What a network says of pictures, and what is right."""

    scores: NDArray[np.float32]  # [N, classes], logits
    labels: NDArray[np.int64]  # [N]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Which pictures get their largest score for their own class."""
        return np.asarray(self.scores.argmax(axis=1) == self.labels)

    def agreement(self, other: Answers) -> float:
        """Return for how many pictures both have the same best class, in per cent."""
        return 100.0 * float((self.scores.argmax(axis=1) == other.scores.argmax(axis=1)).mean())

    def divergence(self, dense: Answers) -> float:
        """Return the Kullback-Leibler divergence from the dense network's shares of classes, the mean in nats."""
        log_p, log_q = (torch.from_numpy(one.scores).double().log_softmax(1) for one in (dense, self))
        return float((log_p.exp() * (log_p - log_q)).sum(1).mean())


def by_torch(module: nn.Module) -> Callable[[NDArray[np.float32]], object]:
    """Return a function of arrays that PyTorch computes."""

    @torch.inference_mode()
    def run(x: NDArray[np.float32]) -> object:
        return module(torch.from_numpy(x)).numpy()

    return run


def real_subjects(data: Path, second: Path) -> dict[str, Subject]:
    """Return the networks for Tiny-ImageNet: the ResNet-18 at hand, and the second one, trained by train_second.py."""

    def resnet18() -> nn.Module:
        return build_network("resnet18", weights=data / "resnet18_tiny64.safetensors", num_classes=CLASSES)

    def second_network() -> nn.Module:
        if not second.exists():
            raise InputError(f"{second}: no such file; train the second network with train_second.py")
        module = bottlenecks()
        module.load_state_dict(read_weights(second))
        return module.eval()

    return {
        name: Subject(
            build=build,
            calibration=data / "tiny64_train20k.zip",
            validation=data / "tiny64_val5k.zip",
            classes=read_classes(data / "tiny64_classes.txt"),
            preprocessing=Preprocessing.default_for((3, SIDE, SIDE)),
        )
        for name, build in (("resnet18_tiny64", resnet18), ("second_tiny64", second_network))
    }


def smoke_subjects(folder: Path) -> dict[str, Subject]:
    """Return a small network for handwritten digits, briefly trained, as pyquant's demonstration has it."""
    size = demo.DemoSize(channels=16, epochs=10, pictures=400)
    train, test = folder / "train", folder / "test"
    demo.write_pictures(train, test, size.pictures)
    subject = Subject(
        build=cache(lambda: demo.train_network(train, size)),
        calibration=train,
        validation=test,
        classes=demo.CLASSES,
        preprocessing=demo.PREPROCESSING,
    )
    return {"digits": subject}
