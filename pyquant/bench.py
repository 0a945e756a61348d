"""Latency and memory of a `.pqmodel`, and of other engines on the decoded dense network, in one run.

Engines take turns, each in a process of its own that is stopped while another is measured; a turn begins with runs that
do not count. So drifts of the machine's clock touch all engines alike, and ratios hold where absolute times do not.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pyquant import _core, console, tuning
from pyquant.detector import is_detector
from pyquant.engines import ENGINES, OWN, Arrays, FileKind, check_engines
from pyquant.engines.detector import detector_batches, scores_found, with_regions
from pyquant.engines.process import EngineProcess
from pyquant.errors import ConfigError, EngineError, InputError
from pyquant.file import ModelFile, read_model, write_model
from pyquant.graph import Graph, Network
from pyquant.machine import machine_name
from pyquant.pictures import find_pictures, load_batch, sample_pictures
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import with_ranges
from pyquant.runtime import check_options
from pyquant.shapes import Shape
from pyquant.storage import AnyPath

TURN_SECONDS = 0.3
SECONDS_PER_ENGINE = 6.0
TUNE_SECONDS = 5.0
INPUTS = "inputs.npz"
TURNS = (3, 20)  # at least and at most, whatever the time
MAX_RUNS_PER_TURN = 300
WARM_UP_RUNS = 2
# From our outputs, relative to the largest, by precision; more means that the networks are not the same.
MAX_DIFFERENCE = {"exact": 1e-3, "fp32": 1e-3, "bf16": 0.1, "int8": 0.5, "fast": 0.5}
CALIBRATION_PICTURES = 128


def bench(
    path: AnyPath,
    *,
    batch: int = 1,
    input_shape: tuple[int, int, int] | None = None,
    against: Iterable[str] = (),
    threads: int | None = None,
    precision: str = "exact",
    memory_budget: int = 0,
    tune: float = TUNE_SECONDS,
    calibration: AnyPath | None = None,
    parts: bool = False,
) -> dict[str, Any]:
    """Return latency and peak memory of the `.pqmodel` at `path`, alone or against other engines.

    Args:
        path: the file.
        batch: images of one run.
        input_shape: `(C, H, W)` of one image, of a detector without its padding; None: the file's default.
        against: names of `ENGINES`; these run the decoded network, dense, batch norms folded, in float32, bf16 or int8.
        threads: of each engine; None: as many as this process may use.
        precision: of pyquant.
        memory_budget: of pyquant, in bytes; see `pyquant.load`.
        tune: seconds for measuring pyquant's kernels before, in a process of its own; the fastest are remembered, see
            `pyquant.tuning`. With 0, or where the cache directory cannot be written (there is a warning), those run
            that are remembered or estimated to be the fastest.
        calibration: a folder or .zip file of pictures. All engines then run on some of them, in place of random
            numbers, and engines in int8 need them for the ranges of their activations. So does pyquant itself where it
            is to be fast and the file has no ranges; the file stays as it is.
        parts: of a detector, measure the backbone and the heads alone, on as many regions as it chooses at most: what
            engines can run that know no boxes.

    Returns:
        `{machine, threads, batch, isa, rows: [{engine, precision, file_bytes, median_ms, p10_ms, p90_ms, load_ms,
        peak_rss_bytes}], ratios: {engine: pyquant's median / the engine's median}}`. `load_ms` is the time from the
        file to the first output; memory is that of the whole process, Python and libraries included.

    Raises:
        ConfigError: an option or an engine is unknown.
        MissingDependencyError: a named engine is not installed; nothing has been measured then.
        InputError: the file cannot be read, or its network does not take that shape.
        EngineError: an engine failed, or its outputs are not ours.
    """
    check_options(threads, precision, memory_budget)
    own = {"precision": precision, "memory_budget": memory_budget}
    peers = check_engines(against)
    if batch < 1:
        raise ConfigError(f"batch: expected at least 1, got {batch}")
    if not tune >= 0:
        raise ConfigError(f"tune: expected a number of seconds, got {tune}")
    if calibration is None and (need := [peer for peer in peers if ENGINES[peer].file == "onnx-int8"]):
        raise ConfigError(f"{', '.join(need)}: needs calibration, a folder or zip file of pictures, for its ranges")
    file = read_model(path)
    _check_parts(file.network.graph, parts, peers)
    batches = input_batches(file, batch, input_shape, calibration)
    threads = threads or _core.default_threads()
    measured = file
    if precision == "fast" and calibration is not None and file.network.activation_ranges is None:
        measured = with_ranges(file, console.track(batches, "calibrating ranges"), threads=threads)
    if parts:
        measured, batches = with_regions(measured, batches, threads)
    network = measured.network
    with tempfile.TemporaryDirectory(prefix="pyquant-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        np.savez(folder / INPUTS, *batches[0])
        files = write_files(network, batches, [ENGINES[peer].file for peer in peers], folder)
        files["pqmodel"] = Path(path)
        if measured is not file:
            files["pqmodel"] = folder / "measured.pqmodel"
            write_model(files["pqmodel"], measured)
        if tune > 0 and _can_remember():
            with EngineProcess(OWN, threads, folder / "tune.log") as engine:
                _load(engine, files, folder, threads, own)
                engine.ask("tune", seconds=tune)
        engines = [
            stack.enter_context(EngineProcess(engine, threads, folder / f"{engine}.log")) for engine in (OWN, *peers)
        ]
        rows = [_load(engine, files, folder, threads, own) for engine in engines]
        isa = rows[0].pop("isa")
        _check_outputs(engines, folder, precision, of_boxes=is_detector(network.graph))
        for row, times in zip(rows, _take_turns(engines), strict=True):
            p10, middle, p90 = np.percentile(times, (10, 50, 90))
            row |= {"median_ms": float(middle), "p10_ms": float(p10), "p90_ms": float(p90)}
        for row, engine in zip(rows, engines, strict=True):
            row["peak_rss_bytes"] = engine.ask("peak_memory")["bytes"]
    keys = ("engine", "precision", "file_bytes", "median_ms", "p10_ms", "p90_ms", "load_ms", "peak_rss_bytes")
    return {
        "machine": machine_name(),
        "threads": threads,
        "batch": batch,
        "isa": isa,
        "rows": [{key: row[key] for key in keys} for row in rows],
        "ratios": {row["engine"]: rows[0]["median_ms"] / row["median_ms"] for row in rows[1:]},
    }


def _can_remember() -> bool:
    """Say whether tuned kernels can be kept for the process that is measured; warn where they cannot."""
    try:
        tuning.check_folder()
    except InputError as error:
        console.warn(f"kernels are not tuned, for they cannot be remembered: {error}")
        return False
    return True


def _check_parts(graph: Graph, parts: bool, peers: Sequence[str]) -> None:
    """Raise ConfigError where engines are to run boxes, or there are no parts to measure."""
    if parts and not is_detector(graph):
        raise ConfigError("parts: the network has none, for it is no detector; leave it out")
    unable = [peer for peer in peers if ENGINES[peer].file.startswith("onnx")]
    if not parts and unable and is_detector(graph):
        raise ConfigError(
            f"{', '.join(unable)}: cannot choose boxes; measure the detector's parts alone (parts, --parts)"
        )


def input_batches(
    file: ModelFile, batch: int, input_shape: tuple[int, int, int] | None, pictures: AnyPath | None = None
) -> list[Arrays]:
    """Return arrays for the network's inputs: noise, or pictures, of which there may be several batches.

    Raises:
        InputError: the network does not take that shape, or pictures do not become such inputs.
    """
    if is_detector(file.network.graph):
        return detector_batches(file, batch, input_shape, pictures)
    shapes = input_shapes(file.network.graph, batch, input_shape)
    if pictures is not None:
        return picture_batches(file, pictures, shapes)
    rng = np.random.default_rng(0)
    return [[rng.standard_normal(shape, dtype=np.float32) for shape in shapes]]


def input_shapes(graph: Graph, batch: int, input_shape: tuple[int, int, int] | None) -> list[Shape]:
    """Return the shape of each input array, checked.

    Raises:
        InputError: the network does not take that shape, or has several inputs and one shape was given.
    """
    if input_shape is not None and len(graph.inputs) > 1:
        raise InputError(f"the network has {len(graph.inputs)} inputs, which one shape cannot describe; leave it out")
    shapes = [(batch, *(input_shape or declared.default)) for declared in graph.inputs]
    graph.infer_shapes(shapes)
    return shapes


def picture_batches(file: ModelFile, pictures: AnyPath, shapes: Sequence[Shape]) -> list[Arrays]:
    """Return inputs of this shape made of pictures: `CALIBRATION_PICTURES`, or as many as there are whole batches of.

    Raises:
        InputError: the file does not say how pictures become inputs, they do not fit the shape, or are too few.
    """
    if not isinstance(file.preprocessing, Preprocessing) or len(shapes) != 1:
        raise InputError("calibration: the file does not say how pictures become inputs; leave it out")
    (shape,) = shapes
    if (made := (3, *file.preprocessing.crop)) != shape[1:]:
        raise InputError(f"calibration: pictures become inputs of {list(made)}, not {list(shape[1:])}")
    batch = shape[0]
    found = find_pictures(pictures)
    refs = sample_pictures(found, max(batch, CALIBRATION_PICTURES // batch * batch), seed=0)
    if len(refs) < batch:
        raise InputError(f"{pictures}: {len(refs)} pictures are too few for a batch of {batch}")
    firsts = range(0, len(refs) // batch * batch, batch)
    return [[load_batch(refs[first : first + batch], file.preprocessing)] for first in firsts]


def write_files(
    network: Network, batches: Sequence[Arrays], kinds: Iterable[FileKind], folder: Path
) -> dict[FileKind, Path]:
    """Write the decoded dense network in each of the formats, sizes fixed to the inputs', as peers run fastest with."""
    inputs = tuple(
        replace(declared, shape=array.shape, default=array.shape[1:])
        for declared, array in zip(network.graph.inputs, batches[0], strict=True)
    )
    fixed = Network(graph=replace(network.graph, inputs=inputs), tensors=network.tensors)
    kinds = dict.fromkeys(kinds)
    files: dict[FileKind, Path] = {}
    if {"onnx", "onnx-int8"} & kinds.keys():
        from pyquant.export.onnx import onnx_model

        files["onnx"] = folder / "dense.onnx"
        files["onnx"].write_bytes(onnx_model(fixed).SerializeToString())
    if "onnx-int8" in kinds:
        from pyquant.engines.quantized import write_int8

        files["onnx-int8"] = folder / "int8.onnx"
        write_int8(files["onnx"], files["onnx-int8"], [declared.name for declared in inputs], batches)
    if "safetensors" in kinds:
        from pyquant.engines.dense import write_dense
        from pyquant.export.folded import folded

        files["safetensors"] = folder / "dense.safetensors"
        write_dense(folded(fixed), files["safetensors"])
    return files


def _load(
    engine: EngineProcess, files: dict[FileKind, Path], folder: Path, threads: int, own: Mapping[str, Any]
) -> dict[str, Any]:
    """Let an engine load its file, ours with the options `own`; return what is known of its row."""
    spec = ENGINES[engine.engine]
    path = files[spec.file]
    options = own if engine.engine == OWN else {"precision": spec.precision}
    inputs = os.fspath(folder / INPUTS)
    answer = engine.ask(
        "load", engine=engine.engine, path=os.fspath(path), inputs=inputs, threads=threads, options=options
    )
    return {"engine": engine.engine, "precision": options["precision"], "file_bytes": path.stat().st_size, **answer}


def _check_outputs(engines: Sequence[EngineProcess], folder: Path, precision: str, *, of_boxes: bool) -> None:
    """Raise EngineError unless all engines compute what we compute: never compare the times of different networks."""
    ours = None
    for engine in engines:
        path = folder / f"{engine.engine}.npz"
        engine.ask("save_outputs", path=os.fspath(path))
        with np.load(path) as saved:
            outputs = [saved[name] for name in saved.files]
        if of_boxes:
            outputs = scores_found(outputs)
        if ours is None:
            ours = outputs
            continue
        for one, other in zip(ours, outputs, strict=True):
            if one.shape != other.shape:
                raise EngineError(f"{engine.engine}: expected an output of {list(one.shape)}, got {list(other.shape)}")
            difference = float(np.abs(one - other).max() / max(np.abs(one).max(), np.finfo(np.float32).tiny))
            allowed = max(MAX_DIFFERENCE[precision], MAX_DIFFERENCE[ENGINES[engine.engine].precision])
            if not difference <= allowed:
                raise EngineError(
                    f"{engine.engine}: its outputs differ from pyquant's by {difference:.1e} of the largest "
                    f"(at most {allowed:.0e} was expected): it does not run the same network"
                )


def _take_turns(engines: Sequence[EngineProcess]) -> list[list[float]]:
    """Return the times of each engine's runs, in ms."""
    runs, seconds = [], []
    for engine in engines:
        one = min(engine.ask("run", count=WARM_UP_RUNS + 1)["ms"]) / 1000
        runs.append(min(max(round(TURN_SECONDS / one), 1), MAX_RUNS_PER_TURN))
        seconds.append(one * (WARM_UP_RUNS + runs[-1]))
    # A single run can take longer than a turn should.
    turns = max(TURNS[0], min(TURNS[1], round(SECONDS_PER_ENGINE / max(seconds))))
    times: list[list[float]] = [[] for _ in engines]
    for turn in console.track(range(turns), "measuring"):
        order = range(len(engines)) if turn % 2 == 0 else reversed(range(len(engines)))
        for i in order:
            times[i] += engines[i].ask("run", count=WARM_UP_RUNS + runs[i])["ms"][WARM_UP_RUNS:]
    return times
