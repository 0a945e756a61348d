"""The average precision of a detector on pictures with COCO annotations."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.annotations import Annotations, read_annotations
from pyquant.detector import label_count
from pyquant.errors import ConfigError, InputError, MissingDependencyError
from pyquant.masks import to_coco
from pyquant.pictures import PictureRef, find_pictures
from pyquant.storage import AnyPath

if TYPE_CHECKING:
    from pyquant.runtime import Model

Found = dict[str, NDArray[Any]]
PRECISIONS = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")  # in the order of COCO's tools
AGAINST = {"box": "bbox", "mask": "segm"}  # what overlaps, as COCO's tools call it


class AveragePrecision(TypedDict):
    """What `evaluate_detector` measures: per cent by the names in `PRECISIONS`.

    A figure is None where nothing of that size is annotated. `ap` is the mean over overlaps of 0.5 to 0.95; small is
    below 32 x 32 pixels, large from 96 x 96 on.
    """

    box: dict[str, float | None]
    mask: dict[str, float | None] | None  # None: the network finds no masks
    n: int  # pictures
    detections: int
    pictures_per_second: float


def evaluate_detector(model: Model, data: AnyPath, annotations: AnyPath, limit: int | None = None) -> AveragePrecision:
    """Return the average precision of a loaded detector, by faster-coco-eval, or else by pycocotools.

    The network's labels are COCO's category ids: class 1 is category 1, whatever the two are called. All that the
    network finds counts, however low its score; of a picture the best 100.

    Args:
        model: what `pyquant.load` returned.
        data: a folder or .zip file with the pictures, found by their `file_name`, in whatever folders.
        annotations: a JSON file, as `pyquant.annotations.read_annotations` takes it.
        limit: use so many pictures only, drawn from all of them, always the same.

    Raises:
        ConfigError: the network is not a detector.
        InputError: the annotations or pictures are not as they should be; of pictures that cannot be read or have
            another size than annotated, when their turn comes.
        MissingDependencyError: neither library is installed.
    """
    if not model.is_detector:
        raise ConfigError("annotations are for detectors; this file holds a network that names the whole picture")
    return evaluate_finder(
        lambda pixels: model.detect([pixels])[0],
        data,
        annotations,
        with_masks=len(model.outputs) > 1,
        num_classes=label_count(model.file.network.graph),
        limit=limit,
    )


def evaluate_finder(
    find: Callable[[NDArray[np.uint8]], Found],
    data: AnyPath,
    annotations: AnyPath,
    *,
    with_masks: bool,
    num_classes: int | None = None,
    limit: int | None = None,
) -> AveragePrecision:
    """Return the average precision of any function that finds things in pictures, as `evaluate_detector` does.

    Args:
        find: takes the pixels of a picture, uint8 `[H, W, 3]`, and returns what `Model.detect` returns for it.
        data: as for `evaluate_detector`, and so are annotations and limit.
        annotations: those.
        with_masks: it finds masks too.
        num_classes: how many labels there are, the background among them; None: any.
        limit: so many pictures.
    """
    make_index, make_evaluator = coco_tools()
    known = read_annotations(annotations, with_masks=with_masks)
    if num_classes is not None:
        known.check_labels(num_classes)
    refs = known.pictures(find_pictures(data))
    order = range(len(refs)) if limit is None else sorted(np.random.default_rng(0).permutation(len(refs))[:limit])
    chosen = [(known.images[i], refs[i]) for i in order]
    start = perf_counter()
    results: list[dict[str, Any]] = []
    for image, ref in console.track(chosen, "finding"):
        results += as_results(int(image["id"]), find(_open(image, ref, known)))
    seconds = perf_counter() - start
    images = [image for image, _ in chosen]
    figures = {
        kind: _precisions(make_index, make_evaluator, known, images, results, against)
        for kind, against in AGAINST.items()
        if kind == "box" or with_masks
    }
    return AveragePrecision(
        box=figures["box"],
        mask=figures.get("mask"),
        n=len(chosen),
        detections=len(results),
        pictures_per_second=len(chosen) / seconds,
    )


def coco_tools() -> tuple[Callable[[], Any], Callable[..., Any]]:
    """Return the classes of COCO's annotations and of their evaluation.

    Raises:
        MissingDependencyError: neither library is installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster

        return COCO, COCOeval_faster
    except ImportError:
        pass
    try:
        from pycocotools.coco import COCO as PlainCOCO
        from pycocotools.cocoeval import COCOeval

        return PlainCOCO, COCOeval
    except ImportError as error:
        raise MissingDependencyError(
            "average precision needs faster-coco-eval, or pycocotools: pip install 'pyquant-codec[coco]'"
        ) from error


def as_results(image_id: int, found: Found) -> list[dict[str, Any]]:
    """Return what was found in one picture in COCO's format of results; `areas` are those of each kind of overlap."""
    boxes = found["boxes"].astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    results = []
    for i, (box, label, score) in enumerate(zip(boxes, found["labels"], found["scores"], strict=True)):
        result: dict[str, Any] = {"image_id": image_id, "category_id": int(label), "score": float(score)}
        result |= {"bbox": box.tolist(), "areas": {"bbox": float(box[2] * box[3])}}
        if "masks" in found:
            result["segmentation"] = to_coco(found["masks"][i])
            result["areas"]["segm"] = int(found["masks"][i].sum())
        results.append(result)
    return results


def _open(image: Any, ref: PictureRef, known: Annotations) -> NDArray[np.uint8]:
    pixels = ref.open()
    height, width = pixels.shape[:2]
    annotated = image["height"], image["width"]
    if annotated != (height, width):
        raise InputError(
            f"{ref}: has {height} x {width} pixels; {known.source} says {annotated[0]} x {annotated[1]} of image "
            f"{image['id']}"
        )
    return pixels


def _precisions(
    make_index: Callable[[], Any],
    make_evaluator: Callable[..., Any],
    known: Annotations,
    images: Sequence[Any],
    results: Sequence[dict[str, Any]],
    against: str,
) -> dict[str, float | None]:
    """Return the figures of one kind of overlap, in per cent."""
    ids = {image["id"] for image in images}
    truth = [dict(annotation) for annotation in known.annotations if annotation["image_id"] in ids]
    # By its area a detection counts as small or large.
    found = [{**result, "id": i, "area": result["areas"][against], "iscrowd": 0} for i, result in enumerate(results, 1)]
    with contextlib.redirect_stdout(io.StringIO()):
        indices = []
        for annotations in (truth, found):
            index = make_index()
            index.dataset = {"images": images, "annotations": annotations, "categories": list(known.categories)}
            index.createIndex()
            indices.append(index)
        evaluator = make_evaluator(*indices, against)
        for step in (evaluator.evaluate, evaluator.accumulate, evaluator.summarize):
            step()
    shares = [float(share) for share in evaluator.stats[: len(PRECISIONS)]]
    return {name: None if share < 0 else 100 * share for name, share in zip(PRECISIONS, shares, strict=True)}
