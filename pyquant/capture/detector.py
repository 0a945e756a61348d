"""Torchvision's Faster and Mask R-CNN and RetinaNet: tensor parts are captured, and the rest is operations of ours."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pyquant.capture.isolate import isolated, undisturbed
from pyquant.capture.module import capture_module
from pyquant.detector import DetectorPreprocessing
from pyquant.errors import CaptureError, ConfigError, InputError
from pyquant.graph import Graph, GraphInput, Network, Node

IMAGES, SIZES = "images", "sizes"
PROBED = (3, 128, 160)  # an input on which the backbone is traced: large enough for every level of a pyramid
KNOWN = "torchvision's fasterrcnn, maskrcnn and retinanet networks, and others of their parts"
# The parts of a network of two stages, and of one.
TWO_STAGES = {
    "transform": "GeneralizedRCNNTransform",
    "rpn": "RegionProposalNetwork",
    "rpn.anchor_generator": "AnchorGenerator",
    "rpn.box_coder": "BoxCoder",
    "roi_heads": "RoIHeads",
    "roi_heads.box_coder": "BoxCoder",
    "roi_heads.box_roi_pool": "MultiScaleRoIAlign",
}
ONE_STAGE = {
    "transform": "GeneralizedRCNNTransform",
    "anchor_generator": "AnchorGenerator",
    "box_coder": "BoxCoder",
    "head.classification_head": "RetinaNetClassificationHead",
    "head.regression_head": "RetinaNetRegressionHead",
}


def is_detector(module: nn.Module) -> bool:
    """Whether `module` takes a list of pictures of any size, as torchvision's detectors do."""
    return _is(module, "GeneralizedRCNN") or _is(getattr(module, "transform", None), "GeneralizedRCNNTransform")


def capture_detector(module: nn.Module) -> tuple[Network, DetectorPreprocessing]:
    """Return the network of a torchvision detector, and what it does to pictures first.

    The network takes `images` `[N, 3, H, W]`, resized and padded, and `sizes` `[N, 2]`, their heights and widths
    without padding. It gives `detections`, rows `[N * D, 7]` of image (-1: not used), box, score and label, and where
    the module has a mask head, `masks` `[N * D, m, m]`, probabilities over each box. The module is left as it was.
    Labels are the module's own.

    Raises:
        CaptureError: naming every part that is not known, or listing the unsupported operations of one.
        InputError: a weight is NaN or infinite.
    """
    if faults := list(_unknown_parts(module)):
        raise CaptureError(f"a detector with parts that are not known: {'; '.join(faults)}; expected {KNOWN}")
    with undisturbed():
        copy: Any = isolated(module)
        preprocessing = _preprocessing(copy.transform)
        assembly = _Assembly(copy, preprocessing.usual_input)
        return assembly.one_stage() if _has_one_stage(copy) else assembly.two_stages(), preprocessing


def _is(part: object, kind: str) -> bool:
    """Whether `part` is of a class of this name, or of one derived from it; torchvision itself is not needed."""
    return any(base.__name__ == kind for base in type(part).__mro__)


def _unknown_parts(module: Any) -> Iterator[str]:
    """Yield each part that is of another kind than expected, or set in a way that we do not know."""
    one_stage = _has_one_stage(module)
    if not one_stage and not _is(module, "GeneralizedRCNN"):
        yield f"the network itself is {type(module).__name__}, not GeneralizedRCNN or RetinaNet"
        return
    kinds = dict(ONE_STAGE if one_stage else TWO_STAGES)
    if not one_stage and _has_masks(module):
        kinds["roi_heads.mask_roi_pool"] = "MultiScaleRoIAlign"
    sound = True
    for path, kind in kinds.items():
        if not _is(part := _part(module, path), kind):
            sound = False
            yield f"'{path}' is {type(part).__name__}, not {kind}"
        elif kind == "MultiScaleRoIAlign" and not part.sampling_ratio > 0:
            yield f"'{path}' samples adaptively; give it a sampling_ratio"
    if sound and module.transform.fixed_size is not None:
        yield "'transform' has a fixed_size"
    if sound and not one_stage and module.roi_heads.has_keypoint():
        yield "'roi_heads' has a keypoint head"


def _part(module: Any, path: str) -> Any:
    for name in path.split("."):
        module = getattr(module, name, None)
    return module


def _has_one_stage(module: object) -> bool:
    return _is(module, "RetinaNet")


def _has_masks(module: Any) -> bool:
    return all(
        _part(module, f"roi_heads.{name}") is not None for name in ("mask_roi_pool", "mask_head", "mask_predictor")
    )


def _preprocessing(transform: Any) -> DetectorPreprocessing:
    mean, std = (tuple(float(number) for number in numbers) for numbers in (transform.image_mean, transform.image_std))
    try:
        return DetectorPreprocessing(
            short=int(transform.min_size[-1]),  # in training one of several is drawn; the last one counts
            long=int(transform.max_size),
            multiple=int(transform.size_divisible),
            mean=mean,  # type: ignore[arg-type]
            std=std,  # type: ignore[arg-type]
        )
    except (ConfigError, TypeError, ValueError) as error:
        raise CaptureError(f"'transform': {error}") from error


class _Trunk(nn.Module):
    """The backbone and the head of the region proposal network, under their own names."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.backbone = module.backbone
        self.rpn: Any = nn.Module()
        self.rpn.head = module.rpn.head

    def forward(self, images: Tensor) -> dict[str, Any]:
        features = self.backbone(images)
        features = {"0": features} if isinstance(features, Tensor) else features
        objectness, numbers = self.rpn.head(list(features.values()))
        return {"features": dict(features), "objectness": list(objectness), "moves": list(numbers)}


class _OneStage(nn.Module):
    """The backbone of a network of one stage, and its heads for classes and boxes, under their own names."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.backbone = module.backbone
        self.head = module.head

    def forward(self, images: Tensor) -> dict[str, list[Tensor]]:
        features = self.backbone(images)
        levels = [features] if isinstance(features, Tensor) else list(features.values())
        classes, boxes = self.head.classification_head, self.head.regression_head
        # The heads themselves would go on to put the classes of all levels in one row.
        return {
            "logits": [classes.cls_logits(classes.conv(level)) for level in levels],
            "moves": [boxes.bbox_reg(boxes.conv(level)) for level in levels],
        }


class _BoxHead(nn.Module):
    """What makes logits and numbers of the features of a box."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.roi_heads: Any = nn.Module()
        self.roi_heads.box_head = module.roi_heads.box_head
        self.roi_heads.box_predictor = module.roi_heads.box_predictor

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        logits, numbers = self.roi_heads.box_predictor(self.roi_heads.box_head(features))
        return {"box_logits": logits, "box_moves": numbers}


class _MaskHead(nn.Module):
    """What makes a mask for each class of the features of a box."""

    def __init__(self, module: Any) -> None:
        super().__init__()
        self.roi_heads: Any = nn.Module()
        self.roi_heads.mask_head = module.roi_heads.mask_head
        self.roi_heads.mask_predictor = module.roi_heads.mask_predictor

    def forward(self, features: Tensor) -> dict[str, Tensor]:
        return {"mask_logits": self.roi_heads.mask_predictor(self.roi_heads.mask_head(features))}


class _Assembly:
    """The layers of a detector so far."""

    def __init__(self, module: Any, usual_input: tuple[int, int, int]) -> None:
        self._module = module
        self._nodes: list[Node] = []
        self._tensors: dict[str, NDArray[Any]] = {}
        self._inputs = (
            GraphInput(name=IMAGES, shape=(None, 3, None, None), default=usual_input),
            GraphInput(name=SIZES, shape=(None, 2), default=(2,)),
        )

    def one_stage(self) -> Network:
        """Return the whole network of a RetinaNet."""
        module = self._module
        trunk = self._add_part(_OneStage(module), PROBED, IMAGES)
        logits, moves = ([v for n, v in trunk.items() if n.startswith(f"{kind}.")] for kind in ("logits", "moves"))
        found = self._add(
            "anchor_detections",
            "detections",
            (IMAGES, SIZES, *logits, *moves),
            anchors=self._anchors("anchor_generator", len(logits)),
            best=int(module.topk_candidates),
            keep=int(module.detections_per_img),
            **_choice(module, 0.0),
        )
        return self._whole([found])

    def two_stages(self) -> Network:
        """Return the whole network of a Faster or Mask R-CNN."""
        heads, rpn = self._module.roi_heads, self._module.rpn
        trunk = self._add_part(_Trunk(self._module), PROBED, IMAGES)
        features, objectness, moves = (
            {name: value for name, value in trunk.items() if name.startswith(f"{kind}.")}
            for kind in ("features", "objectness", "moves")
        )
        self._add(
            "proposals",
            "rpn",
            (IMAGES, SIZES, *objectness.values(), *moves.values()),
            anchors=self._anchors("rpn.anchor_generator", len(objectness)),
            best=int(rpn._pre_nms_top_n["testing"]),
            keep=int(rpn._post_nms_top_n["testing"]),
            **_choice(rpn, rpn.min_size),
        )
        box = self._add_head("box", _BoxHead(self._module), features, "rpn")
        outputs = [
            self._add(
                "detections",
                "detections",
                (SIZES, "rpn", box["box_logits"], box["box_moves"]),
                keep=int(heads.detections_per_img),
                **_choice(heads, 1e-2),  # a side that torchvision's RoIHeads has written into its code
            )
        ]
        if _has_masks(self._module):
            mask = self._add_head("mask", _MaskHead(self._module), features, "detections")
            outputs.append(self._add("select_masks", "masks", (mask["mask_logits"], "detections")))
        return self._whole(outputs)

    def _whole(self, outputs: Sequence[str]) -> Network:
        graph = Graph(inputs=self._inputs, nodes=tuple(self._nodes), outputs=tuple(outputs))
        graph.check_edges()
        try:
            graph.infer_shapes()
        except InputError as error:
            raise CaptureError(f"the parts of the detector do not fit together: {error}") from error
        return Network(graph=graph, tensors=self._tensors)

    def _add(self, op: str, name: str, inputs: Sequence[str], **attributes: Any) -> str:
        self._nodes.append(Node(op=op, name=name, inputs=tuple(inputs), outputs=(name,), attributes=attributes))
        return name

    def _add_head(self, kind: str, head: nn.Module, features: Mapping[str, str], rows: str) -> Mapping[str, str]:
        """Add what reads the features of boxes; return the names of its outputs."""
        path = f"roi_heads.{kind}_roi_pool"
        align = _part(self._module, path)
        levels = [value for name, value in features.items() if name.partition(".")[2] in align.featmap_names]
        if not levels:
            raise CaptureError(f"'{path}' reads {align.featmap_names}, but the backbone gives {list(features)}")
        size = tuple(int(side) for side in align.output_size)
        self._add(
            "roi_align",
            path,
            (IMAGES, rows, *levels),
            output_size=size,
            samples=int(align.sampling_ratio),
            canonical_side=int(align.canonical_scale),
            canonical_level=int(align.canonical_level),
        )
        shapes = Graph(inputs=self._inputs, nodes=tuple(self._nodes), outputs=()).infer_shapes()
        return self._add_part(head, shapes[path][1:], path)

    def _add_part(self, part: nn.Module, shape: Sequence[int], value: str) -> dict[str, str]:
        """Capture a part that reads `value`, and add its layers; return its outputs, each by the name it has here."""
        channels, height, width = shape
        network = capture_module(part, (channels, height, width))
        (declared,) = network.graph.inputs
        if declared.shape[0] is not None or (value == IMAGES and None not in declared.shape[2:]):
            raise CaptureError(f"the part that reads '{value}' fixes the size of its input to {list(declared.shape)}")
        for node in network.graph.nodes:
            inputs = tuple(value if name == declared.name else name for name in node.inputs)
            self._nodes.append(replace(node, inputs=inputs))
        self._tensors |= network.tensors
        return {name: name for name in network.graph.outputs}

    def _anchors(self, path: str, levels: int) -> tuple[float, ...]:
        cells = _part(self._module, path).cell_anchors
        if len(cells) != levels or len({tuple(cell.shape) for cell in cells}) != 1:
            raise CaptureError(
                f"'{path}' has {[len(cell) for cell in cells]} anchors by level, but the backbone gives "
                f"{levels} levels; expected as many of each"
            )
        return tuple(float(corner) for corner in np.concatenate([cell.numpy().ravel() for cell in cells]))


def _choice(part: Any, min_side: float) -> dict[str, Any]:
    """Return the settings by which a part decodes boxes and chooses among them."""
    coder = part.box_coder
    weights = coder.weights.tolist() if isinstance(coder.weights, torch.Tensor) else coder.weights
    return {
        "max_overlap": float(part.nms_thresh),
        "min_score": float(part.score_thresh),
        "min_side": float(min_side),
        "box_weights": tuple(float(weight) for weight in weights),
        "max_log_scale": float(coder.bbox_xform_clip),
    }
