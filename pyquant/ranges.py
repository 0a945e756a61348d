"""Activation ranges: the numbers that the 8-bit form of each value can stand for, calibrated on inputs of a network."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.console import Progress
from pyquant.errors import InputError
from pyquant.file import ModelFile, read_model, write_model
from pyquant.graph import Graph, Network
from pyquant.histogram import Histogram
from pyquant.learn.calibration import BATCH, Calibration, from_pictures
from pyquant.runtime import Model, check_options
from pyquant.storage import AnyPath, check_writable

CALIBRATED_INPUTS = 256  # of which ranges are known well enough
SEED = 0  # by which pictures are drawn
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
    path: AnyPath, data: AnyPath, *, out: AnyPath, samples: int = CALIBRATED_INPUTS, threads: int | None = None
) -> Calibrated:
    """Give the `.pqmodel` at `path` activation ranges, in place of those that it has, and write it to `out`.

    The same file and pictures give the same file, whatever `threads` is. PyTorch is not needed.

    Args:
        path: the file; it says how pictures become inputs.
        data: a folder or .zip file of pictures, in class folders or flat; no labels needed.
        out: the file to write, which may be `path`; whatever happens, it holds all of the new file or what it held.
        samples: how many pictures are used at most, drawn by a fixed seed from the sorted list.
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
    graph, preprocessing = model.network.graph, model.cropped
    graph.infer_shapes([(graph.inputs[0].shape[0] or 1, 3, *preprocessing.crop)])
    inputs = from_pictures(data, preprocessing, samples=samples, seed=SEED)
    with console.progress() as progress:
        model = with_ranges(model, some_batches(inputs, samples, progress), threads=threads)
    size = write_model(out, model)
    return Calibrated(
        file=os.fspath(out), pictures=inputs.count, values=len(graph.values()), bytes=size, bytes_before=bytes_before
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
    order give the same bits, however they are cut into batches and whatever `threads` is.

    Args:
        network: decoded or not.
        batches: arrays for all inputs of the network, float32 `[N, ..]`. Where the network fixes a batch, N is a
            multiple of it.
        threads: of the network's runs; None: as many as this process may use.

    Raises:
        ConfigError: an impossible number of threads.
        InputError: there is no batch, an array does not fit, or a value is not finite: its layer is named.
    """
    values = network.graph.values()
    exposed = replace(network, graph=replace(network.graph, outputs=values))
    model = Model(ModelFile(network=exposed), threads=threads, kernel=KERNEL)
    histograms = {name: Histogram() for name in values}
    turn = 0
    for batch in batches:
        for arrays in _parts(network, batch):
            results = model(*arrays)
            assert isinstance(results, dict)
            for name, histogram in histograms.items():
                try:
                    histogram.add(results[name], turn)
                except ValueError as error:
                    raise InputError(f"{_source(network, name)} holds {error}; such a network has no ranges") from error
            turn += 1
    if turn == 0:
        raise InputError("ranges need inputs to be measured on, got none")
    return np.array([histogram.best_range() for histogram in histograms.values()], np.float32)


def unmeasured_ranges(graph: Graph) -> Floats:
    """Return ranges that take as much room in a file as those that will be measured, `[V, 2]`."""
    return np.tile(np.array([0, 1], np.float32), (len(graph.values()), 1))


def some_batches(inputs: Calibration, most: int, progress: Progress) -> Iterator[list[Floats]]:
    """Yield at most `most` of the inputs as batches, taken evenly from all: those of an array may be sorted by class.

    Raises:
        InputError: a picture is corrupt.
    """
    count = min(inputs.count, most)
    step = inputs.count // count
    for start in range(0, count, BATCH):
        progress("calibrating ranges", start, count)
        yield [inputs.read(slice(start * step, min(start + BATCH, count) * step, step))]
    progress("calibrating ranges", count, count)


def _parts(network: Network, batch: Sequence[Floats]) -> Iterator[list[Floats]]:
    """Yield the smallest parts that the network takes: memory then does not grow with the batch."""
    size = network.graph.inputs[0].shape[0] or 1
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
