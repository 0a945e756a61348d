"""Gives torchvision's detectors plain PyTorch in place of compiled operations that cannot be loaded."""

from __future__ import annotations

import importlib
import inspect
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@cache
def make_ready(*, for_training: bool) -> None:
    """Put functions in place of NMS and RoIAlign in torchvision, where it was built for another PyTorch.

    RoIAlign is then torchvision's own definition in Python, save that points further than a pixel outside count
    nothing, as in its compiled operation; for training another one, equal but for rounding errors and much faster.
    """
    from torchvision.extension import _has_ops
    from torchvision.models.detection import roi_heads
    from torchvision.ops import boxes, poolers

    if _has_ops():
        return
    boxes.nms = nms
    if for_training:
        poolers.roi_align = roi_heads.roi_align = roi_align_by_grid
        return
    definition: Any = importlib.import_module("torchvision.ops.roi_align")  # the package has a function of that name
    interpolate = definition._bilinear_interpolate
    plain = inspect.unwrap(definition._roi_align)  # it would be compiled first

    def inside_only(features: Tensor, images: Tensor, y: Tensor, x: Tensor, y_mask: Any, x_mask: Any) -> Tensor:
        height, width = features.shape[2:]
        in_y, in_x = (y >= -1) & (y <= height), (x >= -1) & (x <= width)
        inside = in_y[:, None, :, None, :, None] & in_x[:, None, None, :, None, :]
        return interpolate(features, images, y, x, y_mask, x_mask) * inside

    def roi_align(
        features: Tensor, boxes: Any, output_size: Any, spatial_scale: float, sampling_ratio: int, aligned: bool = False
    ) -> Tensor:
        return plain(features, boxes, spatial_scale, *output_size, sampling_ratio, aligned)

    definition._bilinear_interpolate = inside_only
    poolers.roi_align = roi_align


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Return which boxes stay, best first: those that overlap no better one that stays by more than the threshold."""
    from torchvision.ops import box_iou

    order = scores.argsort(descending=True, stable=True)
    near = (box_iou(boxes[order], boxes[order]) > iou_threshold).cpu().numpy()
    stays = ~near[0] if len(order) else near
    stays[:1] = True
    for i in range(1, len(order)):
        if stays[i]:
            stays[i + 1 :] &= ~near[i, i + 1 :]
    return order[torch.from_numpy(stays.reshape(-1)).to(order.device)]


def roi_align_by_grid(
    features: Tensor,
    boxes: Any,
    output_size: Any,
    spatial_scale: float = 1.0,
    sampling_ratio: int = -1,
    aligned: bool = False,
) -> Tensor:
    """Return features `[N, C, h, w]` resampled in boxes `[R, 5]` (image, corners), `[R, C, *output_size]`.

    Where the number of samples would depend on the box (the masks that are learnt from), it is 2 along each axis.
    """
    sampling_ratio = sampling_ratio if sampling_ratio > 0 else 2
    down, across = output_size
    height, width = features.shape[2:]
    corners = boxes[:, 1:].float() * spatial_scale - 0.5 * aligned
    start, size = corners[:, :2], corners[:, 2:] - corners[:, :2]
    if not aligned:
        size = size.clamp(min=1.0)
    x, y = (
        start[:, i, None] + size[:, i, None] * (torch.arange(count, device=boxes.device) + 0.5) / count
        for i, count in enumerate((across * sampling_ratio, down * sampling_ratio))
    )
    inside = ((y >= -1) & (y <= height))[:, :, None] & ((x >= -1) & (x <= width))[:, None, :]
    x, y = (2 * p.clamp(0, side - 1) / max(side - 1, 1) - 1 for p, side in ((x, width), (y, height)))
    rows = torch.stack(torch.broadcast_tensors(x[:, None, :], y[:, :, None]), dim=-1)  # [R, y, x, 2]
    out = features.new_zeros((len(boxes), features.shape[1], down, across))
    for image in range(len(features)):
        own = boxes[:, 0] == image
        if not own.any():
            continue
        grid = rows[own]
        sampled = F.grid_sample(
            features[image : image + 1].float(), grid.reshape(1, -1, grid.shape[2], 2), align_corners=True
        )
        sampled = sampled.reshape(features.shape[1], *grid.shape[:3]).transpose(0, 1) * inside[own][:, None]
        out[own] = F.avg_pool2d(sampled, sampling_ratio).to(out.dtype)
    return out
