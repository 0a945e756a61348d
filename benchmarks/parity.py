"""Compares what a dense detector finds in our runtime with what torchvision finds, and explains each difference.

    python benchmarks/parity.py PICTURES --backbone resnet50.pqmodel [--weights detector.safetensors] [--count 50]

PICTURES is a folder or zip file; those drawn are scaled to sides that vary. The detector is that of train_detector.py:
with its trained weights, or without `--weights` the backbone with random heads, which find hundreds of things that are
none. A detection is matched by one of the other side with the same label, each side of the box within 0.1 pixel, the
score within 1e-3 and masks that overlap by 0.99. Every other one must lie within 1e-4 of a threshold or a tie:

    score       of the least score that counts
    kept        of the last score that is kept
    overlap     with another box of its class (or level, of proposals), of the largest overlap permitted
    tie         a box of its class that overlaps it has the same score
    level       the size at which boxes are resampled from another level of the pyramid
    pixel       a corner of the mask's box on a whole pixel, where masks begin, or a probability of one half
    follows     it overlaps another that has been explained

Exit code 1: fewer than 99.5 % match, or one is not explained.
"""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision_ready import make_ready
from train_detector import detector, load_backbone

from pyquant import console
from pyquant.capture import capture_detector
from pyquant.file import ModelFile
from pyquant.models import read_weights
from pyquant.pictures import find_pictures, sample_pictures
from pyquant.runtime import Model

PIXELS, SCORE, OVERLAP = 0.1, 1e-3, 0.99  # within which two detections are the same
NEAR = 1e-4  # of a threshold or tie
LEAST_MATCHED = 0.995
SIDES = (200, 480)  # pixels of the scaled pictures
RANDOM_HEADS: dict[str, Any] = {
    "box_score_thresh": 0.01,
    "box_detections_per_img": 250,
    "rpn_post_nms_top_n_test": 300,
    "rpn_pre_nms_top_n_test": 600,
}
SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Boxes:
    """Boxes `[B, 4]` in pixels of the input, with scores `[B]` and what they compete within: a class, or a level."""

    boxes: NDArray[np.float64]
    scores: NDArray[np.float64]
    groups: NDArray[np.int64]
    sources: NDArray[np.int64]  # of each box the proposal it was made of


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """What one side found in one picture, and what it chose from."""

    found: dict[str, NDArray[Any]]
    proposals: NDArray[np.float64]
    candidates: Boxes


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """How boxes are chosen: by score, overlap and number."""

    min_score: float
    max_overlap: float
    last_score: float  # that is kept, where the number is reached; else 0


@click.command()
@click.argument("pictures", type=click.Path(exists=True, path_type=Path))
@click.option("--backbone", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--count", default=50, show_default=True, type=click.IntRange(min=1))
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
def main(pictures: Path, backbone: Path | None, weights: Path | None, count: int, threads: int) -> None:
    """Compare, print the table, and say whether all differences are explained."""
    if (backbone is None) == (weights is None):
        raise click.UsageError("give either --weights or --backbone")
    console.enable()
    torch.set_num_threads(threads)
    torch.manual_seed(SEED)
    make_ready(for_training=False)
    module: Any = detector(**({} if weights else RANDOM_HEADS)).eval()
    if weights:
        module.load_state_dict(read_weights(weights))
    else:
        load_backbone(module, backbone)  # type: ignore[arg-type]
    counts = compare(module, varied(pictures, count), threads)
    sys.exit(0 if report(counts) else 1)


def varied(pictures: Path, count: int) -> list[NDArray[np.uint8]]:
    """Return pictures scaled to sides drawn at random, wide ones and high ones."""
    rng = np.random.default_rng(SEED)
    sizes = rng.integers(SIDES[0], SIDES[1] + 1, (count, 2))
    refs = sample_pictures(find_pictures(pictures), count, seed=SEED)
    return [
        np.asarray(Image.fromarray(ref.open()).resize((int(width), int(height)), Image.Resampling.BICUBIC))
        for ref, (width, height) in zip(refs, sizes, strict=False)
    ]


def compare(module: Any, pictures: list[NDArray[np.uint8]], threads: int) -> Counter[str]:
    """Return how many detections there are, how many match, and how many others by what explains them."""
    network, preprocessing = capture_detector(module)
    (choice,) = (node for node in network.graph.nodes if node.op == "detections")
    inner = choice.inputs[1:4]  # proposals, logits, numbers
    file = ModelFile(network=network, preprocessing=preprocessing)
    graph = replace(network.graph, outputs=inner)
    ours = Model(file, threads=threads)
    within = Model(replace(file, network=replace(network, graph=graph)), threads=threads)
    counts: Counter[str] = Counter()
    for pixels in console.track(pictures, "comparing"):
        image, size = preprocessing(pixels)
        rows, logits, numbers = within(image[None], size[None]).values()  # type: ignore[union-attr]
        used = rows[:, 0] >= 0
        parts = (torch.from_numpy(array[used]) for array in (logits, numbers, rows[:, 1:5]))
        mine = Side(
            found=ours.detect([pixels])[0],
            proposals=rows[used, 1:5].astype(np.float64),
            candidates=candidates(module, *parts, (int(size[0]), int(size[1]))),
        )
        theirs, regions = by_torchvision(module, pixels)
        counts += differences(module, theirs, mine, regions, size / np.array(pixels.shape[:2]))
        console.note(f"{pixels.shape[0]} x {pixels.shape[1]}: in all {dict(counts)}")
    return counts


@torch.inference_mode()
def by_torchvision(module: Any, pixels: NDArray[np.uint8]) -> tuple[Side, Boxes]:
    """Return what torchvision finds in one picture, and all regions that its proposals were chosen from."""
    kept: dict[str, Any] = {}
    choose, finish = module.rpn.filter_proposals, module.roi_heads.postprocess_detections

    def keep_regions(boxes: Tensor, objectness: Tensor, shapes: Any, per_level: list[int]) -> Any:
        levels = np.repeat(np.arange(len(per_level)), per_level)
        clipped = clip(boxes[0], shapes[0])
        scores = torch.sigmoid(objectness.reshape(-1)).double().numpy()
        kept["regions"] = Boxes(boxes=clipped, scores=scores, groups=levels, sources=np.arange(len(levels)))
        return choose(boxes, objectness, shapes, per_level)

    def keep_candidates(logits: Tensor, numbers: Tensor, proposals: list[Tensor], shapes: Any) -> Any:
        kept["proposals"] = proposals[0].double().numpy()
        kept["candidates"] = candidates(module, logits, numbers, proposals[0], shapes[0])
        return finish(logits, numbers, proposals, shapes)

    for pool in (module.roi_heads.box_roi_pool, module.roi_heads.mask_roi_pool):
        pool.scales = pool.map_levels = None  # it would keep those of the first picture
    module.rpn.filter_proposals, module.roi_heads.postprocess_detections = keep_regions, keep_candidates
    try:
        (found,) = module([torch.from_numpy(pixels.copy()).permute(2, 0, 1) / 255])
    finally:
        del module.rpn.filter_proposals, module.roi_heads.postprocess_detections
    arrays = {name: value.numpy() for name, value in found.items()}
    arrays["masks"] = arrays["masks"][:, 0]
    return Side(found=arrays, proposals=kept["proposals"], candidates=kept["candidates"]), kept["regions"]


def candidates(module: Any, logits: Tensor, numbers: Tensor, proposals: Tensor, shape: tuple[int, int]) -> Boxes:
    """Return every box of every class that a box head makes of proposals."""
    boxes = module.roi_heads.box_coder.decode(numbers, [proposals])[:, 1:]
    scores = torch.softmax(logits, -1)[:, 1:].double().numpy()
    rows, classes = scores.shape
    return Boxes(
        boxes=clip(boxes.reshape(-1, 4), shape),
        scores=scores.reshape(-1),
        groups=np.tile(np.arange(1, classes + 1), rows),
        sources=np.repeat(np.arange(rows), classes),
    )


def clip(boxes: Tensor, shape: tuple[int, int]) -> NDArray[np.float64]:
    height, width = shape
    return boxes.double().numpy().clip(0, [width, height, width, height])


def differences(module: Any, theirs: Side, mine: Side, regions: Boxes, scale: NDArray[np.floating]) -> Counter[str]:
    """Return the counts of one picture; `scale` is the input's height and width over the picture's."""
    pairs = matches(theirs.found, mine.found)
    counts = Counter(detections=len(theirs.found["labels"]), matched=len(pairs))
    heads = module.roi_heads
    full = len(theirs.found["scores"]) == heads.detections_per_img
    last = float(theirs.found["scores"][-1]) if full else 0.0
    choice = Choice(min_score=heads.score_thresh, max_overlap=heads.nms_thresh, last_score=last)
    explained: list[tuple[int, NDArray[np.float64]]] = []
    across = np.array([scale[1], scale[0]] * 2)
    open_cases: list[tuple[Side, Side, int]] = [
        (side, other, i)
        for side, other, known in (
            (theirs, mine, {a for a, _ in pairs}),
            (mine, theirs, {b for _, b in pairs}),
        )
        for i in range(len(side.found["labels"]))
        if i not in known
    ]
    for side, other, i in open_cases:
        label, box = int(side.found["labels"][i]), side.found["boxes"][i] * across
        reason = why(module, side, other, i, box, regions, choice)
        if not reason and any(label == group and overlaps(box, one[None])[0] > 0 for group, one in explained):
            reason = "follows"
        if reason:
            explained.append((label, box))
        counts[reason or "unexplained"] += 1
    return counts


def matches(theirs: dict[str, NDArray[Any]], mine: dict[str, NDArray[Any]]) -> list[tuple[int, int]]:
    """Return pairs of detections that are the same."""
    pairs: list[tuple[int, int]] = []
    free = set(range(len(mine["labels"])))
    for i, label in enumerate(theirs["labels"]):
        near = [
            j
            for j in sorted(free)
            if mine["labels"][j] == label
            and abs(mine["scores"][j] - theirs["scores"][i]) <= SCORE
            and np.abs(mine["boxes"][j] - theirs["boxes"][i]).max() <= PIXELS
            and mask_overlap(theirs["masks"][i] > 0.5, mine["masks"][j]) >= OVERLAP
        ]
        if near:
            best = min(near, key=lambda j: float(np.abs(mine["boxes"][j] - theirs["boxes"][i]).max()))
            pairs.append((i, best))
            free.discard(best)
    return pairs


def mask_overlap(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    return float((a & b).sum() / max((a | b).sum(), 1)) if (a | b).any() else 1.0


def why(module: Any, side: Side, other: Side, i: int, box: NDArray[np.float64], regions: Boxes, choice: Choice) -> str:
    """Return what explains that a detection of one side is not among the other's, or an empty text."""
    label, score = int(side.found["labels"][i]), float(side.found["scores"][i])
    same = (other.found["labels"] == label) & (np.abs(other.found["boxes"] - side.found["boxes"][i]).max(1) <= PIXELS)
    if len(twins := np.flatnonzero(same & (np.abs(other.found["scores"] - score) <= SCORE))):
        return "pixel" if near_pixel(side.found, i, other.found["masks"][twins[0]]) else ""
    own = np.flatnonzero(side.candidates.groups == label)
    source = own[np.abs(side.candidates.boxes[own] - box).max(1).argmin()]
    proposal = side.proposals[side.candidates.sources[source]]
    if len(other.proposals) and np.abs(other.proposals - proposal).max(1).min() <= PIXELS:
        if near_level(proposal):
            return "level"
        return by_choice(box, score, label, side.candidates, choice)
    # The other side has another proposal in its place.
    nearest = int(np.abs(regions.boxes - proposal).max(1).argmin())
    least = min(float(regions.scores[nearest]), 1.0)
    rpn = module.rpn
    proposals = Choice(min_score=rpn.score_thresh, max_overlap=rpn.nms_thresh, last_score=least_kept(regions, side))
    group = int(regions.groups[nearest])
    of_level = np.sort(regions.scores[regions.groups == group])[::-1]
    best = rpn.pre_nms_top_n()
    if len(of_level) > best and abs(of_level[best - 1] - least) < NEAR:
        return "kept"
    return by_choice(regions.boxes[nearest], least, group, regions, proposals)


def least_kept(regions: Boxes, side: Side) -> float:
    """Return the objectness of the last proposal that was kept."""
    last = side.proposals[-1]
    return float(regions.scores[np.abs(regions.boxes - last).max(1).argmin()])


def by_choice(box: NDArray[np.float64], score: float, group: int, among: Boxes, choice: Choice) -> str:
    """Return what makes it open whether a box is chosen, or an empty text."""
    if abs(score - choice.min_score) < NEAR:
        return "score"
    if abs(score - choice.last_score) < NEAR:
        return "kept"
    rivals = (among.groups == group) & (among.scores >= score - NEAR) & (np.abs(among.boxes - box).max(1) > 1e-3)
    shared = overlaps(box, among.boxes[rivals])
    if (np.abs(shared - choice.max_overlap) < NEAR).any():
        return "overlap"
    if ((shared > choice.max_overlap) & (np.abs(among.scores[rivals] - score) < NEAR)).any():
        return "tie"
    return ""


def near_level(box: NDArray[np.float64]) -> bool:
    """Whether a box has a size at which it is resampled from another level."""
    side = np.sqrt(max((box[2] - box[0]) * (box[3] - box[1]), 1e-12))
    level = 4 + np.log2(side / 224) + 1e-6
    return bool(abs(level - round(level)) < NEAR)


def near_pixel(found: dict[str, NDArray[Any]], i: int, twin: NDArray[Any]) -> bool:
    """Whether rounding decides where a mask begins, or which of the pixels count in which its twin differs."""
    left, top, right, bottom = found["boxes"][i].astype(np.float64)
    width, height = (right - left) * 30 / 28, (bottom - top) * 30 / 28  # the box of a mask with a border of a pixel
    x, y = (left + right) / 2, (top + bottom) / 2
    corners = np.array([x - width / 2, y - height / 2, x + width / 2, y + height / 2])
    on_pixel = np.abs(corners - corners.round()).min() < NEAR
    mask = found["masks"][i]
    differs = (mask > 0.5) != (twin > 0.5)
    probabilities = mask if mask.dtype != np.bool_ else twin  # torchvision's
    return bool(on_pixel or (differs.any() and np.abs(probabilities[differs] - 0.5).max() < NEAR))


def overlaps(box: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the intersection over union of a box with each of others `[B, 4]`."""
    sides = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = sides.clip(0).prod(axis=1)
    whole = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - shared
    return shared / np.maximum(whole, 1e-12)


def report(counts: Counter[str]) -> bool:
    """Print the table, and return whether enough match and all others are explained."""
    share = counts["matched"] / max(counts["detections"], 1)
    rows = [[name, str(counts[name])] for name in ("detections", "matched")]
    rows += [[f"explained: {name}", str(count)] for name, count in sorted(counts.items()) if name not in
             ("detections", "matched", "unexplained")]  # fmt: skip
    rows.append(["not explained", str(counts["unexplained"])])
    console.print_table(["detections of both sides", "number>"], rows)
    passed = share >= LEAST_MATCHED and not counts["unexplained"]
    click.echo(f"{100 * share:.2f} % match (asked: {100 * LEAST_MATCHED} %): {'passed' if passed else 'FAILED'}")
    return passed


if __name__ == "__main__":
    main()
