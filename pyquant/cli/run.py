"""`pyquant run`: names and probabilities for pictures, or what a detector finds in them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pyquant import console
from pyquant.cli import options
from pyquant.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from pyquant.runtime import Model

DRAWN = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}


@click.command("run", short_help="Name what pictures show, or find it.")
@click.argument("file", type=options.PATH)
@click.argument("pictures", type=options.PATH, nargs=-1, required=True, metavar="PICTURE...")
@click.option("--topk", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per picture.")
@click.option("--min-score", type=click.FloatRange(0, 1), default=0.5, show_default=True,
              help="Of a detector: what is less sure is left out.")  # fmt: skip
@click.option("--draw", type=options.PATH, metavar="FILE",
              help="Of a detector and one picture: the picture with masks, boxes, names and scores, .png or "
              ".jpg.")  # fmt: skip
@options.threads
@options.precision
@options.memory_budget
@options.as_json
def command(
    file: Path,
    pictures: tuple[Path, ...],
    topk: int,
    min_score: float,
    draw: Path | None,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Name what pictures show, the most probable classes, best first; or find it, where FILE holds a detector."""
    from pyquant.runtime import load
    from pyquant.storage import check_writable

    if draw is not None:
        if draw.suffix.lower() not in DRAWN:
            raise ConfigError(f"--draw: expected a name that ends in {', '.join(DRAWN)}, got '{draw.name}'")
        if len(pictures) != 1:
            raise ConfigError(f"--draw: expected one picture, got {len(pictures)}")
        check_writable(draw, inputs=(file, *pictures))
    model = load(file, threads=threads, precision=precision, memory_budget=memory_budget)
    if model.is_detector:
        _detect(model, pictures, min_score, draw, as_json)
        return
    if draw is not None:
        raise ConfigError(f"--draw: {file.name} does not hold a detector")
    results: list[dict[str, Any]] = [
        {"picture": str(picture), "predictions": model.predict([picture], topk=topk)[0]}
        for picture in console.track(pictures, "running")
    ]
    if as_json:
        console.print_json(results)
        return
    rows = [
        [result["picture"] if rank == 0 else "", guess["class"], f"{guess['probability']:.1%}"]
        for result in results
        for rank, guess in enumerate(result["predictions"])
    ]
    console.print_table(["picture", "class", "probability>"], rows)


def _detect(model: Model, pictures: tuple[Path, ...], min_score: float, draw: Path | None, as_json: bool) -> None:
    from pyquant.drawing import draw_detections
    from pyquant.pictures import read_picture
    from pyquant.storage import write_whole

    results = []
    for picture in console.track(pictures, "running"):
        pixels = read_picture(picture)
        (found,) = model.detect([pixels])
        sure = found["scores"] >= min_score
        found = {name: values[sure] for name, values in found.items()}
        names = [_name(model, label) for label in found["labels"].tolist()]
        height, width = pixels.shape[:2]
        entries = _described(found, names)
        results.append({"picture": str(picture), "height": height, "width": width, "detections": entries})
        if draw is not None:
            drawn = io.BytesIO()
            draw_detections(pixels, found, names).save(drawn, DRAWN[draw.suffix.lower()])
            write_whole(draw, drawn.getvalue())
    if as_json:
        console.print_json(results)
        return
    rows = [
        [result["picture"] if rank == 0 else "", entry["class"], f"{entry['score']:.1%}", _box(entry["box"])]
        for result in results
        for rank, entry in enumerate(result["detections"])
    ]
    console.print_table(["picture", "class", "score>", "left top right bottom"], rows)


def _name(model: Model, label: int) -> str:
    names = model.file.classes
    return names[label].name if names else str(label)


def _described(found: dict[str, NDArray[Any]], names: list[str]) -> list[dict[str, Any]]:
    """Return what was found as plain values, masks as COCO's run lengths."""
    from pyquant.masks import to_coco

    masks: list[NDArray[np.bool_]] = list(found.get("masks", ()))
    return [
        {
            "class": name,
            "label": int(found["labels"][i]),
            "score": float(found["scores"][i]),
            "box": [float(corner) for corner in found["boxes"][i]],
            **({"mask": to_coco(masks[i])} if masks else {}),
        }
        for i, name in enumerate(names)
    ]


def _box(corners: list[float]) -> str:
    return " ".join(f"{corner:.0f}" for corner in corners)
