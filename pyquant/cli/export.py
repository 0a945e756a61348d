"""`pyquant export`: the dense network, decoded, for other programs."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options


@click.command("export", short_help="Write the dense network as ONNX or safetensors.")
@click.argument("file", type=options.PATH)
@click.option("--out", type=options.PATH, required=True, metavar="X.onnx|X.safetensors", help="The file to write.")
def command(file: Path, out: Path) -> None:
    """Write the dense network, decoded: an ONNX file, or a state dict as .safetensors.

    The state dict has the original module's names, with batch norms kept; `pyquant compress --weights` takes it.
    """
    from pyquant.export import export, format_for
    from pyquant.file import read_model
    from pyquant.storage import check_writable

    format_for(out)
    check_writable(out, inputs=(file,))
    size = export(read_model(file), out)
    console.note(f"wrote {out}, {console.bytes_text(size)}")
