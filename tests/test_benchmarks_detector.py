"""The benchmarks' own parts for detectors: drawn pictures, operations that stand in for torchvision's, comparisons."""

from __future__ import annotations

import json
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import smooth_picture, tiny_detector
from torchvision_detection import greedy_nms, plain_roi_align, torchvision_detection  # noqa: F401 (a fixture)

from pyquant.errors import InputError
from pyquant.file import read_model
from pyquant.masks import from_coco
from pyquant.pictures import find_pictures

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
torch = pytest.importorskip("torch")


@pytest.fixture(autouse=True)
def benchmarks_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])


def test_drawn_pictures_and_their_annotations_agree(tmp_path: Path) -> None:
    from synthetic import ANNOTATIONS, CLASSES, LEAST_VISIBLE, PICTURES, Description, draw_picture, extent, write_set

    write_set(tmp_path, Description(split="train", pictures=12, seed=3))
    content = json.loads((tmp_path / ANNOTATIONS).read_text())
    pictures = {ref.name: ref.open().shape for ref in find_pictures(tmp_path / PICTURES)}
    assert pictures == {image["file_name"]: (image["height"], image["width"], 3) for image in content["images"]}
    seen: Counter[int] = Counter()
    for annotation in content["annotations"]:
        mask = from_coco(annotation["segmentation"])
        left, top, width, height = annotation["bbox"]
        assert extent(mask) == (left, top, left + width, top + height)
        assert annotation["area"] == mask.sum()
        seen[annotation["image_id"]] += 1
    assert set(seen) == set(range(1, 13))
    assert {annotation["category_id"] for annotation in content["annotations"]} <= set(range(1, len(CLASSES) + 1))
    drawn = draw_picture(np.random.default_rng(5))
    again = draw_picture(np.random.default_rng(5))
    np.testing.assert_array_equal(drawn.pixels, again.pixels)
    assert (np.sum(drawn.masks, axis=0) <= 1).all()  # of two objects only one is visible
    assert 0 < LEAST_VISIBLE < 1


@pytest.mark.parametrize("aligned", [False, True])
def test_operations_that_stand_in(aligned: bool, torchvision_detection: Any) -> None:  # noqa: F811
    from torchvision_ready import nms, roi_align_by_grid

    torch.manual_seed(0)
    corners = torch.rand(200, 2) * 50 - 8
    boxes = torch.cat([corners, corners + torch.rand(200, 2) * 30], dim=1)
    scores = torch.rand(200).mul(20).round()  # many are the same
    assert nms(boxes, scores, 0.4).tolist() == greedy_nms(boxes, scores, 0.4).tolist()
    assert nms(boxes[:0], scores[:0], 0.4).tolist() == []
    features = torch.randn(2, 3, 20, 24)
    rows = torch.cat([torch.arange(200)[:, None] % 2, boxes], dim=1)
    arguments = (features, rows, (5, 7), 0.5, 2, aligned)
    torch.testing.assert_close(roi_align_by_grid(*arguments), plain_roi_align(*arguments), rtol=0, atol=1e-4)


def test_parity_finds_and_explains_differences(torchvision_detection: Any) -> None:  # noqa: F811
    from parity import Boxes, Choice, by_choice, compare, matches, report

    module = tiny_detector(box_detections_per_img=20)
    counts = compare(module, [smooth_picture(90, 120), smooth_picture(61, 43, 1)], threads=1)
    assert counts["detections"] > 20
    assert counts["unexplained"] == 0
    assert report(counts)
    assert not report(counts + Counter(unexplained=1))
    assert not report(Counter(detections=100, matched=99, tie=1))
    found = {
        "boxes": np.array([[0, 0, 9, 9], [20, 20, 29, 29]], np.float32),
        "labels": np.array([1, 2]),
        "scores": np.array([0.9, 0.8]),
        "masks": np.ones((2, 30, 30), bool),
    }
    assert matches(found, found) == [(0, 0), (1, 1)]
    for change in (
        {"boxes": found["boxes"] + 0.2},
        {"labels": found["labels"] + 1},
        {"scores": found["scores"] + 0.01},
        {"masks": ~found["masks"]},
    ):
        assert matches(found, {**found, **change}) == []
    # Of two boxes the second overlaps the first by one half, and their scores are the same.
    among = Boxes(
        boxes=np.array([[0, 0, 10, 10], [0, 0, 10, 20.0]]),
        scores=np.array([0.5, 0.5]),
        groups=np.array([1, 1]),
        sources=np.array([0, 1]),
    )
    box = among.boxes[0]
    for choice, reason in (
        (Choice(min_score=0.50001, max_overlap=0.9, last_score=0.0), "score"),
        (Choice(min_score=0.1, max_overlap=0.9, last_score=0.49999), "kept"),
        (Choice(min_score=0.1, max_overlap=0.49999, last_score=0.0), "overlap"),
        (Choice(min_score=0.1, max_overlap=0.3, last_score=0.0), "tie"),
        (Choice(min_score=0.1, max_overlap=0.9, last_score=0.0), ""),
    ):
        assert by_choice(box, 0.5, 1, among, choice) == reason


def test_sizes_are_measured_before_and_after_fine_tuning_and_once_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="compressing needs faiss")
    pytest.importorskip("faster_coco_eval", reason="average precision needs the extra 'coco'")
    import detector_sizes
    from synthetic import CLASSES, Description, class_lines, write_set
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
    from torchvision.models.detection.mask_rcnn import MaskRCNNPredictor

    labels = len(CLASSES) + 1
    module = tiny_detector(box_predictor=FastRCNNPredictor(24, labels), mask_predictor=MaskRCNNPredictor(8, 8, labels))
    for split, count in (("train", 18), ("validation", 3)):
        write_set(tmp_path / split, Description(split=split, pictures=count, seed=0))
    place = detector_sizes.Place(
        train=tmp_path / "train", validation=tmp_path / "validation", folder=tmp_path / "sizes"
    )
    effort = detector_sizes.Effort(ratios=(2.0,), samples=16, minutes=None, steps=2, limit=2)
    text = detector_sizes.measure(module, class_lines(), place, effort, threads=1)
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines()]
    assert [row[0] for row in rows[2:]] == ["dense", "", "2 times", "", "2 times, 2 steps of fine-tuning", ""]
    assert [row[3] for row in rows[2:]] == ["exact", "fast"] * 3
    assert all(0 <= float(share) <= 100 for row in rows[2:] for share in row[4:])
    before, after = (read_model(place.file(name)) for name in ("before-2", "after-2"))
    assert "finetune" not in before.provenance
    assert "finetune" in after.provenance
    codes = [name for name in after.network.tensors if name.endswith("codes")]
    assert codes
    for name in codes:  # fine-tuning leaves them as they are
        np.testing.assert_array_equal(before.network.tensors[name], after.network.tensors[name])
    monkeypatch.setattr(detector_sizes, "evaluate_detector", None)
    monkeypatch.setattr(detector_sizes, "compress_sizes", None)
    assert detector_sizes.measure(module, class_lines(), place, effort, threads=1) == text
    with pytest.raises(InputError, match="was measured with another limit"):
        detector_sizes.measure(module, class_lines(), place, replace(effort, limit=3), threads=1)
