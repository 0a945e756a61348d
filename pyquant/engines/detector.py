"""What `bench` runs of a detector: pictures of one size, or, for engines that cannot choose boxes, its tensor parts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from pyquant.detector import CHOICES, DetectorPreprocessing
from pyquant.engines import Arrays
from pyquant.errors import InputError
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network
from pyquant.layers import ACTIVATION_RANGES
from pyquant.pictures import find_pictures, sample_pictures
from pyquant.runtime import Model
from pyquant.storage import AnyPath

NOT_TENSORS = CHOICES | {"roi_align"}  # operations that boxes decide
CALIBRATION_PICTURES = 8  # large ones, each as good as many small ones


def detector_batches(
    file: ModelFile, batch: int, picture: tuple[int, int, int] | None, pictures: AnyPath | None
) -> list[Arrays]:
    """Return inputs for pictures of a size, by default of the largest that the detector makes: pictures, or noise.

    Raises:
        InputError: the network takes no such pictures; or there are some, and the file does not say how they become
            inputs, or they cannot be read.
    """
    preprocessing = file.preprocessing
    channels, height, width = picture or file.network.graph.inputs[0].default
    multiple = preprocessing.multiple if isinstance(preprocessing, DetectorPreprocessing) else 1
    shape = (batch, channels, _padded(height, multiple), _padded(width, multiple))
    sizes = np.full((batch, 2), (height, width), np.float32)
    file.network.graph.infer_shapes([shape, sizes.shape])
    if pictures is None:
        images = np.zeros(shape, np.float32)
        noise = np.random.default_rng(0).standard_normal((batch, channels, height, width), dtype=np.float32)
        images[:, :, :height, :width] = noise
        return [[images, sizes]]
    if not isinstance(preprocessing, DetectorPreprocessing):
        raise InputError("calibration: the file does not say how pictures become inputs; leave it out")
    as_they_are = replace(preprocessing, short=min(height, width), long=max(height, width))
    count = max(CALIBRATION_PICTURES // batch, 1) * batch
    refs = sample_pictures(find_pictures(pictures), count, seed=0)
    if len(refs) < batch:
        raise InputError(f"{pictures}: {len(refs)} pictures are too few for a batch of {batch}")
    cut = [np.asarray(ImageOps.fit(Image.fromarray(ref.open()), (width, height))) for ref in refs]
    made = [as_they_are(pixels)[0] for pixels in cut]
    return [[np.stack(made[i : i + batch]), sizes] for i in range(0, len(made) // batch * batch, batch)]


def with_regions(file: ModelFile, batches: Sequence[Arrays], threads: int) -> tuple[ModelFile, list[Arrays]]:
    """Return a detector's tensor parts side by side, with regions for inputs, and what these are on some batches.

    The parts are its backbone, pyramid and heads, for as many regions as it chooses at most: all that other engines
    can run, and nothing that depends on the boxes that are found.
    """
    network = file.network
    graph = network.graph
    known = graph.infer_shapes([array.shape for array in batches[0]])
    kept = tuple(node for node in graph.nodes if node.op not in NOT_TENSORS)
    written = {name for node in kept for name in node.outputs}
    pictures = graph.inputs[0]
    read = dict.fromkeys(name for node in kept for name in node.inputs)
    inputs = [
        GraphInput(name=name, shape=known[name], default=known[name][1:])
        for name in read
        if name not in written and name != pictures.name
    ]
    outputs = dict.fromkeys(name for node in graph.nodes if node.op in CHOICES for name in node.inputs)
    parts = Graph(inputs=(pictures, *inputs), nodes=kept, outputs=tuple(name for name in outputs if name in written))
    parts.check_edges()
    own = {name: tensor for name, tensor in network.tensors.items() if name != ACTIVATION_RANGES}
    result = Network(graph=parts, tensors=own)
    if (ranges := network.activation_ranges) is not None:
        of = dict(zip(graph.values(), ranges, strict=True))
        result = result.with_activation_ranges(np.array([of[name] for name in parts.values()]))
    return replace(file, network=result, preprocessing=None), list(_with_regions(network, inputs, batches, threads))


def _with_regions(
    network: Network, regions: Sequence[GraphInput], batches: Sequence[Arrays], threads: int
) -> Iterator[Arrays]:
    if not regions:
        yield from ([images] for images, _ in batches)
        return
    names = tuple(region.name for region in regions)
    cutting = Model(ModelFile(network=replace(network, graph=replace(network.graph, outputs=names))), threads=threads)
    for images, sizes in batches:
        cut = cutting(images, sizes)
        yield [images, *(cut.values() if isinstance(cut, dict) else [cut])]


def scores_found(outputs: Sequence[NDArray[np.float32]]) -> list[NDArray[np.float32]]:
    """Return what can be compared of a detector's outputs: the scores, sorted. A rounding error changes the rest."""
    rows = next(output for output in outputs if output.ndim == 2)
    return [np.sort(np.where(rows[:, 0] >= 0, rows[:, 5], 0))]


def _padded(side: int, multiple: int) -> int:
    return -(-side // multiple) * multiple
