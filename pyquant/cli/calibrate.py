"""`pyquant calibrate`: a .pqmodel file is given activation ranges, measured on pictures."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options


@click.command("calibrate", short_help="Measure the ranges of activations on pictures.")
@click.argument("file", type=options.PATH)
@click.argument("data", type=options.PATH)
@click.option("--out", type=options.PATH, required=True, metavar="FILE",
              help="The file to write; it may be FILE itself.")  # fmt: skip
@click.option("--samples", type=click.IntRange(min=1), metavar="N",
              help="Pictures used, always the same ones of the list. [default: 256; of a detector 32]")  # fmt: skip
@options.threads
@options.as_json
def command(file: Path, data: Path, out: Path, samples: int | None, threads: int | None, as_json: bool) -> None:
    """Give FILE the activation ranges that computing in 8 bits needs, in place of those that it may have.

    DATA is a folder or .zip of pictures, in class folders or flat; no labels needed. A detector runs on whole
    pictures. `pyquant compress --calibration` has measured them already.
    """
    from pyquant.ranges import calibrate

    done = calibrate(file, data, out=out, samples=samples, threads=threads)
    if as_json:
        console.print_json(done.to_json())
    else:
        print(
            f"{done.file}: ranges of {done.values:,} values, measured on {done.pictures:,} pictures; "
            f"{done.bytes:,} bytes, {done.bytes_before:,} before"
        )
