"""Measures what pyquant promises on real networks, and prints the table; `--only PART` resumes in parts.

    python benchmarks/show.py [DATA] [--folder pyquant-show] [--only imports] [--only latency]

DATA is the folder of checkpoints and pictures (default: the variable PYQUANT_DATA). The folder gets `result.json`, to
which each part is added when it is done, and the files that are made on the way.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import click
from entropy import measure_entropy
from figures import PARTS as MOST_PARTS
from figures import Setting
from precision import measure_precision
from speed import SPEED_PARTS

from pyquant import _core, console
from pyquant.machine import machine_name
from pyquant.storage import write_whole

PARTS = {**MOST_PARTS, "precision": measure_precision, "entropy": measure_entropy, **SPEED_PARTS}


@click.command()
@click.argument("data", envvar="PYQUANT_DATA", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--folder", default="pyquant-show", show_default=True, type=click.Path(path_type=Path))
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)), help="Measure these parts alone.")
def main(data: Path, folder: Path, only: tuple[str, ...]) -> None:
    """Measure, part by part, and print what has been measured so far."""
    console.enable()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "result.json"
    result: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {"parts": {}}
    for part in only or PARTS:
        console.note(f"measuring {part}")
        figures = PARTS[part](Setting(data=data, folder=folder))
        result["parts"][part] = {**circumstances(), "figures": [figure.to_json() for figure in figures]}
        write_whole(path, json.dumps(result, indent=2).encode())
    click.echo(as_markdown(result))
    console.note(f"kept in {path}")


def circumstances() -> dict[str, Any]:
    """Return what a measurement depends on besides the code."""
    return {
        "machine": machine_name(),
        "isa": os.environ.get("PYQUANT_ISA") or _core.available_isas()[-1],
        "commit": commit(),
    }


def commit() -> str:
    """Return the commit of the working tree, with a mark where files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()


def as_markdown(result: dict[str, Any]) -> str:
    """Return the tables of all parts measured so far."""
    lines: list[str] = []
    for part, content in result["parts"].items():
        lines += [
            f"### {part}",
            "",
            f"{content['machine']}; {content['isa']}; commit {content['commit']}",
            "",
            "| figure | measured | p10-p90 | target | met |",
            "|---|---|---|---|---|",
        ]
        for figure in content["figures"]:
            spread = "" if figure["low"] is None else f"{number(figure['low'])}-{number(figure['high'])}"
            met = {True: "yes", False: "NO", None: ""}[figure["met"]]
            measured = f"{number(figure['value'])} {figure['unit']}"
            lines.append(f"| {figure['name']} | {measured} | {spread} | {figure['target']} | {met} |")
        lines.append("")
    return "\n".join(lines)


def number(value: float) -> str:
    """Return a number with the digits that matter."""
    if value == int(value):
        return f"{int(value):,}"
    return f"{value:.2e}" if abs(value) < 0.01 else f"{value:.2f}"


if __name__ == "__main__":
    main()
