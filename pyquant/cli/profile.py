"""`pyquant profile`: time per step, and the kernel chosen for each."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from pyquant import console
from pyquant.cli import options


@click.command("profile", short_help="Show the time and the kernel of each step.")
@click.argument("file", type=options.PATH)
@options.batch
@options.input_shape_of_file
@options.threads
@options.precision
@options.as_json
def command(
    file: Path,
    batch: int,
    input_shape: tuple[int, int, int] | None,
    threads: int | None,
    precision: str,
    as_json: bool,
) -> None:
    """Show how long each step of a run takes, and which kernel was chosen for it."""
    from pyquant.runtime import load

    model = load(file, threads=threads, precision=precision)
    shape = (batch, *(input_shape or model.inputs[0].default))
    result = model.profile(np.random.default_rng(0).standard_normal(shape, dtype=np.float32))
    if as_json:
        console.print_json(result)
        return
    rows = [[s["name"], s["op"], s["kernel"], f"{s['ms']:.3f}", f"{s['share']:.1%}"] for s in result["steps"]]
    console.print_table(["step", "op", "kernel", "ms>", "share>"], rows)
    print(f"{sum(step['ms'] for step in result['steps']):.2f} ms in all")
