"""Small detectors of torchvision's parts, with random weights under which much is found, and pictures for them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLASSES = 5  # the background among them


def tiny_backbone(norm: Any = None) -> Any:
    """Return a backbone of three levels, 8 to 32 times smaller than the picture, with a feature pyramid."""
    from torch import nn
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

    norm = norm or nn.BatchNorm2d

    class Backbone(nn.Module):
        out_channels = 8

        def __init__(self) -> None:
            super().__init__()

            def stage(inputs: int, outputs: int, stride: int) -> Any:
                return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), norm(outputs), nn.ReLU())

            self.stem = nn.Sequential(stage(3, 8, 4), stage(8, 12, 2))
            self.stages = nn.ModuleList([stage(12, 16, 2), stage(16, 20, 2)])
            self.fpn = FeaturePyramidNetwork([12, 16, 20], self.out_channels, LastLevelMaxPool())

        def forward(self, x: Any) -> Any:
            features = {"0": self.stem(x)}
            for i, part in enumerate(self.stages):
                features[str(i + 1)] = part(features[str(i)])
            return self.fpn(features)

    return Backbone()


def tiny_detector(*, masks: bool = True, norm: Any = None, **settings: Any) -> Any:
    """Return a Mask R-CNN, or without masks a Faster R-CNN, in eval mode."""
    import torch
    from torch import nn
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.ops import MultiScaleRoIAlign

    torch.manual_seed(0)
    levels = ["0", "1", "2"]
    parts = {
        "rpn_anchor_generator": AnchorGenerator(tuple((16 * 2**i,) for i in range(4)), ((0.5, 1.0, 2.0),) * 4),
        "box_roi_pool": MultiScaleRoIAlign(levels, 5, 2, canonical_scale=64),
        "box_head": TwoMLPHead(8 * 25, 24),
        "box_predictor": FastRCNNPredictor(24, CLASSES),
        "min_size": 96,
        "max_size": 160,
        "box_score_thresh": 0.02,
        "rpn_pre_nms_top_n_test": 60,
        "rpn_post_nms_top_n_test": 50,
    }
    if masks:
        parts["mask_roi_pool"] = MultiScaleRoIAlign(levels, 6, 2, canonical_scale=64)
        parts["mask_head"] = MaskRCNNHeads(8, (8,), 1)
        parts["mask_predictor"] = MaskRCNNPredictor(8, 8, CLASSES)
    kind = detection.MaskRCNN if masks else detection.FasterRCNN
    module = kind(tiny_backbone(norm), **{**parts, **settings}).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        elif "fpn" not in name:
            nn.init.normal_(parameter, 0.5 if "norm" in name else 0.0, 0.2)
    # Boxes that move by parts of their sides.
    for head in (module.rpn.head.bbox_pred, module.roi_heads.box_predictor.bbox_pred):
        head.weight.data *= 0.05
    return module


def smooth_picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Return a picture of large coloured patches."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(256, size=(max(height // 12, 1), max(width // 12, 1), 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def tiny_retinanet(*, norm: Any = None, **settings: Any) -> Any:
    """Return a RetinaNet in eval mode."""
    import torch
    from torch import nn
    from torchvision.models import detection
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    torch.manual_seed(0)
    parts = {
        "anchor_generator": AnchorGenerator(tuple((16 * 2**i, 20 * 2**i) for i in range(4)), ((0.5, 1.0, 2.0),) * 4),
        "min_size": 96,
        "max_size": 160,
        "score_thresh": 0.3,
        "topk_candidates": 60,
        "detections_per_img": 50,
    }
    module = detection.RetinaNet(tiny_backbone(norm), CLASSES, **{**parts, **settings}).eval()
    for name, parameter in module.named_parameters():
        if name.endswith("weight") and parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
        elif "fpn" not in name:
            nn.init.normal_(parameter, 0.5 if "norm" in name else 0.0, 0.2)
    module.head.regression_head.bbox_reg.weight.data *= 0.2
    module.head.classification_head.cls_logits.weight.data *= 2
    module.head.classification_head.cls_logits.bias.data -= 1
    return module
