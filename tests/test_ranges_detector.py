"""Activation ranges of detectors: measured on whole pictures and on the boxes that are found, and used by `fast`."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from detectors import smooth_picture, tiny_detector
from numpy.typing import NDArray
from PIL import Image

import pyquant
from pyquant import ranges, reference
from pyquant.choose import Recipe, parse_rule
from pyquant.cli import commands
from pyquant.detector import DetectorPreprocessing, rows_of_values
from pyquant.errors import InputError
from pyquant.file import ModelFile, read_model, write_model
from pyquant.histogram import Histogram
from pyquant.ranges import measure_ranges
from pyquant.runtime import Model

pytest.importorskip("torch")
pytest.importorskip("torchvision")

from pyquant.capture import capture_detector

SIZES = [(100 + 7 * i, 120 - 5 * i) for i in range(6)]
Found = dict[str, NDArray[Any]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures of several sizes."""
    path = tmp_path_factory.mktemp("streets")
    for seed, size in enumerate(SIZES):
        Image.fromarray(smooth_picture(*size, seed)).save(path / f"{seed}.png")
    return path


@pytest.fixture(scope="module")
def detector() -> ModelFile:
    network, preprocessing = capture_detector(tiny_detector(box_score_thresh=0.3))
    return ModelFile(network=network, preprocessing=preprocessing)


def inputs_of(file: ModelFile, seed: int) -> list[NDArray[np.float32]]:
    assert isinstance(file.preprocessing, DetectorPreprocessing)
    return [value[None] for value in file.preprocessing(smooth_picture(*SIZES[seed], seed))]


def agreement(ours: list[Found], others: list[Found]) -> float:
    """Return how much of what `others` found is in `ours`: the label, a box with 80 % in common, nearly the score."""
    same = count = 0
    for mine, theirs in zip(ours, others, strict=True):
        low = np.maximum(mine["boxes"][:, None, :2], theirs["boxes"][None, :, :2])
        high = np.minimum(mine["boxes"][:, None, 2:], theirs["boxes"][None, :, 2:])
        common = np.clip(high - low, 0, None).prod(axis=2)
        areas = [(found["boxes"][:, 2:] - found["boxes"][:, :2]).prod(axis=1) for found in (mine, theirs)]
        overlap = common / (areas[0][:, None] + areas[1] - common)
        near = np.abs(mine["scores"][:, None] - theirs["scores"]) < 0.05
        same += int(((overlap > 0.8) & near & (mine["labels"][:, None] == theirs["labels"])).any(axis=0).sum())
        count += len(theirs["labels"])
    return same / count


def test_calibrated_ranges_find_what_measuring_in_each_run_finds(
    detector: ModelFile, folder: Path, tmp_path: Path
) -> None:
    path, out = tmp_path / "x.pqmodel", tmp_path / "y.pqmodel"
    write_model(path, detector)
    done = pyquant.calibrate(path, folder, out=out)
    assert (done.pictures, done.values) == (len(SIZES), len(detector.network.graph.values()))
    pictures = [folder / f"{i}.png" for i in range(len(SIZES))]
    exact = pyquant.load(out).predict(pictures)
    fast = pyquant.load(out, precision="fast").predict(pictures)
    measuring = pyquant.load(path, precision="fast").predict(pictures)
    assert agreement(fast, exact) > 0.9
    assert agreement(fast, measuring) > 0.9
    assert agreement(fast, exact) > agreement(measuring, exact) - 0.05
    for got, expected in zip(exact, pyquant.load(path).predict(pictures), strict=True):
        np.testing.assert_array_equal(got["boxes"], expected["boxes"])


def test_command(detector: ModelFile, folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.pqmodel"
    write_model(path, detector)
    arguments = ["calibrate", path, folder, "--out", path, "--samples", 2, "--json"]
    done = CliRunner().invoke(commands, [str(argument) for argument in arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["pictures"] == 2
    assert read_model(path).network.activation_ranges is not None
    with pytest.raises(InputError, match="at least 1 picture"):
        pyquant.calibrate(path, folder, out=path, samples=0)


def test_only_boxes_that_are_there_count(detector: ModelFile) -> None:
    network = detector.network
    inputs = inputs_of(detector, 0)
    values = reference.all_values(network, *inputs)
    boxes = rows_of_values(network.graph)
    assert boxes["rpn"] == boxes["roi_heads.box_roi_pool"] == boxes["box_logits"] == "rpn"
    assert boxes["detections"] == boxes["masks"] == boxes["mask_logits"] == "detections"
    assert not any(name.startswith("features") for name in boxes)
    found = dict(zip(network.graph.values(), measure_ranges(network, [inputs]), strict=True))
    unused = 0
    for name in ("roi_heads.box_roi_pool", "box_logits", "mask_logits"):
        used = values[boxes[name]][:, 0] >= 0
        unused += int((~used).sum())
        histogram = Histogram()
        histogram.add(np.ascontiguousarray(values[name][used], np.float32))
        expected = histogram.best_range()
        np.testing.assert_allclose(found[name], expected, rtol=0.05, atol=1e-3 * np.ptp(expected), err_msg=name)
    assert unused


def test_a_detector_that_finds_nothing_has_ranges(folder: Path) -> None:
    network, preprocessing = capture_detector(tiny_detector(box_score_thresh=1.0))
    file = ModelFile(network=network, preprocessing=preprocessing)
    got = measure_ranges(network, [inputs_of(file, 0)])
    assert got[network.graph.values().index("mask_logits")].tolist() == [0, 1]
    fast = Model(replace(file, network=network.with_activation_ranges(got)), precision="fast")
    assert not len(fast.predict([smooth_picture(60, 80)])[0]["labels"])


def test_parts_give_the_same_bits(detector: ModelFile, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = [inputs_of(detector, seed) for seed in range(2)]
    whole = measure_ranges(detector.network, batches, threads=1)
    for size in (1, 100_000):
        monkeypatch.setattr(ranges, "PART_BYTES", size)
        np.testing.assert_array_equal(measure_ranges(detector.network, batches, threads=2), whole)


def test_compressed_detectors_have_the_ranges_that_calibrating_gives(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("faiss", reason="compressing needs faiss")
    path, out = tmp_path / "x.pqmodel", tmp_path / "y.pqmodel"
    recipe = Recipe(rules=(parse_rule("backbone*=dense"),))
    pyquant.compress(tiny_detector(masks=False), folder, out=path, recipe=recipe)
    pyquant.calibrate(path, folder, out=out)
    assert out.read_bytes() == path.read_bytes()
    images = np.zeros((3, 3, 96, 96), np.float32)
    pyquant.compress(tiny_detector(masks=False), images, out=out, recipe=recipe)  # arrays are taken as they are
    assert read_model(out).network.activation_ranges is not None
