"""`pyquant bench`: latency and memory, against other engines in the same run."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options
from pyquant.cli.show import show_bench


@click.command("bench", short_help="Measure latency and memory, against other engines too.")
@click.option(
    "--against",
    default="",
    metavar="ENGINE,..",
    help="Engines to measure beside pyquant, on the decoded dense network: torch, onnxruntime, openvino, "
    "openvino-bf16, onnxruntime-int8, openvino-int8.",
)
@click.option(
    "--calibration",
    type=options.PATH,
    metavar="DATA",
    help="Pictures to run on; engines in int8 need them for the ranges of their activations, and so does pyquant in "
    "8 bits for a file without ranges.",
)
@click.option(
    "--parts",
    is_flag=True,
    help="Of a detector, measure the backbone and the heads alone, as engines can that know no boxes.",
)
@options.tune(5)
@options.run_of_file
def command(
    file: Path,
    batch: int,
    input_shape: tuple[int, int, int] | None,
    against: str,
    calibration: Path | None,
    parts: bool,
    tune: float,
    threads: int | None,
    precision: str,
    memory_budget: int,
    as_json: bool,
) -> None:
    """Measure latency and peak memory, the engines taking turns and each in a process of its own."""
    from pyquant.bench import bench

    engines = tuple(name.strip() for name in against.split(",") if name.strip())
    result = bench(
        file,
        batch=batch,
        input_shape=input_shape,
        against=engines,
        threads=threads,
        precision=precision,
        memory_budget=memory_budget,
        tune=tune,
        calibration=calibration,
        parts=parts,
    )
    if as_json:
        console.print_json(result)
    else:
        show_bench(result)
