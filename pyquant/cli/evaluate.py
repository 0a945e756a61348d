"""`pyquant eval`: accuracy on pictures in class folders."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options


@click.command("eval", short_help="Measure accuracy on pictures in class folders.")
@click.argument("file", type=options.PATH)
@click.argument("data", type=options.PATH)
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="Use N pictures only, drawn from all of them.")
@options.classes
@options.threads
@options.precision
@options.memory_budget
@options.as_json
def command(
    file: Path,
    data: Path,
    limit: int | None,
    classes: Path | None,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Measure accuracy on DATA, a folder or .zip of pictures in class folders.

    A folder is matched to the class of the same name in the file (or in --classes); any subset of the classes will do.
    Pictures per second count everything: reading, decoding and resizing a picture, and running the network.
    """
    from pyquant.evaluate import evaluate
    from pyquant.pictures import read_classes
    from pyquant.runtime import load

    names = None if classes is None else read_classes(classes)
    result = evaluate(
        load(file, threads=threads, precision=precision, memory_budget=memory_budget), data, limit=limit, classes=names
    )
    if as_json:
        console.print_json(result)
    else:
        columns = ["top-1 %>", "top-5 %>", "pictures>", "pictures/s>"]
        percents = [f"{result[key]:.2f}" for key in ("top1", "top5")]
        console.print_table(columns, [[*percents, str(result["n"]), f"{result['pictures_per_second']:.1f}"]])
