"""Torchvision's detectors, with the compiled operations in plain PyTorch where they cannot be loaded."""

from __future__ import annotations

import importlib
import inspect
from typing import Any

import pytest


def greedy_nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
    """Return which boxes stay, best first: what torchvision documents of its `nms`, one box at a time."""
    import torch
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    overlaps = box_iou(boxes[order], boxes[order])
    stays = torch.ones(len(order), dtype=torch.bool)
    for i in range(len(order)):
        if stays[i]:
            stays[i + 1 :] &= ~(overlaps[i, i + 1 :] > iou_threshold)
    return order[stays]


def plain_roi_align(
    features: Any, boxes: Any, output_size: Any, spatial_scale: float, sampling_ratio: int, aligned: bool = False
) -> Any:
    """Return what torchvision's own definition in Python gives, which it would compile first."""
    definition = inspect.unwrap(importlib.import_module("torchvision.ops.roi_align")._roi_align)
    return definition(features, boxes, spatial_scale, *output_size, sampling_ratio, aligned)


def without_points_outside(interpolate: Any) -> Any:
    """Return torchvision's interpolation with what its compiled operation does and the one in Python leaves out.

    Points that lie further outside than a pixel count nothing.
    """

    def run(features: Any, images: Any, y: Any, x: Any, y_mask: Any, x_mask: Any) -> Any:
        height, width = features.shape[2:]
        inside_y, inside_x = (y >= -1) & (y <= height), (x >= -1) & (x <= width)
        inside = inside_y[:, None, :, None, :, None] & inside_x[:, None, None, :, None, :]
        return interpolate(features, images, y, x, y_mask, x_mask) * inside

    return run


@pytest.fixture
def torchvision_detection(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module `torchvision.models.detection`, ready to run."""
    torch = pytest.importorskip("torch")
    detection = pytest.importorskip("torchvision.models.detection")
    from torchvision.extension import _has_ops
    from torchvision.ops import boxes, poolers

    if not _has_ops():
        roi_align = importlib.import_module("torchvision.ops.roi_align")  # the package has a function of that name
        monkeypatch.setattr(boxes, "nms", greedy_nms)
        monkeypatch.setattr(poolers, "roi_align", plain_roi_align)
        monkeypatch.setattr(roi_align, "_bilinear_interpolate", without_points_outside(roi_align._bilinear_interpolate))
    with torch.no_grad():
        yield detection
