"""`pyquant eval`: accuracy on pictures in class folders, or average precision of a detector on annotated ones."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from pyquant import console
from pyquant.cli import options
from pyquant.errors import ConfigError

if TYPE_CHECKING:
    from pyquant.average_precision import AveragePrecision


@click.command("eval", short_help="Measure accuracy on pictures in class folders, or annotated ones.")
@click.argument("file", type=options.PATH)
@click.argument("data", type=options.PATH)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use N pictures only, drawn from all of them.")
@click.option("--annotations", type=options.PATH, metavar="JSON",
              help="Of a detector: what the pictures show, boxes and masks, as COCO has it.")  # fmt: skip
@options.classes
@options.threads
@options.precision
@options.memory_budget
@options.as_json
def command(
    file: Path,
    data: Path,
    limit: int | None,
    annotations: Path | None,
    classes: Path | None,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Measure accuracy on DATA, a folder or .zip of pictures in class folders.

    A folder is matched to the class of the same name in the file (or in --classes); any subset of the classes will do.
    Pictures per second count everything: reading, decoding and resizing a picture, and running the network.

    Of a detector, box and mask AP by COCO's rules: DATA has the pictures that --annotations names, in whatever folders.
    Category ids are the network's labels, whatever their names. It needs faster-coco-eval or pycocotools.
    """
    from pyquant.average_precision import evaluate_detector
    from pyquant.evaluate import evaluate
    from pyquant.pictures import read_classes
    from pyquant.runtime import load

    if annotations is not None and classes is not None:
        raise ConfigError("--classes names class folders; with --annotations, category ids are the network's labels")
    names = None if classes is None else read_classes(classes)
    model = load(file, threads=threads, precision=precision, memory_budget=memory_budget)
    if annotations is None and model.is_detector:
        raise ConfigError(f"{file.name} holds a detector: give --annotations, a JSON file as COCO has it")
    if annotations is not None:
        found = evaluate_detector(model, data, annotations, limit=limit)
        if as_json:
            console.print_json(found)
        else:
            _print_precisions(found)
        return
    result = evaluate(model, data, limit=limit, classes=names)
    if as_json:
        console.print_json(result)
    else:
        columns = ["top-1 %>", "top-5 %>", "pictures>", "pictures/s>"]
        percents = [f"{result[key]:.2f}" for key in ("top1", "top5")]
        console.print_table(columns, [[*percents, str(result["n"]), f"{result['pictures_per_second']:.1f}"]])


def _print_precisions(found: AveragePrecision) -> None:
    columns = ["", "AP %>", "AP50>", "AP75>", "small>", "medium>", "large>", "pictures>", "pictures/s>"]
    rows = [("box", found["box"]), *([("mask", found["mask"])] if found["mask"] else [])]
    counts = [str(found["n"]), f"{found['pictures_per_second']:.1f}"]
    cells = [
        [
            name,
            *("" if share is None else f"{share:.2f}" for share in shares.values()),
            *(counts if not i else ["", ""]),
        ]
        for i, (name, shares) in enumerate(rows)
    ]
    console.print_table(columns, cells)
