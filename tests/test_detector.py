"""Detectors: pictures on their way in, what is found on its way out, the file, and all of it against torchvision."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import CLASSES, smooth_picture, tiny_backbone, tiny_detector, tiny_retinanet
from torchvision_detection import torchvision_detection  # noqa: F401 (a fixture)

import pyquant
from pyquant import _core, reference_detection
from pyquant.capture import capture_detector
from pyquant.classes import ClassName
from pyquant.detector import DetectorPreprocessing
from pyquant.errors import CaptureError, ConfigError, FormatError, InputError
from pyquant.file import ModelFile, dumps, loads, write_model
from pyquant.runtime import Model

torch = pytest.importorskip("torch")

SIZES = [(90, 120), (61, 43), (200, 96), (1, 1), (3, 700), (96, 160)]


def captured(module: Any) -> ModelFile:
    network, preprocessing = capture_detector(module)
    return ModelFile(network=network, preprocessing=preprocessing)


def as_tensor(picture: np.ndarray) -> Any:
    return torch.from_numpy(picture.copy()).permute(2, 0, 1) / 255.0


# Pictures in, masks out.


@pytest.mark.parametrize("size", [*SIZES, (480, 640), (427, 500), (1000, 21)])
def test_pictures_become_what_torchvision_makes_of_them(size: tuple[int, int], torchvision_detection: Any) -> None:  # noqa: F811
    from torchvision.models.detection.transform import GeneralizedRCNNTransform

    preprocessing = DetectorPreprocessing(short=96, long=160, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))
    picture = smooth_picture(*size)
    image, (height, width) = preprocessing(picture)
    if min(preprocessing.resized(*size)) == 1 and size != (1, 1):
        return  # torchvision would give it no pixels
    transform = GeneralizedRCNNTransform(96, 160, preprocessing.mean, preprocessing.std).eval()
    expected, _ = transform([as_tensor(picture)])
    assert expected.image_sizes == [(height, width)]
    np.testing.assert_allclose(image, expected.tensors[0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(5, 7), (1, 9), (40, 30)])
@pytest.mark.parametrize("target", [(1, 1), (13, 7), (40, 30)])
def test_resizing_is_bilinear(size: tuple[int, int], target: tuple[int, int], rng: np.random.Generator) -> None:
    pixels = rng.integers(256, size=(*size, 3), dtype=np.uint8)
    levels = rng.standard_normal((3, 256)).astype(np.float32)
    image = np.stack([levels[c][pixels[:, :, c]] for c in range(3)]).astype(np.float64)
    got = _core.resize_picture(pixels, levels, *target, 50, 60)
    np.testing.assert_allclose(
        got[:, : target[0], : target[1]], reference_detection.resize(image, *target), rtol=0, atol=1e-4
    )
    assert np.count_nonzero(got) <= 3 * target[0] * target[1]


def test_sides_never_vanish() -> None:
    image, size = DetectorPreprocessing(short=96, long=160)(np.zeros((2, 5000, 3), np.uint8))
    assert image.shape == (3, 32, 160)
    assert size.tolist() == [1, 160]


def test_masks_are_pasted_as_torchvision_does(rng: np.random.Generator, torchvision_detection: Any) -> None:  # noqa: F811
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    corners = rng.uniform(0, 60, (40, 2))
    sides = rng.uniform(0.01, 40, (40, 2))
    boxes = np.concatenate([corners, np.minimum(corners + sides, [70, 50])], axis=1).astype(np.float32)
    boxes[:3] = [[0, 0, 70, 50], [69.5, 49.5, 70, 50], [0, 0, 0.01, 50]]
    masks = rng.random((40, 6, 6)).astype(np.float32)
    got = _core.paste_masks(masks, boxes, 50, 70)
    expected = paste_masks_in_image(torch.from_numpy(masks)[:, None], torch.from_numpy(boxes), (50, 70))[:, 0].numpy()
    clear = np.abs(expected - 0.5) > 1e-4
    assert clear.mean() > 0.999
    np.testing.assert_array_equal(got[clear], expected[clear] > 0.5)
    for mask, box, pasted in zip(masks, boxes.tolist(), got, strict=True):
        oracle = reference_detection.paste_mask(mask.astype(np.float64), box, 50, 70)
        assert np.mean(pasted != (oracle > 0.5)) < 1e-3


def test_masks_of_odd_boxes() -> None:
    boxes = np.array(
        [[5, 5, 2, 2], [-90, -90, -80, -80], [500, 5, 510, 9], [np.nan, 0, 1, 1], [0, 0, 3e38, 1]], np.float32
    )
    assert not _core.paste_masks(np.ones((5, 4, 4), np.float32), boxes, 10, 10)[1:].any()
    assert _core.paste_masks(np.ones((0, 4, 4), np.float32), boxes[:0], 10, 10).shape == (0, 10, 10)
    with pytest.raises(InputError, match=r"masks \[D, m, m\] and boxes \[D, 4\]"):
        _core.paste_masks(np.ones((2, 4, 4), np.float32), boxes, 10, 10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"short": 0}, "short must be 1 to 65,536 pixels, got 0"),
        ({"long": 1.5}, "long must be"),
        ({"multiple": True}, "multiple must be"),
        ({"short": 60000, "long": 60000}, "inputs of 3,600,000,000 pixels are too large"),
        ({"std": (1.0, 0.0, 1.0)}, "std must be three positive numbers"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DetectorPreprocessing(**{"short": 96, "long": 160, **changes})
    described = DetectorPreprocessing(short=96, long=160).to_json() | {
        k: list(v) if isinstance(v, tuple) else v for k, v in changes.items()
    }
    with pytest.raises(FormatError, match=message):
        DetectorPreprocessing.from_json(described)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), np.zeros((0, 4, 3), np.uint8)]
)
def test_what_is_no_picture_is_refused(picture: Any) -> None:
    with pytest.raises(InputError, match=r"a picture is a uint8 array \[H, W, 3\]"):
        DetectorPreprocessing(short=96, long=160)(picture)


# Whole detectors.


def is_same(got: dict[str, np.ndarray], expected: dict[str, Any], i: int) -> bool:
    """Whether something was found that is detection `i` of torchvision's; the order of near equals does not count."""
    near = (got["labels"] == int(expected["labels"][i])) & (np.abs(got["scores"] - float(expected["scores"][i])) < 1e-4)
    near &= np.abs(got["boxes"] - expected["boxes"][i].numpy()).max(axis=1) < 1e-2
    if "masks" not in got:
        return bool(near.any())
    mask = expected["masks"][i, 0].numpy() > 0.5
    return any((mask & other).sum() >= 0.99 * (mask | other).sum() for other in got["masks"][near])


def assert_same_detections(module: Any, model: Model, sizes: list[tuple[int, int]]) -> int:
    """Compare what both find in pictures of these sizes; return how much it is."""
    count = 0
    for seed, size in enumerate(sizes):
        picture = smooth_picture(*size, seed)
        (expected,), (got,) = module([as_tensor(picture)]), model.predict([picture])
        assert set(got) == set(expected)
        assert len(got["labels"]) == len(expected["labels"])
        assert all(is_same(got, expected, i) for i in range(len(got["labels"])))
        count += len(got["labels"])
    return count


def frozen_norms() -> Any:
    from torchvision.ops.misc import FrozenBatchNorm2d

    return tiny_detector(norm=FrozenBatchNorm2d, box_nms_thresh=0.3, rpn_score_thresh=0.3)


def second_version() -> Any:
    """Return a detector of the parts of torchvision's second versions."""
    from torch import nn
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
    from torchvision.models.detection.rpn import RPNHead

    return tiny_detector(
        rpn_head=RPNHead(8, 3, conv_depth=2),
        box_head=FastRCNNConvFCHead((8, 5, 5), [6, 6], [24], norm_layer=nn.BatchNorm2d),
        mask_head=MaskRCNNHeads(8, [6, 8], 1, norm_layer=nn.BatchNorm2d),
        box_detections_per_img=30,
    )


def one_level() -> Any:
    """Return a detector whose backbone gives a single tensor, with a user's own predictor."""
    from torch import nn
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops import MultiScaleRoIAlign

    class Predictor(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores, self.moves = nn.Linear(24, 3), nn.Linear(24, 12)

        def forward(self, x: Any) -> Any:
            return self.scores(x), self.moves(x.relu()) * 0.1

    module = tiny_detector(
        masks=False,
        rpn_anchor_generator=AnchorGenerator(((16, 32),), ((0.5, 1.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], 5, 3),
    )
    module.backbone = nn.Sequential(nn.Conv2d(3, 8, 3, 8, 1), nn.ReLU())
    module.roi_heads.box_predictor = Predictor()
    return module.eval()


def frozen_retinanet() -> Any:
    """Return a RetinaNet with other choices, and levels behind the pyramid that convolutions make."""
    from torch import nn
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7
    from torchvision.ops.misc import FrozenBatchNorm2d

    module = tiny_retinanet(
        norm=FrozenBatchNorm2d,
        anchor_generator=AnchorGenerator(tuple((16 * 2**i, 20 * 2**i) for i in range(5)), ((0.5, 1.0, 2.0),) * 5),
        topk_candidates=1000,
        detections_per_img=30,
        nms_thresh=0.3,
    )
    module.backbone.fpn = FeaturePyramidNetwork([12, 16, 20], 8, LastLevelP6P7(8, 8))
    for parameter in module.backbone.fpn.parameters():
        if parameter.dim() > 1:
            nn.init.kaiming_normal_(parameter)
    module.head.classification_head.cls_logits.weight.data *= 0.02  # else many scores are all of 1
    return module.eval()


@pytest.mark.parametrize(
    "build",
    [
        tiny_detector,
        lambda: tiny_detector(masks=False),
        frozen_norms,
        second_version,
        one_level,
        tiny_retinanet,
        frozen_retinanet,
    ],
)
def test_detector_finds_what_torchvision_finds(build: Callable[[], Any], torchvision_detection: Any) -> None:  # noqa: F811
    module = build()
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    model = Model(captured(module), threads=2)
    module([as_tensor(smooth_picture(96, 128))])  # torchvision takes the levels' sizes from the first picture it sees
    assert assert_same_detections(module, model, [(90, 120), (61, 43), (200, 96), (96, 160)]) > 100
    assert all(torch.equal(tensor, state[name]) for name, tensor in module.state_dict().items())


def test_a_picture_of_one_pixel_and_a_line() -> None:
    got = Model(captured(tiny_detector())).predict([smooth_picture(1, 1), smooth_picture(3, 700)])
    assert [found["masks"].shape[1:] for found in got] == [(1, 1), (3, 700)]
    assert all(
        (found["boxes"] <= [size[1], size[0]] * 2).all() for found, size in zip(got, [(1, 1), (3, 700)], strict=True)
    )


def test_nothing_found(torchvision_detection: Any) -> None:  # noqa: F811
    model = Model(captured(tiny_detector(box_score_thresh=1.0)))
    (got,) = model.predict([smooth_picture(50, 60)])
    assert {name: value.shape for name, value in got.items()} == {
        "boxes": (0, 4),
        "labels": (0,),
        "scores": (0,),
        "masks": (0, 50, 60),
    }


def test_pictures_do_not_depend_on_each_other(tmp_path: Path) -> None:
    file = captured(tiny_detector())
    write_model(tmp_path / "detector.pqmodel", file)
    model = pyquant.load(tmp_path / "detector.pqmodel", threads=1)
    assert model.file.preprocessing == file.preprocessing
    assert model.is_detector
    pictures = [smooth_picture(*size, seed) for seed, size in enumerate(SIZES)]
    for picture, together in zip(pictures, model.predict(pictures), strict=True):
        (alone,) = model.detect([picture])
        for name, value in alone.items():
            np.testing.assert_array_equal(value, together[name])


def test_several_pictures_as_one_batch() -> None:
    file = captured(tiny_detector())
    model, preprocessing = Model(file), file.preprocessing
    assert isinstance(preprocessing, DetectorPreprocessing)
    images, sizes = (
        np.stack(x) for x in zip(*(preprocessing(smooth_picture(80, 100, s)) for s in range(3)), strict=True)
    )
    together = model(images, sizes)
    assert isinstance(together, dict)
    for i in range(3):
        alone = model(images[i : i + 1], sizes[i : i + 1])
        assert isinstance(alone, dict)
        rows = together["detections"][i * 100 : i * 100 + 100]
        assert (rows[:, 0] == np.where(alone["detections"][:, 0] == 0, i, -1)).all()
        np.testing.assert_allclose(rows[:, 1:], alone["detections"][:, 1:], rtol=0, atol=1e-3)
        np.testing.assert_allclose(together["masks"][i * 100 : i * 100 + 100], alone["masks"], rtol=0, atol=1e-4)


def test_classes_are_as_many_as_labels() -> None:
    file = captured(tiny_detector(masks=False))
    names = tuple(ClassName(folder=str(i), name=f"thing {i}") for i in range(CLASSES))
    assert loads(dumps(replace(file, classes=names)), "it").classes == names
    with pytest.raises(FormatError, match="3 classes are named, but the detector has 5, of which the first is"):
        dumps(replace(file, classes=names[:3]))


def test_preprocessing_and_network_belong_together(rng: np.random.Generator) -> None:
    from hand_made import tiny_network

    with pytest.raises(FormatError, match="expected inputs images and sizes, and output detections"):
        dumps(ModelFile(network=tiny_network(rng), preprocessing=DetectorPreprocessing(short=96, long=160)))
    with pytest.raises(InputError, match="does not hold a detector"):
        Model(ModelFile(network=tiny_network(rng))).detect([])
    with pytest.raises(InputError, match="the file holds a detector"):
        captured(tiny_detector(masks=False)).cropped  # noqa: B018


# What cannot be captured.


def changed(**parts: Any) -> Any:
    """Return a detector with other parts, by their paths with `__` for a dot."""
    module = tiny_detector()
    for path, part in parts.items():
        owner, _, name = path.replace("__", ".").rpartition(".")
        setattr(module.get_submodule(owner), name, part)
    return module


def odd_head() -> Any:
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.GELU(), torch.nn.Linear(8 * 25, 24))


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rpn__anchor_generator": torch.nn.Identity()}, "'rpn.anchor_generator' is Identity, not AnchorGenerator"),
        (
            {"roi_heads__box_roi_pool": torch.nn.Flatten()},
            "'roi_heads.box_roi_pool' is Flatten, not MultiScaleRoIAlign",
        ),
        (
            {"roi_heads__box_coder": None, "rpn__box_coder": 3},
            "'rpn.box_coder' is int.*'roi_heads.box_coder' is NoneType",
        ),
        ({"transform__fixed_size": (96, 96)}, "'transform' has a fixed_size"),
        ({"transform__max_size": 10**6}, "'transform': long must be 1 to 65,536 pixels"),
        ({"roi_heads__box_head": odd_head()}, "'roi_heads.box_head.1' .GELU.: gelu"),
        ({"roi_heads__box_roi_pool__sampling_ratio": -1}, "samples adaptively"),
        ({"roi_heads__mask_roi_pool__featmap_names": ["9"]}, r"'roi_heads.mask_roi_pool' reads \['9'\], but"),
        (
            {"rpn__anchor_generator__cell_anchors": [torch.zeros(3, 4)]},
            r"\[3\] anchors by level, but the backbone gives 4",
        ),
    ],
)
def test_unknown_parts_are_named(parts: dict[str, Any], message: str) -> None:
    with pytest.raises(CaptureError, match=message):
        capture_detector(changed(**parts))


def test_other_detectors_are_named() -> None:
    from torchvision.models import detection

    backbone = tiny_backbone()
    backbone.out_channels = 32
    module = detection.FCOS(backbone, 3)
    with pytest.raises(CaptureError, match="the network itself is FCOS, not GeneralizedRCNN or RetinaNet"):
        capture_detector(module)
