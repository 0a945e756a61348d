"""`pyquant profile`: time per step, and the kernel chosen for each."""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np

from pyquant import console
from pyquant.cli import options


@click.command("profile", short_help="Show the time and the kernel of each step.")
@options.run_of_file
def command(
    file: Path,
    batch: int,
    input_shape: tuple[int, int, int] | None,
    threads: int | None,
    precision: str,
    as_json: bool,
) -> None:
    """Show how long each step of a run takes, and which kernel was chosen for it."""
    from pyquant.bench import input_shapes
    from pyquant.runtime import load

    model = load(file, threads=threads, precision=precision)
    rng = np.random.default_rng(0)
    shapes = input_shapes(model.file.network.graph, batch, input_shape)
    result = model.profile(*(rng.standard_normal(shape, dtype=np.float32) for shape in shapes))
    if as_json:
        console.print_json(result)
        return
    rows = [[s["name"], s["op"], s["kernel"], f"{s['ms']:.3f}", f"{s['share']:.1%}"] for s in result["steps"]]
    console.print_table(["step", "op", "kernel", "ms>", "share>"], rows)
    print(f"{sum(step['ms'] for step in result['steps']):.2f} ms in all")
