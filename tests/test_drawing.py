"""What a detector found, drawn and written down: colours, run lengths, and the command that makes them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import CLASSES, smooth_picture, tiny_detector
from numpy.typing import NDArray
from PIL import Image

from pyquant import masks
from pyquant.classes import ClassName
from pyquant.cli import main
from pyquant.drawing import COLOURS, draw_detections
from pyquant.file import ModelFile, write_model
from pyquant.masks import run_lengths, to_coco
from pyquant.runtime import load

Run = Callable[..., tuple[int, str, str]]

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")


def from_coco(described: dict[str, Any]) -> NDArray[np.bool_]:
    """Return the mask that COCO's text stands for: its description, read the other way."""
    counts: list[int] = []
    value = shift = 0
    for character in described["counts"]:
        group = ord(character) - 48
        value |= (group & 0x1F) << shift
        shift += 5
        if not group & 0x20:
            value -= (1 << shift) if group & 0x10 else 0
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(described["size"][::-1]).T


def test_run_lengths_go_column_by_column() -> None:
    mask = np.array([[0, 1, 1], [0, 0, 1]], bool)
    assert run_lengths(mask) == [2, 1, 1, 2]
    assert run_lengths(~mask) == [0, 2, 1, 1, 2]
    assert run_lengths(np.zeros((2, 3), bool)) == [6]
    assert run_lengths(np.ones((2, 3), bool)) == [0, 6]


def test_known_text() -> None:
    # By hand: 6 is the character 48 + 6. 2, 1, 1, 2: the fourth is 2 - 1. 40 is 8 with a bit for more, then 1.
    assert to_coco(np.zeros((2, 3), bool)) == {"size": [2, 3], "counts": "6"}
    assert to_coco(np.array([[0, 1, 1], [0, 0, 1]], bool))["counts"] == "2111"
    assert to_coco(np.zeros((8, 5), bool))["counts"] == "X1"


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (300, 200)])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 1.0])
def test_text_holds_the_mask(size: tuple[int, int], share: float, rng: np.random.Generator) -> None:
    mask = rng.random(size) < share
    np.testing.assert_array_equal(from_coco(to_coco(mask)), mask)
    np.testing.assert_array_equal(masks.from_coco(to_coco(mask)), mask)


@pytest.mark.parametrize(("size", "counts"), [([2, 3], "5"), ([2, 3], "66"), ([2, 3], "6X"), ([2, 3], "66O")])
def test_text_must_cover_the_mask(size: list[int], counts: str) -> None:
    with pytest.raises(ValueError, match="a mask of 2 x 3 pixels whose runs cover"):
        masks.from_coco({"size": size, "counts": counts})


def test_drawing_changes_boxes_and_masks_alone() -> None:
    pixels = np.full((60, 80, 3), 200, np.uint8)
    masks = np.zeros((1, 60, 80), bool)
    masks[0, 40:50, 40:50] = True
    found = {"boxes": np.array([[30, 20, 60, 55]], np.float32), "scores": np.array([0.9]), "masks": masks}
    drawn = np.asarray(draw_detections(pixels, found, ["cat"]))
    np.testing.assert_array_equal(drawn[45, 45], (100 + np.array(COLOURS[0]) / 2).round())
    np.testing.assert_array_equal(drawn[55, 40], COLOURS[0])
    assert (drawn[:19] == 200).all()
    assert (drawn[58:] == 200).all()
    empty = {name: values[:0] for name, values in found.items()}
    np.testing.assert_array_equal(np.asarray(draw_detections(pixels, empty, [])), pixels)


def test_names_stay_in_the_picture() -> None:
    found = {"boxes": np.array([[70, 52, 80, 60]], np.float32), "scores": np.array([0.9])}
    (width, height), pixels = (80, 60), np.full((60, 80, 3), 200, np.uint8)
    drawn = np.asarray(draw_detections(pixels, found, ["cat"]))
    whole = np.asarray(draw_detections(pixels, {**found, "boxes": np.array([[2, 2, 12, 10]], np.float32)}, ["cat"]))
    # All of its letters can be read: as many dark pixels as where there is room.
    assert (drawn.max(axis=2) < 60).sum() == (whole.max(axis=2) < 60).sum() > 20
    assert drawn.shape == (height, width, 3)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector with masks and class names, and beside it a picture."""
    from pyquant.capture import capture_detector

    folder = tmp_path_factory.mktemp("detector")
    network, preprocessing = capture_detector(tiny_detector())
    classes = tuple(ClassName(folder=str(i), name=f"thing {i}") for i in range(CLASSES))
    write_model(folder / "detector.pqmodel", ModelFile(network=network, preprocessing=preprocessing, classes=classes))
    Image.fromarray(smooth_picture(90, 120)).save(folder / "street.png")
    return folder


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`pyquant run` in this process: exit code, standard output, standard error."""

    def call(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main(["run", *map(str, arguments)])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def test_run_draws_and_prints_what_was_found(run: Run, detector: Path, tmp_path: Path) -> None:
    file, picture, drawn = detector / "detector.pqmodel", detector / "street.png", tmp_path / "drawn.png"
    code, out, err = run(file, picture, "--draw", drawn, "--min-score", "0.3", "--json")
    assert code == 0, err
    (result,) = json.loads(out)
    (found,) = load(file).predict([picture])
    count = int((found["scores"] >= 0.3).sum())
    assert 0 < count == len(result["detections"]) < len(found["scores"])
    assert (result["picture"], result["height"], result["width"]) == (str(picture), 90, 120)
    for i, entry in enumerate(result["detections"]):
        assert entry["class"] == f"thing {entry['label']}"
        assert entry["label"] == found["labels"][i]
        np.testing.assert_allclose([entry["score"], *entry["box"]], [found["scores"][i], *found["boxes"][i]], rtol=1e-6)
        np.testing.assert_array_equal(from_coco(entry["mask"]), found["masks"][i])
    image = Image.open(drawn)
    assert image.size == (120, 90)
    assert (np.asarray(image) != np.asarray(Image.open(picture))).any()
    code, out, _ = run(file, picture, "--min-score", "0.3")
    assert code == 0
    assert "thing" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["street.png", "--draw", "out.gif"], "--draw: expected a name that ends in .png, .jpg, .jpeg, got 'out.gif'"),
        (["street.png", "street.png", "--draw", "out.png"], "--draw: expected one picture, got 2"),
        (["street.png", "--draw", "street.png"], "is an input of this work"),
        (["street.png", "--draw", "no/out.png"], "no/out.png: there is no folder"),
    ],
)
def test_drawing_that_cannot_be_is_refused_first(
    arguments: list[str], message: str, run: Run, detector: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(detector)
    code, out, err = run("detector.pqmodel", *arguments)
    assert (code, out) == (2, "")
    assert message in err.replace("\n", " ")


def test_a_classifier_draws_nothing(run: Run, tiny_model: Path, detector: Path, tmp_path: Path) -> None:
    code, _, err = run(tiny_model, detector / "street.png", "--draw", tmp_path / "out.png")
    assert code == 2
    assert "does not hold a detector" in err
