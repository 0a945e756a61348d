"""Compares two result files, of show.py or of pytest-benchmark, case by case.

    python benchmarks/report.py BEFORE.json AFTER.json [--threshold 5]

A case counts as changed where it moved by more than the threshold and, if both have spreads, these do not overlap.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One case of a result file."""

    value: float
    unit: str
    low: float  # of the spread; the value itself where there is none
    high: float


@click.command()
@click.argument("before", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("after", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--threshold", default=5.0, show_default=True, help="Per cent below which a change does not count.")
def main(before: Path, after: Path, threshold: float) -> None:
    """Print every case of both files as a markdown table, with the change and whether it counts."""
    old, new = (json.loads(path.read_text()) for path in (before, after))
    for name, result in (("before", old), ("after", new)):
        click.echo(f"{name}: {'; '.join(circumstances(result))}")
    click.echo("\n| case | before | after | change | |\n|---|---|---|---|---|")
    old_cases, new_cases = measurements(old), measurements(new)
    for case in dict.fromkeys([*old_cases, *new_cases]):
        click.echo(row(case, old_cases.get(case), new_cases.get(case), threshold))


def row(case: str, old: Measurement | None, new: Measurement | None, threshold: float) -> str:
    """Return one line of the table."""
    if old is None or new is None:
        shown = [f"{m.value:.4g} {m.unit}" if m else "" for m in (old, new)]
        return f"| {case} | {shown[0]} | {shown[1]} | | {'new' if old is None else 'gone'} |"
    change = 100 * (new.value / old.value - 1) if old.value else 0.0
    apart = new.low > old.high or new.high < old.low or (new.low == new.high and old.low == old.high)
    mark = "changed" if abs(change) > threshold and apart else ""
    return f"| {case} | {old.value:.4g} {old.unit} | {new.value:.4g} {new.unit} | {change:+.1f} % | {mark} |"


def measurements(result: dict[str, Any]) -> dict[str, Measurement]:
    """Return the cases of a result file of either kind."""
    if "benchmarks" in result:
        return {case["name"]: _of_benchmark(case["stats"]) for case in result["benchmarks"]}
    return {
        f"{part}: {figure['name']}": _of_figure(figure)
        for part, content in result["parts"].items()
        for figure in content["figures"]
    }


def _of_benchmark(stats: dict[str, float]) -> Measurement:
    return Measurement(value=1000 * stats["median"], unit="ms", low=1000 * stats["q1"], high=1000 * stats["q3"])


def _of_figure(figure: dict[str, Any]) -> Measurement:
    value = figure["value"]
    low, high = (value if figure[key] is None else figure[key] for key in ("low", "high"))
    return Measurement(value=value, unit=figure["unit"], low=low, high=high)


def circumstances(result: dict[str, Any]) -> list[str]:
    """Return the machines and commits that a result file's cases were measured with."""
    if "benchmarks" in result:
        return [
            f"{result['machine_info']['cpu'].get('brand_raw', 'unknown')}, commit {result['commit_info']['id'][:12]}"
        ]
    return list(dict.fromkeys(f"{part['machine']}, commit {part['commit']}" for part in result["parts"].values()))


if __name__ == "__main__":
    main()
