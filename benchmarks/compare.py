"""Compares our method with the published ones, at equal bytes and minutes; can be stopped and goes on where it was.

    python benchmarks/compare.py [DATA] [--folder pyquant-compare] [--only PART] [--list] [--smoke]

DATA is the folder of checkpoints and pictures (default: the variable PYQUANT_DATA). Cells are run one after another, on
all processors; each result is written to `compare.json` at once, with the commit and the settings, and is not measured
again. What a cell has learnt is kept, some 100 MB, until it is trained. The tables are printed, and written to
`compare.md` with the curve, `curve.svg`, beside it.
"""

from __future__ import annotations

import base64
import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from time import perf_counter, process_time
from typing import Any
from urllib.parse import quote

import click
import numpy as np
from cells import COMPARED, FULL, MIXED, OURS, SMOKE, Cell, Comparison, Row
from curve import draw
from ingredients import INGREDIENTS, PRUNERS, ROUNDERS
from numpy.typing import NDArray
from show import circumstances
from subjects import Answers, Subject, by_torch, real_subjects, smoke_subjects
from tables import as_markdown
from uniform import file_bytes, quantize, recipe_for

from pyquant import _core, console, load
from pyquant.capture import capture
from pyquant.choose import CODED, Recipe, parse_rule
from pyquant.codecs import ProductConfig, codec_name
from pyquant.compression import compress, plan
from pyquant.file import dumps
from pyquant.learn.calibration import from_pictures
from pyquant.learn.methods import METHODS, Method
from pyquant.module_state import norms_of
from pyquant.report import Report, dense_bytes
from pyquant.storage import write_whole

Result = dict[str, Any]
REDUCED = INGREDIENTS | ROUNDERS | PRUNERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What all cells have in common."""

    samples: int  # calibration pictures
    minutes: float | None  # of a whole job with training: capture to file
    steps: int | None  # of training, in place of minutes
    seed: int = 0
    threads: int = field(default_factory=_core.default_threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """Runs cells and keeps their results."""

    comparison: Comparison
    settings: Settings
    subjects: dict[str, Subject]
    folder: Path
    results: dict[str, Result]
    dense: dict[str, Answers] = field(default_factory=dict)  # by subject

    def run(self, cell: Cell) -> Result:
        """Return the result of a cell, which is run unless there is one."""
        if cell.key not in self.results:
            runs: dict[bool, Callable[[Cell], Result]] = {True: self._compressed, False: self._other}
            for other in self._needed(cell):
                self.run(other)
            console.note(f"running {cell.key}")
            measured = runs[cell.method in {*METHODS, *REDUCED, MIXED}](cell)
            self.results[cell.key] = {**circumstances(), "settings": asdict(self.settings), **measured}
            write_whole(self.folder / "compare.json", json.dumps({"cells": self.results}, indent=1).encode())
        return self.results[cell.key]

    def _needed(self, cell: Cell) -> list[Cell]:
        """Return the cells that must have been run before this one."""
        if cell.trained:
            row = self._row(cell)
            return [replace(cell, trained=False)] if row is None else [row.dense(), *row.untrained(cell.method)]
        kind, _, size = cell.size.partition(":")
        return [replace(cell, method=OURS, size=size)] if kind == "as" else []

    def _row(self, cell: Cell) -> Row | None:
        """Return the row that a cell with training is of; None where it is trained from the same one without."""
        rows = self.comparison.rows if cell.method in COMPARED else ()
        return next((row for row in rows if row.trained(cell.method) == cell), None)

    def _untrained(self, cell: Cell) -> tuple[Cell, Result]:
        """Return the cell without training from which one with training begins, and its result."""
        if (row := self._row(cell)) is None:
            same = replace(cell, trained=False)
            return same, self.results[same.key]
        best = row.best_untrained(cell.method, self.results)
        assert best is not None
        return best

    def _compressed(self, cell: Cell) -> Result:
        """Compress to a file and evaluate it."""
        subject, variant, training = self.subjects[cell.subject], cell, {}
        spent = dict.fromkeys(("minutes", "processor_minutes"), 0.0)
        work = self.folder / "job"
        shutil.rmtree(work, ignore_errors=True)  # a cell that was stopped begins anew: its minutes count
        if cell.trained:
            variant, before = self._untrained(cell)
            if self.settings.minutes is None:
                training = {"finetune_steps": self.settings.steps}
            else:  # what is left of the minutes when the work without training is done
                training = {"finetune_minutes": max(0.0, self.settings.minutes - before["minutes"])}
            if method_of(cell).training.each_layer is None:
                self._take_up(variant, work)
                spent = {key: before[key] for key in spent}
        start, start_cpu = perf_counter(), process_time()
        report = self._compress(variant, work, training)
        minutes, processor_minutes = (perf_counter() - start) / 60, (process_time() - start_cpu) / 60
        model = load(report.file, threads=self.settings.threads)
        answers = subject.answers(model)
        fast = subject.answers(load(report.file, threads=self.settings.threads, precision="fast"))
        Path(report.file).unlink()
        shutil.rmtree(self._learnt(variant), ignore_errors=True)
        if self._is_to_be_trained(cell):
            work.replace(self._learnt(cell))
        shutil.rmtree(work, ignore_errors=True)
        # Presets of codebooks are compared with files made for a size.
        by_preset = variant.size.startswith("preset:") and method_of(cell).codec is ProductConfig
        size = len(dumps(model.file, fixed_length=by_preset))
        return {
            **accuracy(answers.right),
            "divergence": answers.divergence(self._dense(cell.subject)),
            "fast": {**accuracy(fast.right), "agreement": fast.agreement(answers)},
            "bytes": size,
            "ratio": report.dense_bytes / size,
            "minutes": spent["minutes"] + minutes,
            "processor_minutes": spent["processor_minutes"] + processor_minutes,
            "finetune": model.file.provenance.get("finetune"),
            "variant": variant.size,
        }

    def _take_up(self, cell: Cell, work: Path) -> None:
        """Put a copy of what a cell has learnt into a folder, learnt once more if it was not kept."""
        if not (learnt := self._learnt(cell)).exists():
            self._compress(cell, work, {})
            work.replace(learnt)
        shutil.copytree(learnt, work)

    def _learnt(self, cell: Cell) -> Path:
        """Return the folder in which what a cell has learnt is kept until it is trained."""
        return self.folder / f"learnt {quote(cell.key, safe=' ')}"

    def _is_to_be_trained(self, cell: Cell) -> bool:
        """Say whether a cell is one without training, and the one with it is still missing."""
        trained = replace(cell, trained=True)
        return trained.key not in {cell.key, *self.results} and any(
            trained in cells for cells in self.comparison.parts().values()
        )

    def _compress(self, cell: Cell, checkpoint: Path, training: dict[str, Any]) -> Report:
        """Make the file of a cell, for which a folder keeps what is learnt."""
        subject, method, ingredient = self.subjects[cell.subject], method_of(cell), REDUCED.get(cell.method)
        kind, _, value = cell.size.partition(":")
        if kind == "as":
            kind, value = "bytes", str(self.results[self._needed(cell)[0].key]["bytes"])
        own = CODED if cell.method == MIXED else (codec_name(method.codec),)
        options: dict[str, Any] = {
            "preset": lambda: {"recipe": Recipe(preset=value)},
            "bytes": lambda: {"target_bytes": int(value), "recipe": Recipe(preset=method.preset, codecs=own)},
            "ratio": lambda: {"target_ratio": float(value), "recipe": Recipe(preset=method.preset, codecs=own)},
            "rate": lambda: {"recipe": Recipe(rules=(parse_rule(f"*=scalar:4;rate:{value}"),))},
            "rule": lambda: {"recipe": Recipe(rules=(parse_rule(f"*={value}"),))},
        }[kind]()
        known = nullcontext() if ingredient is None else ingredient.known(cell.method)
        with console.progress() as progress, known:
            return compress(
                subject.build(),
                subject.calibration if ingredient is None or ingredient.calibrated else None,
                out=self.folder / "cell.pqmodel",
                method=OURS if cell.method == MIXED else cell.method,
                input_shape=(3, *subject.preprocessing.crop),
                preprocessing=subject.preprocessing,
                classes=subject.classes,
                samples=self.settings.samples,
                seed=self.settings.seed,
                threads=self.settings.threads,
                checkpoint=checkpoint,
                progress=progress,
                **options,
                **training,
            )

    def _other(self, cell: Cell) -> Result:
        """Evaluate the dense network, or quantize its weights uniformly."""
        subject = self.subjects[cell.subject]
        module = subject.build()
        shape = (3, *subject.preprocessing.crop)
        network = capture(module, shape)
        dense = dense_bytes(network.graph)
        if cell.method == "dense":
            return {**accuracy(self._dense(cell.subject).right), "bytes": dense, "ratio": 1.0}
        bits = int(cell.method.removeprefix("int"))
        planned = plan(
            module,
            subject.calibration,
            recipe=recipe_for(network, bits),
            preprocessing=subject.preprocessing,
            classes=subject.classes,
            samples=self.settings.samples,
        )
        inputs = from_pictures(
            subject.calibration, subject.preprocessing, samples=self.settings.samples, seed=self.settings.seed
        )
        quantized = quantize(network, planned.choices, norms_of(network.graph, module.state_dict()), inputs, bits)
        size = file_bytes(network, planned)
        return {**accuracy(subject.answers(by_torch(quantized)).right), "bytes": size, "ratio": dense / size}

    def _dense(self, name: str) -> Answers:
        """Return the answers of a dense network, which are asked for once."""
        if name not in self.dense:
            subject = self.subjects[name]
            self.dense[name] = subject.answers(by_torch(subject.build()))
        return self.dense[name]


def method_of(cell: Cell) -> Method:
    """Return the published method that a cell is of, or ours."""
    return METHODS.get(cell.method, METHODS[OURS])


def accuracy(right: NDArray[np.bool_]) -> Result:
    """Return top-1 in per cent, and every answer, so that results can be compared picture by picture."""
    packed = base64.b64encode(np.packbits(right).tobytes()).decode()
    return {"top1": 100 * float(right.mean()), "n": len(right), "right": packed}


def chosen(parts: dict[str, list[Cell]], only: Sequence[str]) -> list[Cell]:
    """Return the cells of the parts, or with the keys, that match one of the patterns; all where there is none."""
    unique: dict[str, Cell] = {}
    for part, cells in parts.items():
        for cell in cells:
            if not only or any(fnmatchcase(part, text) or fnmatchcase(cell.key, text) for text in only):
                unique.setdefault(cell.key, cell)
    return list(unique.values())


@click.command()
@click.argument("data", envvar="PYQUANT_DATA", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--folder", default="pyquant-compare", show_default=True, type=click.Path(path_type=Path))
@click.option(
    "--second", type=click.Path(path_type=Path), help="The second network [default: in DATA's place, FOLDER]."
)
@click.option("--only", multiple=True, metavar="PATTERN", help="Parts or cells to run, shell-style; see --list.")
@click.option("--list", "listed", is_flag=True, help="Print parts and cells, and whether they are done; run nothing.")
@click.option("--samples", type=click.IntRange(min=1), default=8192, show_default=True, help="Calibration pictures.")
@click.option("--smoke", is_flag=True, help="Try every kind of cell on a tiny network, in a minute.")
def main(
    data: Path | None,
    folder: Path,
    second: Path | None,
    only: tuple[str, ...],
    listed: bool,
    samples: int,
    smoke: bool,
) -> None:
    """Run the cells that are missing, and print the tables of all that are there."""
    console.enable()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "compare.json"
    results: dict[str, Result] = json.loads(path.read_text())["cells"] if path.exists() else {}
    comparison = SMOKE if smoke else FULL
    parts = comparison.parts()
    if listed:
        for part, cells in parts.items():
            click.echo(part)
            for cell in cells:
                click.echo(f"  {'done' if cell.key in results else '    '} {cell.key}")
        return
    if smoke:
        settings = Settings(samples=32, minutes=None, steps=8, threads=1)
        subjects = smoke_subjects(folder)
    else:
        if data is None:
            raise click.UsageError("give the folder of checkpoints and pictures, or set PYQUANT_DATA")
        settings = Settings(samples=samples, minutes=20, steps=None)
        subjects = real_subjects(data, second or folder / "second.safetensors")
    bench = Bench(comparison=comparison, settings=settings, subjects=subjects, folder=folder, results=results)
    for cell in chosen(parts, only):
        bench.run(cell)
    text = as_markdown(comparison, results)
    write_whole(folder / "compare.md", text.encode())
    write_whole(folder / "curve.svg", draw(comparison, results).encode())
    click.echo(text)
    console.note(f"kept in {path}")


if __name__ == "__main__":
    main()
