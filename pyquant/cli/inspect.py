"""`pyquant inspect`: what is inside a .pqmodel file."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant import console
from pyquant.cli import options
from pyquant.cli.show import show_inspection


@click.command("inspect", short_help="Show what a .pqmodel file holds.")
@click.argument("file", type=options.PATH)
@options.as_json
def command(file: Path, as_json: bool) -> None:
    """Show what a .pqmodel file holds: sizes, input, classes, and how each layer is stored."""
    from pyquant.report import inspect_json

    result = inspect_json(file)
    if as_json:
        console.print_json(result)
    else:
        show_inspection(result)
