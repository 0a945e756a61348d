"""How fast a network is beside the engines that run it dense: both precisions, threads, batches, codecs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from figures import CHECKPOINTS, Figure, Setting

import pyquant
from pyquant.bench import bench
from pyquant.choose import Recipe
from pyquant.export import export_safetensors
from pyquant.file import read_model
from pyquant.learn.methods import METHODS
from pyquant.models import build_network
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import calibrate

CALIBRATION_PICTURES = 128
SHAPE = (3, 224, 224)
PEERS = {"exact": ("onnxruntime", "openvino"), "fast": ("onnxruntime-int8", "openvino-int8")}
THREADS = (1, 2)
BATCHES = (1, 8)
CODEC_METHODS = {"product": "gram", "scalar": "obq", "sparse": "exactobs"}
CODED_NETWORK, RATIO = "abgd_resnet18_small_blocks", 12

# checkpoint: the ratios that are promised to the faster peer, of the import and of preset lut, by precision and batch
PROMISED = {
    "abgd_resnet50_large_blocks": {
        "import": {("exact", 1): 0.80, ("exact", 8): 0.80, ("fast", 1): 1.05, ("fast", 8): 1.0},
        "lut": {("exact", 1): 0.60, ("exact", 8): 0.60, ("fast", 1): 0.85, ("fast", 8): 0.85},
    },
    "abgd_resnet18_small_blocks": {"import": {}, "lut": {}},
}


def measure_speed(setting: Setting, *, threads: int, batch: int) -> list[Figure]:
    """Run each network against its peers, engines taking turns: medians with their spread, and ratios."""
    figures = []
    for checkpoint, kinds in PROMISED.items():
        for kind, promised in kinds.items():
            path = setting.imported(checkpoint) if kind == "import" else coded(setting, checkpoint)
            path = with_ranges(setting, path)
            for precision in PEERS:
                rows = raced(setting, path, precision, threads, batch)
                name = f"{checkpoint} {kind} {precision}, batch {batch}, {threads} thread{'s' if threads > 1 else ''}"
                figures += figures_of(rows, name, threads, promised.get((precision, batch)))
    return figures


def measure_codecs(setting: Setting) -> list[Figure]:
    """Run the same network, coded to the same size by each codec alone, against its peers, on one thread."""
    figures = []
    for codec in CODEC_METHODS:
        path = with_ranges(setting, coded_to_size(setting, codec))
        for precision in PEERS:
            rows = raced(setting, path, precision, threads=1, batch=1)
            figures += figures_of(rows, f"{CODED_NETWORK} {codec}, {RATIO} times smaller, {precision}", threads=1)
    return figures


def raced(setting: Setting, path: Path, precision: str, threads: int, batch: int) -> dict[str, dict[str, Any]]:
    """Return what `bench` measures of pyquant and its peers, by engine."""
    result = bench(
        path,
        against=PEERS[precision],
        threads=threads,
        batch=batch,
        precision=precision,
        calibration=setting.data / "imagenet500.zip",
    )
    return {row["engine"]: row for row in result["rows"]}


def figures_of(rows: dict[str, dict[str, Any]], name: str, threads: int, most: float | None = None) -> list[Figure]:
    """Return the medians of a race, and our ratio to the fastest peer, which is to be `most` where that is promised."""
    figures = [
        Figure(
            name=f"{name}, {engine}",
            value=row["median_ms"],
            unit="ms",
            threads=threads,
            low=row["p10_ms"],
            high=row["p90_ms"],
        )
        for engine, row in rows.items()
    ]
    ratio = rows["pyquant"]["median_ms"] / min(row["median_ms"] for engine, row in rows.items() if engine != "pyquant")
    figures.append(
        Figure(
            name=f"{name}, ratio",
            value=ratio,
            unit="x the faster peer",
            threads=threads,
            target=f"≤ {most:g}" if most else "",
            met=ratio <= most if most else None,
        )
    )
    return figures


SPEED_PARTS = {
    f"speed-batch{batch}-threads{threads}": partial(measure_speed, threads=threads, batch=batch)
    for batch in BATCHES
    for threads in THREADS
} | {"speed-codecs": measure_codecs}


def coded(setting: Setting, checkpoint: str) -> Path:
    """Return the .pqmodel of an imported network's weights coded with the preset lut, made if it is not there yet."""
    return _coded(setting, checkpoint, "lut", recipe=Recipe(preset="lut"))


def coded_to_size(setting: Setting, codec: str) -> Path:
    """Return the .pqmodel of `CODED_NETWORK` in one codec and of the size that is compared, made if it is not there."""
    method = CODEC_METHODS[codec]
    recipe = Recipe(preset=METHODS[method].preset, codecs=(codec,))
    return _coded(setting, CODED_NETWORK, codec, recipe=recipe, method=method, target_ratio=RATIO)


def _coded(setting: Setting, checkpoint: str, name: str, **options: Any) -> Path:
    out = setting.folder / f"{checkpoint}_{name}.pqmodel"
    if not out.exists():
        weights = setting.folder / f"{checkpoint}.safetensors"
        export_safetensors(read_model(setting.imported(checkpoint)), weights)
        module = build_network(CHECKPOINTS[checkpoint][0], weights=weights)
        preprocessing = Preprocessing.default_for(SHAPE)
        pyquant.compress(module, None, out=out, input_shape=SHAPE, preprocessing=preprocessing, **options)
        weights.unlink()
    return out


def with_ranges(setting: Setting, path: Path) -> Path:
    """Return the same network with activation ranges."""
    out = path.with_name(f"{path.stem}_ranges.pqmodel")
    if not out.exists():
        calibrate(path, setting.data / "imagenet500.zip", out=out, samples=CALIBRATION_PICTURES)
    return out
