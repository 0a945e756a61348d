"""What pyquant promises, measured part by part: imports, compression, latency and memory, kernels."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

import pyquant
from pyquant import _core
from pyquant.bench import bench
from pyquant.choose import Recipe
from pyquant.evaluate import evaluate, evaluate_network
from pyquant.export import export_safetensors
from pyquant.interop import import_checkpoint
from pyquant.models import build_network
from pyquant.pictures import find_pictures, load_batch, read_classes
from pyquant.preprocessing import Preprocessing
from pyquant.runtime import load

LOGIT_PICTURES = 16
MAX_LOGIT_ERROR = 2e-5  # relative to the largest logit
PICTURES_OFF = 2  # right answers may differ by so many: a near tie can fall either way
TINY_CLASSES, TINY_SHAPE = 200, (3, 64, 64)
MIN_SMALL_BLOCKS_TOP1 = 38.0
MAX_RATIO = 2.0  # of latency, to the faster peer
MAX_MEMORY_SHARE = 0.5  # of ONNX Runtime's
BENCH_MODEL = "abgd_resnet50_large_blocks"
PEERS = ("onnxruntime", "openvino", "torch")

# checkpoint: architecture, right answers on imagenet500.zip, right within the best five
CHECKPOINTS = {
    "abgd_resnet50_large_blocks": ("resnet50", 381, 465),
    "abgd_resnet18_small_blocks": ("resnet18", 372, 464),
    "pqf_resnet18": ("resnet18", 379, 458),
}
MAX_TINY_BYTES = {"small-blocks": 1_516_000, "large-blocks": 963_000}


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured number, complete enough to be compared next year."""

    name: str
    value: float
    unit: str
    threads: int = 1
    target: str = ""  # in words; "" where there is none
    met: bool | None = None
    low: float | None = None  # p10 and p90 of repeated measurements
    high: float | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Where the data is, and where files may be written."""

    data: Path
    folder: Path

    def imported(self, name: str) -> Path:
        """Return the .pqmodel of a checkpoint, imported if it is not there yet."""
        out = self.folder / f"{name}.pqmodel"
        if not out.exists():
            import_checkpoint(
                self.data / "checkpoints" / f"{name}.pth",
                arch=CHECKPOINTS[name][0],
                out=out,
                classes=read_classes(self.data / "imagenet_classes.txt"),
            )
        return out


def measure_imports(setting: Setting) -> list[Figure]:
    """Import the published checkpoints; compare accuracy and logits with PyTorch's, on one thread."""
    figures = []
    for name, (arch, right, right5) in CHECKPOINTS.items():
        setting.folder.joinpath(f"{name}.pqmodel").unlink(missing_ok=True)
        path = setting.imported(name)
        model = load(path, threads=1)
        accuracy = evaluate(model, setting.data / "imagenet500.zip")
        for key, expected in (("top1", right), ("top5", right5)):
            count = round(accuracy[key] * accuracy["n"] / 100)
            figures.append(
                Figure(
                    name=f"{name} {key}",
                    value=count,
                    unit=f"of {accuracy['n']}",
                    target=f"{expected} ± {PICTURES_OFF}",
                    met=abs(count - expected) <= PICTURES_OFF,
                )
            )
        error = _logit_error(model, arch, setting)
        figures += [
            Figure(
                name=f"{name} logits",
                value=error,
                unit="of the largest, from PyTorch's",
                target=f"≤ {MAX_LOGIT_ERROR:g}",
                met=error <= MAX_LOGIT_ERROR,
            ),
            Figure(name=f"{name} file", value=path.stat().st_size, unit="bytes"),
            Figure(name=f"{name} eval", value=accuracy["pictures_per_second"], unit="pictures/s"),
        ]
    return figures


def _logit_error(model: pyquant.Model, arch: str, setting: Setting) -> float:
    """Return the largest difference from torchvision's module carrying the decoded weights."""
    import torch

    weights = setting.folder / "decoded.safetensors"
    export_safetensors(model.file, weights)
    module = build_network(arch, weights=weights)
    weights.unlink()
    refs = find_pictures(setting.data / "imagenet500.zip")[:: 500 // LOGIT_PICTURES][:LOGIT_PICTURES]
    assert model.file.preprocessing is not None
    batch = load_batch(refs, model.file.preprocessing)
    with torch.inference_mode():
        expected = module(torch.from_numpy(batch)).numpy()
    return float(np.abs(np.asarray(model(batch)) - expected).max() / np.abs(expected).max())


def measure_compression(setting: Setting) -> list[Figure]:
    """Compress a ResNet-18 for Tiny-ImageNet with both presets, without training; sizes and accuracy, on one thread."""
    import torch

    torch.set_num_threads(1)
    module = build_network("resnet18", weights=setting.data / "resnet18_tiny64.safetensors", num_classes=TINY_CLASSES)
    preprocessing = Preprocessing.default_for(TINY_SHAPE)
    classes = read_classes(setting.data / "tiny64_classes.txt")
    pictures = setting.data / "tiny64_val5k.zip"

    @torch.inference_mode()
    def dense(x: np.ndarray[Any, Any]) -> object:
        return module(torch.from_numpy(x)).numpy()

    accuracy = evaluate_network(dense, pictures, preprocessing, classes=classes)
    figures = [Figure(name="resnet18_tiny64 dense top1", value=accuracy["top1"], unit="%", target="48.5")]
    for preset, max_bytes in MAX_TINY_BYTES.items():
        out = setting.folder / f"resnet18_tiny64_{preset}.pqmodel"
        start = perf_counter()
        report = pyquant.compress(
            module,
            setting.data / "tiny64_train20k.zip",
            out=out,
            recipe=Recipe(preset=preset),
            input_shape=TINY_SHAPE,
            preprocessing=preprocessing,
            classes=classes,
            threads=1,
        )
        seconds = perf_counter() - start
        top1 = evaluate(load(out, threads=1), pictures)["top1"]
        least = MIN_SMALL_BLOCKS_TOP1 if preset == "small-blocks" else None
        name = f"resnet18_tiny64 {preset}"
        figures += [
            Figure(
                name=f"{name} file",
                value=report.bytes,
                unit="bytes",
                target=f"≤ {max_bytes:,}",
                met=report.bytes <= max_bytes,
            ),
            Figure(
                name=f"{name} top1",
                value=top1,
                unit="%",
                target=f"≥ {least:g}" if least else "",
                met=top1 >= least if least else None,
            ),
            Figure(name=f"{name} self-check", value=report.max_relative_error, unit="of the largest output"),
            Figure(name=f"{name} compress", value=seconds, unit="s"),
        ]
    return figures


def measure_latency(setting: Setting) -> list[Figure]:
    """Run ResNet-50 against its peers, at one and two threads: latency with spread, and peak memory."""
    figures = []
    path = setting.imported(BENCH_MODEL)
    for threads in (1, 2):
        result = bench(path, against=PEERS, threads=threads)
        rows = {row["engine"]: row for row in result["rows"]}
        fastest = min(rows[peer]["median_ms"] for peer in ("onnxruntime", "openvino"))
        for engine, row in rows.items():
            ratio = row["median_ms"] / fastest
            share = row["peak_rss_bytes"] / rows["onnxruntime"]["peak_rss_bytes"]
            own = engine == "pyquant"
            name = f"resnet50 {engine}, {threads} thread{'s' if threads > 1 else ''}"
            figures += [
                Figure(
                    name=name, value=row["median_ms"], unit="ms", threads=threads, low=row["p10_ms"], high=row["p90_ms"]
                ),
                Figure(
                    name=f"{name}, ratio",
                    value=ratio,
                    unit="x the faster of onnxruntime and openvino",
                    threads=threads,
                    target=f"≤ {MAX_RATIO:g}" if own else "",
                    met=ratio <= MAX_RATIO if own else None,
                ),
                Figure(name=f"{name}, load", value=row["load_ms"], unit="ms", threads=threads),
                Figure(name=f"{name}, memory", value=row["peak_rss_bytes"], unit="bytes", threads=threads),
                Figure(
                    name=f"{name}, memory share",
                    value=share,
                    unit="x onnxruntime",
                    threads=threads,
                    target=f"< {MAX_MEMORY_SHARE:g}" if own else "",
                    met=share < MAX_MEMORY_SHARE if own else None,
                ),
            ]
    return figures


def measure_kernels(setting: Setting) -> list[Figure]:
    """Run bench_kernels.py and sum its layers up, per network, path and instruction set."""
    out = setting.folder / "kernels.json"
    script = Path(__file__).parent / "bench_kernels.py"
    command = [sys.executable, "-m", "pytest", "-q", str(script), f"--benchmark-json={out}", "--benchmark-quiet"]
    subprocess.run(command, check=True)
    macs: dict[tuple[str, str, str], float] = defaultdict(float)
    ms: dict[tuple[str, str, str], float] = defaultdict(float)
    for case in json.loads(out.read_text())["benchmarks"]:
        info = case["extra_info"]
        key = info["network"], info["path"], info["isa"]
        macs[key] += info["count"] * info["macs"]
        ms[key] += info["count"] * 1000 * case["stats"]["median"]
    peaks = {isa: _core.peak_gmacs(isa) for isa in _core.available_isas()}
    figures = [Figure(name=f"peak {isa}", value=peak, unit="GMAC/s, fp32, one core") for isa, peak in peaks.items()]
    for (network, path, isa), total in ms.items():
        name = f"{network} {path} {isa}"
        gmacs = macs[network, path, isa] / total / 1e6
        times = ms[network, path, "reference"] / total
        figures += [
            Figure(name=name, value=gmacs, unit="GMAC/s, dense-equivalent"),
            Figure(name=f"{name}, of the peak", value=gmacs / peaks[isa], unit="x the peak"),
            Figure(name=f"{name}, speed", value=times, unit="x the reference"),
        ]
    return figures


PARTS: dict[str, Callable[[Setting], list[Figure]]] = {
    "imports": measure_imports,
    "compression": measure_compression,
    "latency": measure_latency,
    "kernels": measure_kernels,
}
