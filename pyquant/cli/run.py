"""`pyquant run`: names and probabilities for pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from pyquant import console
from pyquant.cli import options


@click.command("run", short_help="Name what pictures show.")
@click.argument("file", type=options.PATH)
@click.argument("pictures", type=options.PATH, nargs=-1, required=True, metavar="PICTURE...")
@click.option("--topk", type=click.IntRange(min=1), default=5, show_default=True, help="Classes shown per picture.")
@options.threads
@options.precision
@options.memory_budget
@options.as_json
def command(
    file: Path,
    pictures: tuple[Path, ...],
    topk: int,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Name what pictures show: the most probable classes, best first."""
    from pyquant.runtime import load

    model = load(file, threads=threads, precision=precision, memory_budget=memory_budget)
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
