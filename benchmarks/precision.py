"""What 8-bit integers cost in accuracy: each network in both precisions on the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from figures import CHECKPOINTS, TINY_CLASSES, TINY_SHAPE, Figure, Setting
from numpy.typing import NDArray
from speed import with_ranges

import pyquant
from pyquant.choose import Recipe
from pyquant.evaluate import evaluate_network
from pyquant.file import read_model
from pyquant.models import build_network
from pyquant.pictures import read_classes
from pyquant.preprocessing import Preprocessing

TINY_PRESETS = ("large-blocks", "lut")
MAX_POINTS = 0.5  # of top-1, fast below exact
MIN_AGREEMENT = 96.0  # per cent of pictures for which both have the same best class


class Answers:
    """A network that keeps its best class for each picture."""

    def __init__(self, network: Callable[[NDArray[np.float32]], object]) -> None:
        self._network = network
        self.best: list[int] = []

    def __call__(self, inputs: NDArray[np.float32]) -> object:
        """Run the network."""
        outputs = np.asarray(self._network(inputs))
        self.best += outputs.argmax(axis=1).tolist()
        return outputs


def measure_precision(setting: Setting) -> list[Figure]:
    """Compare both precisions: imported networks on 500 pictures, a ResNet-18 for Tiny-ImageNet on 5000."""
    figures = []
    for name in CHECKPOINTS:
        path = with_ranges(setting, setting.imported(name))
        figures += _compare(name, path, setting.data / "imagenet500.zip", promised=False)
    for preset in TINY_PRESETS:
        figures += _compare(
            f"resnet18_tiny64 {preset}", _compressed(setting, preset), setting.data / "tiny64_val5k.zip", promised=True
        )
    return figures


def _compressed(setting: Setting, preset: str) -> Path:
    out = setting.folder / f"resnet18_tiny64_{preset}.pqmodel"
    if out.exists() and read_model(out).network.activation_ranges is not None:
        return out
    pyquant.compress(
        build_network("resnet18", weights=setting.data / "resnet18_tiny64.safetensors", num_classes=TINY_CLASSES),
        setting.data / "tiny64_train20k.zip",
        out=out,
        recipe=Recipe(preset=preset),
        input_shape=TINY_SHAPE,
        preprocessing=Preprocessing.default_for(TINY_SHAPE),
        classes=read_classes(setting.data / "tiny64_classes.txt"),
    )
    return out


def _compare(name: str, path: Path, pictures: Path, *, promised: bool) -> list[Figure]:
    file = read_model(path)
    assert file.preprocessing is not None
    without = replace(file, network=file.network.with_activation_ranges(None))
    models = {
        "exact": pyquant.Model(file),
        "fast": pyquant.Model(file, precision="fast"),
        "fast, ranges of each run": pyquant.Model(without, precision="fast"),
    }
    top1, best = {}, {}
    for precision, model in models.items():
        answers = Answers(model)
        top1[precision] = evaluate_network(answers, pictures, file.preprocessing, classes=file.classes)["top1"]
        best[precision] = np.array(answers.best)
    figures = [Figure(name=f"{name} exact", value=top1["exact"], unit="% top-1")]
    for precision in list(models)[1:]:
        loss = top1["exact"] - top1[precision]
        agreement = 100.0 * float((best[precision] == best["exact"]).mean())
        figures += [
            Figure(
                name=f"{name} {precision}",
                value=top1[precision],
                unit="% top-1",
                target=f"≥ exact - {MAX_POINTS:g}" if promised else "",
                met=loss <= MAX_POINTS if promised else None,
            ),
            Figure(
                name=f"{name} {precision}, agreement",
                value=agreement,
                unit="% of pictures",
                target=f"≥ {MIN_AGREEMENT:g}" if promised else "",
                met=agreement >= MIN_AGREEMENT if promised else None,
            ),
        ]
    return figures
