"""Compresses a trained detector to a few sizes, and measures the average precision of what comes out.

    python benchmarks/detector_sizes.py detector.safetensors [--ratio 20 --ratio 26] [--minutes 20] [--limit N]

The detector is that of train_detector.py, and its pictures lie beside its weights: codebooks are learnt on those that
it was trained on, without annotations, and precision is measured on the others. Every size is measured before and
after fine-tuning of so many minutes. Both networks are of one job: what it had before it trained is in its checkpoint.
Dense weights in our runtime are measured too; what PyTorch makes of them, train_detector.py says.

The same command goes on where it was stopped. Files, figures and the table are kept in the folder beside the weights
whose name ends in `-sizes`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import click
import torch
from synthetic import ANNOTATIONS, class_lines
from torch import nn
from torchvision_ready import make_ready
from train_detector import detector

from pyquant import calibrate, compress_sizes, console, load
from pyquant.average_precision import evaluate_detector
from pyquant.capture import capture_detector
from pyquant.checkpoint import Checkpoint
from pyquant.errors import InputError
from pyquant.file import ModelFile, read_model, write_model
from pyquant.job import LEARNT
from pyquant.learn.saved import load_learnt
from pyquant.models import read_weights
from pyquant.pictures import read_classes
from pyquant.report import dense_bytes
from pyquant.runtime import PRECISIONS
from pyquant.settings import Settings
from pyquant.storage import write_whole
from pyquant.targets import targets_of

SHOWN = ("ap", "ap50", "ap75")
DENSE = "dense"


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What is done to the detector, and how much of it."""

    ratios: tuple[float, ...] = (20.0, 26.0)
    samples: int = 256  # calibration pictures
    minutes: float | None = 20.0  # of fine-tuning, each size; None: `steps` of it
    steps: int | None = None
    limit: int | None = None  # pictures that precision is measured on; None: all


SMOKE = Effort(samples=32, minutes=None, steps=2, limit=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where pictures are, and where files are kept."""

    train: Path
    validation: Path
    folder: Path

    def file(self, name: str) -> Path:
        return self.folder / f"{name}.pqmodel"


@click.command()
@click.argument("weights", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--ratio", "ratios", multiple=True, type=click.FloatRange(min=1), help="[default: 20, 26]")
@click.option("--minutes", default=20.0, show_default=True, type=click.FloatRange(min=0), help="Of fine-tuning a size.")
@click.option("--samples", default=256, show_default=True, type=click.IntRange(min=16), help="Calibration pictures.")
@click.option("--limit", type=click.IntRange(min=1), help="Measure precision on so many pictures [default: all].")
@click.option("--threads", default=1, show_default=True, type=click.IntRange(min=1))
@click.option("--smoke", is_flag=True, help="A few pictures and steps, to see that it runs.")
def main(
    weights: Path,
    ratios: tuple[float, ...],
    minutes: float,
    samples: int,
    limit: int | None,
    threads: int,
    smoke: bool,
) -> None:
    """Make and measure what is missing, and print the table."""
    console.enable()
    torch.set_num_threads(threads)
    make_ready(for_training=False)
    pictures = weights.with_name(f"{weights.stem}-pictures")
    kind = "smoke-sizes" if smoke else "sizes"
    place = Place(
        train=pictures / "train", validation=pictures / "validation", folder=weights.with_name(f"{weights.stem}-{kind}")
    )
    effort = Effort(ratios=ratios or Effort().ratios, samples=samples, minutes=minutes, limit=limit)
    module: Any = detector().eval()
    module.load_state_dict(read_weights(weights))
    text = measure(module, class_lines(), place, replace(SMOKE, ratios=effort.ratios) if smoke else effort, threads)
    click.echo(text)
    console.note(f"kept in {place.folder}")


def measure(module: nn.Module, classes: str, place: Place, effort: Effort, threads: int) -> str:
    """Return the table of all files, made and measured unless they were.

    Raises:
        InputError: the folder holds what was measured of another network, or with other settings.
    """
    place.folder.mkdir(parents=True, exist_ok=True)
    kept = place.folder / "sizes.json"
    subject = {"network": digest(module), **json.loads(json.dumps(asdict(effort)))}
    content: dict[str, Any] = {"of": subject, "figures": {}}
    if kept.exists():
        content = json.loads(kept.read_text())
        if differing := [name for name in subject if content["of"].get(name) != subject[name]]:
            raise InputError(f"{kept}: was measured with another {', '.join(differing)}; move the folder away")
    for name, path in list(files(module, classes, place, effort, threads)):
        figures = content["figures"].setdefault(name, {"bytes": path.stat().st_size})
        for precision in PRECISIONS:
            if precision not in figures:
                console.note(f"{name}, {precision}: measuring")
                model = load(path, threads=threads, precision=precision)
                annotations = place.validation / ANNOTATIONS
                figures[precision] = evaluate_detector(model, place.validation, annotations, limit=effort.limit)
                write_whole(kept, json.dumps(content, indent=1).encode())
    text = as_markdown(content["figures"], dense_bytes(capture_detector(module)[0].graph))
    write_whole(place.folder / "sizes.md", text.encode())
    return text


def digest(module: nn.Module) -> str:
    """Return what tells the weights of a network from others."""
    total = hashlib.sha256()
    for name, value in module.state_dict().items():
        total.update(name.encode() + value.numpy().tobytes())
    return total.hexdigest()[:16]


def files(module: nn.Module, classes: str, place: Place, effort: Effort, threads: int) -> Iterator[tuple[str, Path]]:
    """Yield what each file is and where it is, made if it is not there: dense, and of each size before and after."""
    names = place.folder / "classes.txt"
    write_whole(names, classes.encode())
    network, preprocessing = capture_detector(module)
    dense = ModelFile(network=network, preprocessing=preprocessing, classes=read_classes(names))
    yield DENSE, with_ranges(place, DENSE, dense)
    trains = bool(effort.minutes or effort.steps)
    made = place.folder / "after-{ratio}.pqmodel"
    targets = targets_of(network.graph, (), effort.ratios)
    if not all(target.named(made).exists() for target in targets):
        settings = Settings(
            samples=effort.samples,
            finetune_minutes=effort.minutes,
            finetune_steps=effort.steps,
            classes=tuple(dense.classes),
            threads=threads,
        )
        with console.progress() as progress:
            compress_sizes(
                module,
                place.train,
                out=made,
                target_ratios=effort.ratios,
                checkpoint=place.folder / "job",
                settings=settings,
                progress=progress,
            )
    for target in targets:
        after = target.named(made)
        if trains:
            name = f"{target.ratio:g} times"
            yield name, with_ranges(place, f"before-{target.ratio:g}", before_training(place, target.bytes, after))
            how = read_model(after).provenance["finetune"]
            yield f"{name}, {how['steps']:,} steps of fine-tuning", after
        else:
            yield f"{target.ratio:g} times", after


def before_training(place: Place, target_bytes: int, after: Path) -> ModelFile:
    """Return a compressed network as it was before it was fine-tuned."""
    with Checkpoint(place.folder / "job") as records:
        found = load_learnt(records.part(str(target_bytes)), LEARNT)
    if found is None:
        raise InputError(f"{place.folder / 'job'}: has no record of a file of {target_bytes:,} bytes; delete {after}")
    file = read_model(after)
    provenance = {key: value for key, value in file.provenance.items() if key != "finetune"}
    return replace(file, network=found[0].network, provenance=provenance)


def with_ranges(place: Place, name: str, model: ModelFile) -> Path:
    """Return where a network was written, with ranges for `fast`."""
    path = place.file(name)
    if not path.exists():
        made = place.file(f"{name}-without-ranges")
        write_model(made, model)
        calibrate(made, place.train, out=path)
        made.unlink()
    return path


def as_markdown(figures: dict[str, Any], whole: int) -> str:
    """Return the table of all files; `whole` is the bytes of the network in fp32."""
    kinds = [kind for kind in ("box", "mask") if figures[DENSE][PRECISIONS[0]][kind]]
    head = ["file", "MB", "times smaller", "precision", *(f"{kind} {name.upper()}" for kind in kinds for name in SHOWN)]
    rows = []
    for name, measured in figures.items():
        size = [name, f"{measured['bytes'] / 1e6:.2f}", f"{whole / measured['bytes']:.1f}"]
        for precision in PRECISIONS:
            shares = [measured[precision][kind][share] for kind in kinds for share in SHOWN]
            rows.append([*size, precision, *("" if share is None else f"{share:.2f}" for share in shares)])
            size = [""] * len(size)
    return "".join(_row(cells) for cells in (head, ["---"] * len(head), *rows))


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |\n"


if __name__ == "__main__":
    main()
