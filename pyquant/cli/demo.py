"""`pyquant demo`: the whole way on a small network, offline."""

from __future__ import annotations

from pathlib import Path

import click

from pyquant.cli import options


@click.command("demo", short_help="Go the whole way on a small network, offline.")
@click.option("--out", type=options.PATH, default="pyquant-demo", show_default=True, metavar="FOLDER",
              help="Where pictures and files go.")  # fmt: skip
def command(out: Path) -> None:
    """Train a small network on handwritten digits, compress it, check it, and measure both.

    Needs no network connection; takes about two minutes.
    """
    from pyquant.demo import run_demo, show_demo

    show_demo(run_demo(out))
