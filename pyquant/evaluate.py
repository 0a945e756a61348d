"""The accuracy of a classification network on pictures in class folders."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, TypedDict

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.classes import ClassName
from pyquant.errors import InputError
from pyquant.pictures import PictureRef, find_pictures, load_batch, match_folders, sample_pictures
from pyquant.preprocessing import Preprocessing

if TYPE_CHECKING:
    from pyquant.runtime import Model

BATCH = 8  # pictures per run: enough to fill lanes and threads, few enough that activations stay small
TOP = 5


class Accuracy(TypedDict):
    """What `evaluate` measures."""

    top1: float  # per cent
    top5: float  # per cent
    n: int  # pictures
    pictures_per_second: float


def evaluate(
    model: Model,
    data: str | os.PathLike[str],
    limit: int | None = None,
    classes: Sequence[ClassName] | None = None,
) -> Accuracy:
    """Return the accuracy of a loaded .pqmodel on the pictures below `data`.

    Args:
        model: what `pyquant.load` returned; its file says how pictures become inputs.
        data: a folder or .zip file of pictures in class folders. Folders are matched to classes by name; any subset of
            the classes will do. Where there are no names, their sorted order counts, if there are as many as outputs.
        limit: use so many pictures only, drawn from all of them, always the same.
        classes: names to use in place of those in the file.

    Raises:
        InputError: the file has no preprocessing, there is no picture, one is corrupt, or a folder is no class.
    """
    file = model.file
    names = file.classes if classes is None else classes
    return evaluate_network(model, data, file.cropped, limit=limit, classes=names)


def evaluate_network(
    network: Callable[[NDArray[np.float32]], object],
    data: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    classes: Sequence[ClassName] = (),
) -> Accuracy:
    """Return the accuracy of any function from float32 `[N, 3, H, W]` to scores `[N, classes]`, as `evaluate` does.

    The time that counts is all of it: reading, decoding and resizing a picture, and running the network.
    """
    start = perf_counter()
    right = measure_hits(network, data, preprocessing, limit=limit, classes=classes)
    top1, top5 = (100.0 * float(share) for share in right.mean(axis=0))
    seconds = perf_counter() - start
    return Accuracy(top1=top1, top5=top5, n=len(right), pictures_per_second=len(right) / seconds)


def measure_hits(
    network: Callable[[NDArray[np.float32]], object],
    data: str | os.PathLike[str],
    preprocessing: Preprocessing,
    *,
    limit: int | None = None,
    classes: Sequence[ClassName] = (),
) -> NDArray[np.bool_]:
    """Return for each picture, always in the same order, whether its class is the best one, and among the best five.

    The arguments are those of `evaluate_network`; the result is `[pictures, 2]`.
    """
    found = find_pictures(data)
    refs = found if limit is None else sample_pictures(found, limit, seed=0)
    labels: NDArray[np.int64] | None = None
    right = np.zeros((len(refs), 2), np.bool_)
    batches = [refs[i : i + BATCH] for i in range(0, len(refs), BATCH)]
    for index, batch in enumerate(console.track(batches, f"evaluating in batches of {BATCH}")):
        scores = _scores(network(load_batch(batch, preprocessing)), len(batch))
        if labels is None:
            labels = _labels(refs, found, classes, scores.shape[1])
        best = np.argsort(-scores, axis=1, kind="stable")[:, :TOP]
        rows = slice(index * BATCH, index * BATCH + len(batch))
        hits = best == labels[rows, None]
        right[rows, 0], right[rows, 1] = hits[:, 0], hits.any(axis=1)
    return right


def _scores(outputs: object, count: int) -> NDArray[np.float32]:
    scores = np.asarray(outputs)
    if scores.ndim != 2 or scores.shape[0] != count:
        what = f"shape {list(scores.shape)}" if scores.dtype != object else type(outputs).__name__
        raise InputError(f"accuracy needs one output of scores [N, classes]; this network gives {what}")
    return scores


def _labels(
    refs: Sequence[PictureRef], found: Sequence[PictureRef], classes: Sequence[ClassName], num_outputs: int
) -> NDArray[np.int64]:
    """Return the class of each picture; folders are matched among all that were found, whether used or not."""
    if classes and len(classes) != num_outputs:
        raise InputError(f"{len(classes)} class names do not fit a network with {num_outputs} outputs")
    index = match_folders({ref.folder for ref in found}, classes, num_outputs)
    return np.array([index[ref.folder] for ref in refs])
