"""`pyquant export`: the dense network, decoded, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options
from pyquant.errors import ConfigError


@click.command("export")
@click.argument("file", type=options.PATH)
@click.option("--out", type=options.PATH, required=True, metavar="X.onnx|X.safetensors", help="The file to write.")
def command(file: Path, out: Path) -> None:
    """Write the dense network, decoded: an ONNX file, or a state dict as .safetensors.

    The state dict has the original module's names, with batch norms kept; `pyquant compress --weights` takes it.
    """
    options.check_output(out, file)
    from pyquant.export import export_onnx, export_safetensors
    from pyquant.file import read_model

    writers = {".onnx": export_onnx, ".safetensors": export_safetensors}
    if (write := writers.get(out.suffix)) is None:
        raise ConfigError(f"{out}: the name must end in {' or '.join(writers)}")
    write(read_model(file), out)
    console.note(f"wrote {out}, {console.bytes_text(out.stat().st_size)}")
