"""Activation ranges: the numbers that the 8-bit form of each value can stand for, calibrated on inputs of a network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.console import Progress
from pyquant.detector import DetectorPreprocessing, rows_of_values
from pyquant.errors import InputError
from pyquant.file import ModelFile, read_model, write_model
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.histogram import Histogram
from pyquant.learn.calibration import BATCH, Calibration, from_pictures
from pyquant.pictures import PictureRef, find_pictures, sample_pictures
from pyquant.runtime import Model, check_options
from pyquant.storage import AnyPath, check_writable

CALIBRATED_INPUTS = 256  # of which ranges are known well enough
CALIBRATED_PICTURES = 32  # whole ones, of a detector: each has as many pixels as ten or twenty inputs of a classifier
SEED = 0  # by which pictures are drawn
PART_BYTES = 1 << 28  # of values that are looked at together: all of a detector's would be gigabytes
# A path that every layer has, and that gives the same bits for any number of threads.
KERNEL = "direct"

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibrated:
    """What `calibrate` has done."""

    file: str
    pictures: int
    values: int  # of the network, each with its range
    bytes: int  # of the file
    bytes_before: int

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, as `calibrate --json` prints it."""
        return {key: getattr(self, key) for key in self.__slots__}


def calibrate(
    path: AnyPath, data: AnyPath, *, out: AnyPath, samples: int | None = None, threads: int | None = None
) -> Calibrated:
    """Give the `.pqmodel` at `path` activation ranges, in place of those that it has, and write it to `out`.

    The same file and pictures give the same file, whatever `threads` is. PyTorch is not needed. A detector runs on
    whole pictures, each of the size that it is given in use.

    Args:
        path: the file; it says how pictures become inputs.
        data: a folder or .zip file of pictures, in class folders or flat; no labels needed.
        out: the file to write, which may be `path`; whatever happens, it holds all of the new file or what it held.
        samples: how many pictures are used at most, drawn by a fixed seed from the sorted list; None: 256, for a
            detector 32.
        threads: of the network's runs; None: as many as this process may use.

    Raises:
        ConfigError: an impossible number of threads.
        FormatError: `path` is not a valid `.pqmodel`.
        InputError: a file cannot be read or written, there is no picture, one is corrupt or does not fit the network,
            the file has no preprocessing, or a layer gives numbers that are not finite.
    """
    check_options(threads, "exact")
    model = read_model(path)
    bytes_before = os.path.getsize(path)
    check_writable(out, inputs=(data,))
    graph = model.network.graph
    with console.progress() as progress:
        if isinstance(model.preprocessing, DetectorPreprocessing):
            pictures = calibrated_pictures(data, CALIBRATED_PICTURES if samples is None else samples)
            count, batches = len(pictures), whole_pictures(pictures, model.preprocessing, progress)
        else:
            most, preprocessing = CALIBRATED_INPUTS if samples is None else samples, model.cropped
            graph.infer_shapes([(graph.inputs[0].shape[0] or 1, 3, *preprocessing.crop)])
            inputs = from_pictures(data, preprocessing, samples=most, seed=SEED)
            count, batches = inputs.count, some_batches(inputs, most, progress)
        model = with_ranges(model, batches, threads=threads)
    size = write_model(out, model)
    return Calibrated(
        file=os.fspath(out), pictures=count, values=len(graph.values()), bytes=size, bytes_before=bytes_before
    )


def with_ranges(model: ModelFile, batches: Iterable[Sequence[Floats]], *, threads: int | None = None) -> ModelFile:
    """Return `model` with ranges measured on `batches`; see `measure_ranges`."""
    return replace(
        model, network=model.network.with_activation_ranges(measure_ranges(model.network, batches, threads=threads))
    )


def measure_ranges(network: Network, batches: Iterable[Sequence[Floats]], *, threads: int | None = None) -> Floats:
    """Return the range of each value of a network, in the order of `network.graph.values()`, float32 `[V, 2]`.

    The network runs in fp32, one input after the other. A range ends where the squared error of the value's 8-bit form
    is least, numbers clipped and rounded together; it holds 0, and 0 is one of its levels. The same inputs in the same
    order give the same bits, however they are cut into batches and whatever `threads` is. What a detector makes of rows
    that hold no box does not count.

    Args:
        network: decoded or not.
        batches: arrays for all inputs of the network, float32 `[N, ..]`. Where the network fixes a batch, N is a
            multiple of it.
        threads: of the network's runs; None: as many as this process may use.

    Raises:
        ConfigError: an impossible number of threads.
        InputError: there is no batch, an array does not fit, or a value is not finite: its layer is named.
    """
    rows = rows_of_values(network.graph)
    histograms = {name: Histogram() for name in network.graph.values()}
    graphs = list(_cut(network.graph))
    parts = [_Part(network, graph, threads, keep=len(graphs) == 1) for graph in graphs]
    last = {name: index for index, part in enumerate(parts) for name in (*part.reads, *map(rows.get, part.writes))}
    turn = 0
    for batch in batches:
        for arrays in _single(network, batch):
            values = dict(zip((declared.name for declared in network.graph.inputs), arrays, strict=True))
            for name in values:
                _count(histograms[name], network, name, values[name], turn)
            for index, part in enumerate(parts):
                values |= part.run(values)
                for name in part.writes:
                    boxes = values[rows[name]] if name in rows else None
                    used = values[name] if boxes is None else values[name][boxes[:, 0] >= 0]
                    _count(histograms[name], network, name, used, turn)
                values = {name: value for name, value in values.items() if last.get(name, -1) > index}
            turn += 1
    if turn == 0:
        raise InputError("ranges need inputs to be measured on, got none")
    return np.array([histogram.best_range() for histogram in histograms.values()], np.float32)


def unmeasured_ranges(graph: Graph) -> Floats:
    """Return ranges that take as much room in a file as those that will be measured, `[V, 2]`."""
    return np.tile(np.array([0, 1], np.float32), (len(graph.values()), 1))


def some_batches(inputs: Calibration, most: int, progress: Progress) -> Iterator[list[Floats]]:
    """Yield at most `most` of the inputs as batches, taken evenly from all.

    Raises:
        InputError: a picture is corrupt.
    """
    count, done = min(inputs.count, most), 0
    for batch in inputs.evenly(count, BATCH):
        progress("calibrating ranges", done, count)
        yield [batch]
        done += len(batch)
    progress("calibrating ranges", count, count)


def calibrated_pictures(data: AnyPath, most: int) -> list[PictureRef]:
    """Return at most `most` pictures of a folder or zip file, drawn by a fixed seed.

    Raises:
        InputError: there is no such folder or zip file, or no picture in it.
    """
    found = find_pictures(data)
    refs = sample_pictures(found, most, SEED)
    console.note(f"calibrating ranges on {len(refs):,} of {len(found):,} pictures, drawn by seed {SEED}")
    return refs


def whole_pictures(
    refs: Sequence[PictureRef], preprocessing: DetectorPreprocessing, progress: Progress
) -> Iterator[list[Floats]]:
    """Yield the inputs of a detector for one picture after the other.

    Raises:
        InputError: a picture is corrupt.
    """
    for done, ref in enumerate(refs):
        progress("calibrating ranges", done, len(refs))
        image, size = preprocessing(ref.open())
        yield [image[None], size[None]]
    progress("calibrating ranges", len(refs), len(refs))


class _Part:
    """Layers that follow each other, and all values that they write."""

    def __init__(self, network: Network, graph: Graph, threads: int | None, *, keep: bool) -> None:
        """Prepare to run `graph`; unless `keep`, no memory is held between runs."""
        self.reads = tuple(declared.name for declared in graph.inputs)
        self.writes = graph.outputs
        self._file = ModelFile(network=replace(network.with_activation_ranges(None), graph=graph))
        self._threads = threads
        self._model = self._new_model() if keep else None

    def run(self, values: Mapping[str, Floats]) -> dict[str, Floats]:
        """Return what the layers write."""
        results = (self._model or self._new_model())(*(values[name] for name in self.reads))
        return results if isinstance(results, dict) else {self.writes[0]: results}

    def _new_model(self) -> Model:
        return Model(self._file, threads=self._threads, kernel=KERNEL)


def _cut(graph: Graph) -> Iterator[Graph]:
    """Yield the parts of a graph: layers whose outputs take `PART_BYTES` or a little more for usual inputs."""
    shapes, inputs = graph.infer_shapes(), {declared.name: declared for declared in graph.inputs}
    nodes: list[Node] = []
    held = 0
    for number, node in enumerate(graph.nodes, 1):
        nodes.append(node)
        held += sum(4 * prod(shapes[name]) for name in node.outputs)
        if held < PART_BYTES and number < len(graph.nodes):
            continue
        written = tuple(name for part in nodes for name in part.outputs)
        read = dict.fromkeys(name for part in nodes for name in part.inputs if name not in written)
        declared = (
            inputs.get(name) or GraphInput(name=name, shape=(None,) * len(shapes[name]), default=shapes[name][1:])
            for name in read
        )
        yield Graph(inputs=tuple(declared), nodes=tuple(nodes), outputs=written)
        nodes, held = [], 0


def _count(histogram: Histogram, network: Network, name: str, array: Floats, turn: int) -> None:
    if not array.size:
        return
    try:
        histogram.add(array, turn)
    except ValueError as error:
        raise InputError(f"{_source(network, name)} holds {error}; such a network has no ranges") from error


def _single(network: Network, batch: Sequence[Floats]) -> Iterator[list[Floats]]:
    """Yield the smallest parts that the network takes: memory then does not grow with the batch."""
    size, wanted = network.graph.inputs[0].shape[0] or 1, len(network.graph.inputs)
    if len(batch) != wanted:
        raise InputError(f"the network takes {wanted} inputs, got {len(batch)}")
    count = len(batch[0]) if batch and np.ndim(batch[0]) else 0
    if any(len(array) != count for array in batch):
        raise InputError(f"the arrays of a batch have {[len(array) for array in batch]} inputs; expected equal numbers")
    for start in range(0, count, size):
        yield [array[start : start + size] for array in batch]


def _source(network: Network, value: str) -> str:
    """Return what writes a value, for a message."""
    for node in network.graph.nodes:
        if value in node.outputs:
            return f"layer '{node.name}' ({node.op}): its output"
    return f"input '{value}'"
