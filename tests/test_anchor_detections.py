"""The choice of boxes in networks of one stage: native, reference and PyTorch's, against torchvision's RetinaNet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from layer_networks import model_file
from test_detection_operations import F32, LOG_SCALE, PIXELS, SCORES, anchor_generator, layer, results
from torchvision_detection import torchvision_detection  # noqa: F401 (a fixture)

from pyquant.errors import InputError
from pyquant.graph import Node
from pyquant.runtime import Model

torch = pytest.importorskip("torch")

CLASSES, ANCHORS = 4, 3


def heads(
    rng: np.random.Generator, images: int, planes: list[tuple[int, int]], *, spread: float = 0.5, mean: float = -1.0
) -> list[F32]:
    """Return logits and numbers of the heads of a network of one stage, of all levels."""
    logits = [mean + rng.standard_normal((images, ANCHORS * CLASSES, *plane)).astype(np.float32) for plane in planes]
    numbers = [(spread * rng.standard_normal((images, ANCHORS * 4, *plane))).astype(np.float32) for plane in planes]
    return [array.astype(np.float32) for array in logits + numbers]


def detection_layer(inputs: list[F32], **changes: Any) -> Node:
    cells = anchor_generator(max((len(inputs) - 2) // 2, 1)).cell_anchors
    attributes: dict[str, Any] = {
        "anchors": tuple(torch.cat(cells).ravel().tolist()),
        "best": 40,
        "keep": 30,
        "max_overlap": 0.5,
        "min_score": 0.3,
        "min_side": 0.0,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
        "max_log_scale": LOG_SCALE,
        **changes,
    }
    return layer("anchor_detections", *inputs, **attributes)


def torchvision_detections(inputs: list[F32], node: Node) -> list[dict[str, Any]]:
    """Return what RetinaNet makes of the outputs of its heads."""
    from torchvision.models.detection import RetinaNet
    from torchvision.models.detection._utils import BoxCoder
    from torchvision.models.detection.image_list import ImageList

    images, sizes, *maps = map(torch.from_numpy, inputs)
    levels = len(maps) // 2

    class Chooser:
        score_thresh, nms_thresh = node.attributes["min_score"], node.attributes["max_overlap"]
        topk_candidates, detections_per_img = node.attributes["best"], node.attributes["keep"]
        box_coder = BoxCoder(weights=(1.0, 1.0, 1.0, 1.0))

    def rows(level: Any, columns: int) -> Any:
        n, _, h, w = level.shape
        return level.view(n, -1, columns, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, columns)

    outputs = {
        "cls_logits": [rows(level, CLASSES) for level in maps[:levels]],
        "bbox_regression": [rows(level, 4) for level in maps[levels:]],
    }
    image_sizes = [tuple(size) for size in sizes.int().tolist()]
    whole = anchor_generator(levels)(ImageList(images, image_sizes), maps[levels:])
    anchors = [list(boxes.split([level.shape[1] for level in outputs["cls_logits"]])) for boxes in whole]
    found: list[dict[str, Any]] = RetinaNet.postprocess_detections(Chooser(), outputs, anchors, image_sizes)  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(
    ("images", "size", "planes", "changes"),
    [
        (2, (64, 96), [(16, 24), (8, 12), (4, 6)], {}),
        (1, (64, 96), [(16, 24), (8, 12)], {"best": 2**20, "keep": 3000, "min_score": 0.5}),  # more than there are
        (1, (64, 96), [(16, 24)], {"keep": 1}),
        (1, (64, 96), [(8, 12)], {"best": 1, "max_overlap": 0.0}),
        (2, (64, 96), [(16, 24), (4, 6)], {"min_score": 0.97}),  # few, or none
        (2, (64, 96), [(16, 24), (4, 6)], {"min_score": 1.0}),  # none
        (1, (64, 96), [(4, 6)], {"min_score": 0.0, "best": 500}),
        (1, (32, 1344), [(8, 336), (1, 42)], {"max_overlap": 0.3}),
        (3, (32, 32), [(1, 1)], {"best": 2}),
    ],
)
def test_choice_is_torchvisions(
    images: int,
    size: tuple[int, int],
    planes: list[tuple[int, int]],
    changes: dict[str, Any],
    rng: np.random.Generator,
    torchvision_detection: Any,  # noqa: F811
) -> None:
    sizes = np.array([[size[0] - 5 * i, size[1] - 7 * i] for i in range(images)], np.float32)
    inputs = [np.zeros((images, 3, *size), np.float32), sizes, *heads(rng, images, planes)]
    node = detection_layer(inputs, **changes)
    expected = torchvision_detections(inputs, node)
    keep = node.attributes["keep"]
    for got in results(node, *inputs):
        for image, found in enumerate(expected):
            rows, count = got[image * keep : (image + 1) * keep], len(found["labels"])
            assert (rows[:, 0] == image).sum() == count
            np.testing.assert_allclose(rows[:count, 1:5], found["boxes"].numpy(), rtol=0, atol=PIXELS)
            np.testing.assert_allclose(rows[:count, 5], found["scores"].numpy(), rtol=0, atol=SCORES)
            np.testing.assert_array_equal(rows[:count, 6], found["labels"].numpy())
            assert (rows[count:, 0] == -1).all()


def test_equal_scores_keep_their_order(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 32, np.float32), *heads(rng, 1, [(8, 8), (4, 4)])]
    inputs[2:4] = [np.ones_like(x) for x in inputs[2:4]]
    expected, *others = results(detection_layer(inputs, best=50), *inputs)
    assert set(expected[expected[:, 0] == 0, 6]) == set(range(CLASSES))
    for got in others:
        np.testing.assert_allclose(got, expected, rtol=0, atol=PIXELS)


def test_boxes_of_other_classes_hide_nothing(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 32, np.float32), *heads(rng, 1, [(1, 1)])]
    inputs[2][:] = -9
    inputs[3][:] = 0
    inputs[2][0, :CLASSES, 0, 0] = [2, 1, -9, 1.5]  # of the first anchor
    for got in results(detection_layer(inputs), *inputs):
        assert got[got[:, 0] == 0, 6].tolist() == [0, 3, 1]


def test_numbers_without_bounds_give_boxes_in_the_picture(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 30, np.float32)]
    inputs += heads(rng, 1, [(8, 8)], spread=1e20)
    inputs[2][0, 0, :2] = np.nan
    inputs[2][0, 1, 2:4] = np.inf
    inputs[3][0, 5, 3:5] = np.inf
    inputs[3][0, 6, 3:5] = np.nan
    got = results(detection_layer(inputs), *inputs)[-1]
    used = got[got[:, 0] == 0]
    assert len(used)
    assert np.isfinite(used).all()
    assert (used[:, 1:5] >= 0).all()
    assert (used[:, 1:5] <= 30).all()


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(1, 3, 8, 8), (1, 2), (1, 12, 2, 2)], "images .* sizes .* logits and numbers"),
        ([(1, 3, 8, 8), (2, 2), (1, 12, 2, 2), (1, 12, 2, 2)], "images .* sizes .* logits and numbers"),
        ([(1, 3, 8, 8), (1, 2), (1, 12, 2, 2), (1, 8, 2, 2)], r"expected \[1, 12, h, w\] for 12 numbers"),
        ([(1, 3, 8, 8), (1, 2), (1, 12, 9, 2), (1, 12, 9, 2)], r"expected \[1, 12, h, w\]"),
        ([(1, 3, 8, 8), (1, 2), (1, 10, 2, 2), (1, 12, 2, 2)], "3 times the classes, 2, 2"),
        ([(1, 3, 8, 8), (1, 2), (1, 12, 2, 1), (1, 12, 2, 2)], "3 times the classes, 2, 2"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(shapes: list[tuple[int, ...]], message: str) -> None:
    inputs = [np.zeros(shape, np.float32) for shape in shapes]
    node = detection_layer(inputs, anchors=(0.0,) * 12)
    with pytest.raises(InputError, match=message):
        model_file([node], {}, *shapes).network.graph.infer_shapes(shapes)


def test_too_many_boxes_and_classes(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 32, np.float32)]
    inputs += [np.zeros((1, 40_000, 2, 2), np.float32), np.zeros((1, 4, 2, 2), np.float32)]
    node = detection_layer(inputs, anchors=(0.0,) * 4, best=2**31 - 1)
    with pytest.raises(InputError, match="too many boxes and classes"):
        Model(model_file([node], {}, *(x.shape for x in inputs)))(*inputs)
