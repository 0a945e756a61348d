"""A demonstration on handwritten digits: train a small network, compress it, check it, measure both."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

from pyquant import console
from pyquant.bench import bench
from pyquant.classes import ClassName
from pyquant.compression import compress
from pyquant.engines import ENGINES, OWN
from pyquant.evaluate import Accuracy, evaluate, evaluate_network
from pyquant.pictures import find_pictures, load_batch
from pyquant.preprocessing import Preprocessing
from pyquant.report import Report
from pyquant.runtime import load

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
CLASSES = tuple(ClassName(folder=str(digit), name=name) for digit, name in enumerate(NAMES))
SIDE = 32  # pixels; the data set's pictures have 8
PREPROCESSING = Preprocessing(resize=SIDE, crop=(SIDE, SIDE), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
TEST_EVERY = 5  # every fifth picture is kept for testing


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSize:
    """How much the demonstration does."""

    channels: int = 64  # of the first stage
    epochs: int = 6
    batch: int = 64
    learning_rate: float = 2e-3
    pictures: int = 1797  # all there are
    peers: tuple[str, ...] = tuple(name for name in ENGINES if name != OWN)  # engines to measure beside, if installed


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoResult:
    """What the demonstration found."""

    file: Path
    test_pictures: Path
    report: Report
    dense: Accuracy
    compressed: Accuracy
    bench: dict[str, Any]


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al., "Deep Residual Learning", 2016)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the block's output for `[N, C, H, W]`."""
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + self.shortcut(x))  # type: ignore[no-any-return]


class DigitNet(nn.Sequential):
    """A residual network of three stages for pictures of 32x32 pixels."""

    def __init__(self, channels: int) -> None:
        super().__init__(
            nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            ResidualBlock(channels, channels, 1),
            ResidualBlock(channels, 2 * channels, 2),
            ResidualBlock(2 * channels, 4 * channels, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * channels, len(CLASSES)),
        )


def run_demo(folder: Path, size: DemoSize | None = None) -> DemoResult:
    """Run the demonstration; pictures, class names and the .pqmodel go to `folder`, the rest is returned.

    The data are scikit-learn's copy of the UCI handwritten digits: 1797 grey pictures of 8x8 pixels, part of that
    package, so nothing is downloaded. Every random choice is seeded.
    """
    size = size or DemoSize()
    train, test = folder / "train", folder / "test"
    count = write_pictures(train, test, size.pictures)
    (folder / "classes.txt").write_text("".join(f"{name.folder} {name.name}\n" for name in CLASSES), encoding="utf-8")
    console.note(f"wrote {count} pictures of digits to {folder}, every {TEST_EVERY}th of them for testing")

    with one_thread():
        network = train_network(train, size)
    file = folder / "digits.pqmodel"
    console.note("compressing; the training pictures are the calibration")
    with console.progress() as progress:
        report = compress(network, train, out=file, preprocessing=PREPROCESSING, classes=CLASSES, progress=progress)

    def dense_network(x: np.ndarray[Any, np.dtype[np.float32]]) -> object:
        with torch.inference_mode(), one_thread():
            return network(torch.from_numpy(x)).numpy()

    dense = evaluate_network(dense_network, test, PREPROCESSING, classes=CLASSES)
    compressed = evaluate(load(file), test)
    installed = [name for name in size.peers if all(map(find_spec, ENGINES[name].libraries))]
    measured = bench(file, against=installed, calibration=train, threads=1)
    return DemoResult(file=file, test_pictures=test, report=report, dense=dense, compressed=compressed, bench=measured)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let PyTorch use one thread: a network this small gains little from more, and loses a lot on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def write_pictures(train: Path, test: Path, count: int) -> int:
    """Write the first `count` digits as PNG pictures into class folders below `train` and `test`; return how many."""
    digits = load_digits()
    pixels = np.rint(digits.images[:count] * (255 / 16)).astype(np.uint8)  # the data have 17 levels, 0 to 16
    for index, (picture, label) in enumerate(zip(pixels, digits.target, strict=False)):
        folder = (test if index % TEST_EVERY == 0 else train) / CLASSES[label].folder
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).convert("RGB").save(folder / f"{index:04d}.png")
    return len(pixels)


def train_network(pictures: Path, size: DemoSize) -> nn.Module:
    """Return a network trained on the pictures in class folders below `pictures`: Adam, one learning-rate cycle."""
    torch.manual_seed(0)
    refs = find_pictures(pictures)
    inputs = torch.from_numpy(load_batch(refs, PREPROCESSING))
    targets = torch.tensor([int(ref.folder) for ref in refs])
    network = DigitNet(size.channels)
    optimizer = torch.optim.Adam(network.parameters())
    orders = [torch.randperm(len(refs)) for _ in range(size.epochs)]
    batches = [order[i : i + size.batch] for order in orders for i in range(0, len(refs), size.batch)]
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=size.learning_rate, total_steps=len(batches))
    for chosen in console.track(batches, "training"):
        loss = nn.functional.cross_entropy(network(inputs[chosen]), targets[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
    return network.eval()


def show_demo(result: DemoResult) -> None:
    """Print the demonstration's table, and how to go on."""
    report = result.report.to_json()
    rows = []
    for row in result.bench["rows"]:
        ours = row["engine"] == OWN
        accuracy = result.compressed if ours else result.dense if row["engine"] == "torch" else None
        rows.append(
            [
                f"{row['engine']}, {'compressed' if ours else 'dense'}",
                console.bytes_text(row["file_bytes"]),
                f"{report['dense_bytes'] / row['file_bytes']:.1f}",
                "" if accuracy is None else f"{accuracy['top1']:.1f}",
                f"{row['median_ms']:.2f}",
            ]
        )
    console.print_table(["network", "weights>", "smaller>", "top-1 %>", "ms per picture>"], rows)
    print(f"{result.dense['n']} test pictures; latency of one thread, {result.bench['isa']}")
    print(f"self-check: {report['self_check']['max_relative_error']:.1e} of the largest output apart from PyTorch")
    print(f"the file: {result.file}")
    print(f"try: pyquant run {result.file} {find_pictures(result.test_pictures)[0]}")
    print(f"     pyquant eval {result.file} {result.test_pictures}")
