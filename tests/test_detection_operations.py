"""The operations of detectors: native, reference and PyTorch's, against torchvision, and on degenerate input."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file
from numpy.typing import NDArray
from torchvision_detection import torchvision_detection  # noqa: F401 (a fixture)

from pyquant import reference
from pyquant.errors import InputError
from pyquant.graph import Node
from pyquant.runtime import Model

torch = pytest.importorskip("torch")

F32 = NDArray[np.float32]
LOG_SCALE = float(np.log(1000 / 16))
# Boxes are sums and products of a few numbers of up to a thousand pixels, in float32 or float64.
PIXELS = 1e-3
SCORES = 1e-5


def layer(op: str, *inputs: F32, **attributes: Any) -> Node:
    names = ("x", *(f"x{i}" for i in range(1, len(inputs))))
    return Node(op=op, name="layer", inputs=names, outputs=("y",), attributes=attributes)


def results(node: Node, *inputs: F32) -> list[F32]:
    """Return what the reference, PyTorch's network and the native core, with one thread and three, make of inputs."""
    from pyquant.torch_network import TorchNetwork

    file = model_file([node], {}, *(x.shape for x in inputs))
    (expected,) = reference.run(file.network, *inputs).values()
    with torch.no_grad():
        by_torch = TorchNetwork(file.network)(*map(torch.from_numpy, inputs)).numpy()
    native = [np.asarray(Model(file, threads=threads)(*inputs)) for threads in (1, 3)]
    np.testing.assert_array_equal(*native)
    return [expected, by_torch, native[0]]


def rows_of(boxes: list[list[float]], image: int = 0, unused: int = 0) -> F32:
    """Return rows of boxes of one image, and some that are not used."""
    rows = [[image, *box] for box in boxes] + [[-1.0, 0, 0, 0, 0]] * unused
    return np.array(rows, np.float32)


# Proposals.


def heads(rng: np.random.Generator, images: int, planes: list[tuple[int, int]], spread: float = 0.5) -> list[F32]:
    """Return objectness and numbers of a region proposal head with three anchors."""
    objectness = [rng.standard_normal((images, 3, *plane)).astype(np.float32) for plane in planes]
    numbers = [(spread * rng.standard_normal((images, 12, *plane))).astype(np.float32) for plane in planes]
    return objectness + numbers


def anchor_generator(levels: int) -> Any:
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    return AnchorGenerator(tuple((8 * 2**level,) for level in range(levels)), ((0.5, 1.0, 2.0),) * levels)


def proposal_layer(inputs: list[F32], **changes: Any) -> Node:
    anchors = torch.cat(anchor_generator((len(inputs) - 2) // 2).cell_anchors)
    attributes: dict[str, Any] = {
        "anchors": tuple(anchors.ravel().tolist()),
        "best": 40,
        "keep": 30,
        "max_overlap": 0.7,
        "min_score": 0.0,
        "min_side": 1e-3,
        "box_weights": (1.0, 1.0, 1.0, 1.0),
        "max_log_scale": LOG_SCALE,
        **changes,
    }
    return layer("proposals", *inputs, **attributes)


def torchvision_proposals(inputs: list[F32], node: Node) -> list[Any]:
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import RegionProposalNetwork

    images, sizes, *maps = map(torch.from_numpy, inputs)
    levels = len(maps) // 2
    a = node.attributes
    network = RegionProposalNetwork(
        anchor_generator(levels),
        lambda features: (maps[:levels], maps[levels:]),
        0.7,
        0.3,
        1,
        0.5,
        {"testing": a["best"]},
        {"testing": a["keep"]},
        a["max_overlap"],
        a["min_score"],
    ).eval()
    features = OrderedDict((str(i), m) for i, m in enumerate(maps[:levels]))
    boxes, _ = network(ImageList(images, [tuple(size) for size in sizes.int().tolist()]), features)
    return list(boxes)


@pytest.mark.parametrize(
    ("images", "size", "planes", "changes"),
    [
        (2, (64, 96), [(16, 24), (8, 12), (4, 6)], {}),
        (1, (64, 96), [(16, 24), (8, 12)], {"best": 2**31 - 1, "keep": 1000}),  # more than there are
        (1, (64, 96), [(16, 24)], {"keep": 1}),
        (2, (64, 96), [(16, 24), (4, 6)], {"min_score": 0.6}),
        (2, (64, 96), [(16, 24), (4, 6)], {"min_score": 1.5}),  # none
        (1, (32, 1344), [(8, 336), (1, 42)], {"max_overlap": 0.3}),
        (3, (32, 32), [(1, 1)], {"best": 2}),
        (1, (64, 96), [(16, 24)], {"max_overlap": 0.0, "keep": 200}),
    ],
)
def test_proposals(
    images: int,
    size: tuple[int, int],
    planes: list[tuple[int, int]],
    changes: dict[str, Any],
    rng: np.random.Generator,
    torchvision_detection: Any,  # noqa: F811
) -> None:
    sizes = np.array([[size[0] - 5 * i, size[1] - 7 * i] for i in range(images)], np.float32)
    inputs = [np.zeros((images, 3, *size), np.float32), sizes, *heads(rng, images, planes)]
    node = proposal_layer(inputs, **changes)
    expected = torchvision_proposals(inputs, node)
    keep = node.attributes["keep"]
    for got in results(node, *inputs):
        for image, boxes in enumerate(expected):
            rows = got[image * keep : (image + 1) * keep]
            assert (rows[:, 0] == image).sum() == len(boxes)
            np.testing.assert_allclose(rows[: len(boxes), 1:], boxes.numpy(), rtol=0, atol=PIXELS)
            assert (rows[len(boxes) :, 0] == -1).all()


def test_proposals_of_equal_scores_keep_their_order(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 32, np.float32), *heads(rng, 1, [(8, 8), (4, 4)])]
    inputs[2:4] = [np.zeros_like(x) for x in inputs[2:4]]
    expected, *others = results(proposal_layer(inputs, best=20, keep=25), *inputs)
    for got in others:
        np.testing.assert_allclose(got, expected, rtol=0, atol=PIXELS)


def test_numbers_without_bounds_give_boxes_in_the_picture(rng: np.random.Generator) -> None:
    inputs = [np.zeros((1, 3, 32, 32), np.float32), np.full((1, 2), 30, np.float32), *heads(rng, 1, [(8, 8)], 1e20)]
    inputs[2][0, 0, :2] = np.nan
    inputs[3][0, 5, 3:5] = np.inf
    inputs[3][0, 6, 3:5] = np.nan
    got = results(proposal_layer(inputs), *inputs)[-1]
    used = got[got[:, 0] == 0, 1:]
    assert np.isfinite(used).all()
    assert (used >= 0).all()
    assert (used <= 30).all()


# RoIAlign.


def pyramid(rng: np.random.Generator, images: int, size: tuple[int, int], levels: int) -> list[F32]:
    """Return images of `size` and features of pyramid levels, the first a quarter as large."""
    maps = [(size[0] >> (2 + level), size[1] >> (2 + level)) for level in range(levels)]
    features = [rng.standard_normal((images, 5, *plane)).astype(np.float32) for plane in maps]
    return [np.zeros((images, 3, *size), np.float32), *features]


def torchvision_roi_align(images: F32, features: list[F32], rows: F32, node: Node) -> Any:
    from torchvision.ops import MultiScaleRoIAlign

    names = [str(i) for i in range(len(features))]
    a = node.attributes
    align = MultiScaleRoIAlign(
        names,
        a["output_size"],
        a["samples"],
        canonical_scale=a["canonical_side"],
        canonical_level=a["canonical_level"],
    )
    maps = OrderedDict((name, torch.from_numpy(f)) for name, f in zip(names, features, strict=True))
    boxes = [torch.from_numpy(rows[rows[:, 0] == image, 1:5]) for image in range(len(images))]
    return align(maps, boxes, [images.shape[2:]] * len(images))


def random_boxes(rng: np.random.Generator, count: int, size: tuple[int, int]) -> list[list[float]]:
    """Return boxes of all sizes, some beyond the picture's edges."""
    centres = rng.uniform(-0.1, 1.1, (count, 2)) * size[::-1]
    sides = np.exp(rng.uniform(np.log(2), np.log(max(size)), (count, 2)))
    corners: list[list[float]] = np.concatenate([centres - sides / 2, centres + sides / 2], axis=1).tolist()
    return corners


@pytest.mark.parametrize(
    ("images", "size", "levels", "attributes"),
    [
        (2, (128, 192), 4, {"output_size": (7, 7), "samples": 2}),
        (1, (128, 192), 4, {"output_size": (14, 14), "samples": 2, "canonical_side": 60}),
        (1, (32, 320), 2, {"output_size": (3, 5), "samples": 1, "canonical_level": 2}),
        (3, (64, 64), 1, {"output_size": (2, 2), "samples": 3}),
    ],
)
def test_roi_align(
    images: int,
    size: tuple[int, int],
    levels: int,
    attributes: dict[str, Any],
    rng: np.random.Generator,
    torchvision_detection: Any,  # noqa: F811
) -> None:
    pictures, *features = pyramid(rng, images, size, levels)
    rows = np.concatenate([rows_of(random_boxes(rng, 20, size), image) for image in range(images)])
    node = layer("roi_align", pictures, rows, *features, **attributes)
    expected = torchvision_roi_align(pictures, features, rows, node).numpy()
    for got in results(node, pictures, rows, *features):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_roi_align_of_odd_boxes(rng: np.random.Generator, torchvision_detection: Any) -> None:  # noqa: F811
    pictures, features = pyramid(rng, 1, (64, 96), 1)
    rows = rows_of([[5, 5, 5, 9], [7, 8, 7, 8], [30, 40, 10, 20]])  # empty, a point, inverted
    node = layer("roi_align", pictures, rows, features, output_size=(3, 3), samples=2)
    expected = torchvision_roi_align(pictures, [features], rows, node).numpy()
    for got in results(node, pictures, rows, features):
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4)


def test_points_outside_count_nothing(rng: np.random.Generator) -> None:
    pictures, features = pyramid(rng, 1, (64, 96), 1)
    features[:] = 1
    rows = rows_of([[-50, -60, -20, -30], [200, 200, 230, 260], [-1e9, -1e9, 1e9, 1e9], [-24, 0, 24, 64]])
    node = layer("roi_align", pictures, rows, features, output_size=(2, 4), samples=3)
    for got in results(node, pictures, rows, features):
        assert not got[:3].any()
        # Columns of 3 pixels from -6 on; of the second, from -3 to 0, the points -2.5, -1.5 and -0.5.
        np.testing.assert_allclose(got[3, 0, 0], [0, 1 / 3, 1, 1], rtol=0, atol=1e-5)


def test_roi_align_of_rows_that_mean_nothing_is_zero(rng: np.random.Generator) -> None:
    pictures, *features = pyramid(rng, 1, (64, 64), 2)
    rows = rows_of([[0, 0, 20, 20]] * 6, unused=1)
    rows[1:6, 0] = [np.nan, np.inf, 1, -0.5, 1e30]
    node = layer("roi_align", pictures, rows, *features, output_size=(2, 2), samples=2)
    for got in results(node, pictures, rows, *features):
        assert got[0].any()
        assert not got[1:].any()
    rows[:, 0], rows[:, 1:] = 0, np.nan
    file = model_file([node], {}, pictures.shape, rows.shape, *(f.shape for f in features))
    assert not np.asarray(Model(file)(pictures, rows, *features)).any()


# Detections and masks.


def detection_layer(inputs: list[F32], **changes: Any) -> Node:
    attributes: dict[str, Any] = {
        "keep": 20,
        "max_overlap": 0.5,
        "min_score": 0.05,
        "min_side": 1e-2,
        "box_weights": (10.0, 10.0, 5.0, 5.0),
        "max_log_scale": LOG_SCALE,
        **changes,
    }
    return layer("detections", *inputs, **attributes)


def torchvision_detections(inputs: list[F32], node: Node) -> tuple[list[Any], list[Any], list[Any]]:
    from torchvision.models.detection.roi_heads import RoIHeads

    sizes, rows, logits, numbers = inputs
    a = node.attributes
    module = RoIHeads(
        None, None, None, 0.5, 0.5, 1, 0.5, a["box_weights"], a["min_score"], a["max_overlap"], a["keep"]
    ).eval()
    used = rows[:, 0] >= 0
    proposals = [torch.from_numpy(rows[rows[:, 0] == image, 1:5]) for image in range(len(sizes))]
    heads_of = [torch.from_numpy(x[used]) for x in (logits, numbers)]
    result: tuple[list[Any], list[Any], list[Any]] = module.postprocess_detections(
        *heads_of, proposals, [tuple(size) for size in sizes.astype(int).tolist()]
    )
    return result


@pytest.mark.parametrize(
    ("images", "boxes", "unused", "classes", "changes"),
    [
        (2, 30, 4, 5, {}),
        (1, 30, 0, 2, {"keep": 100}),
        (1, 40, 3, 91, {"min_score": 0.0, "keep": 300}),
        (1, 1, 5, 3, {"min_score": 0.0}),
        (1, 30, 0, 5, {"keep": 1}),
        (2, 10, 0, 4, {"min_score": 1.0}),  # none
        (1, 30, 0, 3, {"max_overlap": 0.0, "box_weights": (1.0, 2.0, 3.0, 4.0)}),
    ],
)
def test_detections(
    images: int,
    boxes: int,
    unused: int,
    classes: int,
    changes: dict[str, Any],
    rng: np.random.Generator,
    torchvision_detection: Any,  # noqa: F811
) -> None:
    size = (100, 140)
    sizes = np.array([[size[0] - 9 * i, size[1] - 30 * i] for i in range(images)], np.float32)
    rows = np.concatenate([rows_of(random_boxes(rng, boxes, size), image, unused) for image in range(images)])
    logits = (2 * rng.standard_normal((len(rows), classes))).astype(np.float32)
    numbers = rng.standard_normal((len(rows), classes * 4)).astype(np.float32)
    inputs = [sizes, rows, logits, numbers]
    node = detection_layer(inputs, **changes)
    keep = node.attributes["keep"]
    expected = torchvision_detections(inputs, node)
    for got in results(node, *inputs):
        for image, (found, scores, labels) in enumerate(zip(*expected, strict=True)):
            of_image = got[image * keep : (image + 1) * keep]
            own, rest = of_image[: len(found)], of_image[len(found) :]
            assert (own[:, 0] == image).all()
            assert (rest[:, 0] == -1).all()
            np.testing.assert_array_equal(own[:, 6], labels.numpy())
            np.testing.assert_allclose(own[:, 1:5], found.numpy(), rtol=0, atol=PIXELS)
            np.testing.assert_allclose(own[:, 5], scores.numpy(), rtol=0, atol=SCORES)


def test_detections_without_proposals_or_with_equal_ones() -> None:
    sizes = np.array([[50, 50]], np.float32)
    logits, numbers = np.zeros((6, 4), np.float32), np.zeros((6, 16), np.float32)
    nothing = [sizes, rows_of([], unused=6), logits, numbers]
    for got in results(detection_layer(nothing), *nothing):
        assert (got[:, 0] == -1).all()
    same = [sizes, rows_of([[10, 10, 20, 20]] * 6), logits, numbers]
    for got in results(detection_layer(same), *same):
        assert got[got[:, 0] == 0, 6].tolist() == [1, 2, 3]  # one of each class
    shapeless = [
        sizes,
        rows_of([[10, 10, 10, 20], [30, 30, 20, 40], [60, 10, 70, 20], *[[0, 0, 0, 0]] * 3]),
        logits,
        numbers,
    ]
    for got in results(detection_layer(shapeless), *shapeless):
        assert (got[:, 0] == -1).all()


def test_detections_pass_over_what_is_not_a_number() -> None:
    sizes = np.array([[50, 50]], np.float32)
    inputs = [
        sizes,
        rows_of([[0, 0, 9, 9], [20, 20, 40, 40]]),
        np.zeros((2, 3), np.float32),
        np.zeros((2, 12), np.float32),
    ]
    inputs[2][0] = np.nan
    inputs[3][1, 4:8] = np.nan
    got = np.asarray(Model(model_file([detection_layer(inputs)], {}, *(x.shape for x in inputs)))(*inputs))
    assert got[got[:, 0] == 0, 6].tolist() == [2]


def test_select_masks(rng: np.random.Generator, torchvision_detection: Any) -> None:  # noqa: F811
    from torchvision.models.detection.roi_heads import maskrcnn_inference

    logits = (20 * rng.standard_normal((6, 4, 5, 7))).astype(np.float32)
    rows = np.zeros((6, 7), np.float32)
    rows[:, 6] = [1, 3, 2, 0, 4, np.nan]
    expected = maskrcnn_inference(torch.from_numpy(logits[:3]), [torch.tensor([1, 3, 2])])[0][:, 0].numpy()
    for got in results(layer("select_masks", logits, rows), logits, rows):
        np.testing.assert_allclose(got[:3], expected, rtol=0, atol=1e-6)
        assert not got[4:].any()  # no class is called so
    rows[:, 0] = -1
    for got in results(layer("select_masks", logits, rows), logits, rows):
        assert not got.any()


@pytest.mark.parametrize(
    ("op", "shapes", "attributes", "message"),
    [
        ("proposals", [(1, 3, 8, 8), (1, 2), (1, 3, 2, 2)], {}, "images .* sizes .* objectness and numbers"),
        (
            "proposals",
            [(1, 3, 8, 8), (1, 2), (1, 2, 2, 2), (1, 8, 2, 2)],
            {},
            r"expected \[1, 3, h, w\] for 12 numbers",
        ),
        ("proposals", [(1, 3, 8, 8), (1, 2), (1, 3, 2, 2), (1, 9, 2, 2)], {}, r"expected \[1, 12, 2, 2\]"),
        ("roi_align", [(1, 3, 8, 8), (4, 3), (1, 5, 2, 2)], {"output_size": (2, 2), "samples": 1}, "rows of boxes"),
        ("roi_align", [(1, 3, 8, 8), (4, 5)], {"output_size": (2, 2), "samples": 1}, "features"),
        ("detections", [(2, 2), (5, 5), (5, 3), (5, 12)], {}, "a multiple of 2"),
        ("detections", [(1, 2), (5, 5), (5, 1), (5, 4)], {}, "two classes or more"),
        ("detections", [(1, 2), (5, 5), (5, 3), (5, 4)], {}, r"expected \[5, 12\]"),
        ("select_masks", [(5, 3, 4, 4), (4, 7)], {}, r"detections \[R, 7\]"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(
    op: str, shapes: list[tuple[int, ...]], attributes: dict[str, Any], message: str
) -> None:
    inputs = [np.zeros(shape, np.float32) for shape in shapes]
    boxes = {"keep": 1, "max_overlap": 0.5, "min_score": 0.0, "min_side": 0.0, "box_weights": (1.0,) * 4}
    if op in ("proposals", "detections"):
        attributes = {
            **boxes,
            "max_log_scale": 4.0,
            **({"best": 1, "anchors": (0.0,) * 12} if op == "proposals" else {}),
        }
    with pytest.raises(InputError, match=message):
        model_file([layer(op, *inputs, **attributes)], {}, *shapes).network.graph.infer_shapes(shapes)
