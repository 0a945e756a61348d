"""Heads of detectors, run with a chunk of the boxes at a time, and large values, with an image or a few at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layer_networks import values_of, weighted_layer, with_ranges
from numpy.typing import NDArray

from pyquant import reference
from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.runtime import Model

CHANNELS, SIDE = 512, 16  # of the features of a box: 131,072 numbers, of which 32 boxes fit into a chunk

Build = tuple[ModelFile, list[NDArray[np.float32]]]


def head(rng: np.random.Generator, boxes: int, used: int, *, outputs: tuple[str, ...], columns: int = 7) -> Build:
    """Return RoIAlign and a head of a few layers, and inputs of which `used` boxes are in a picture."""
    align = Node(
        op="roi_align",
        name="align",
        inputs=("images", "boxes", "features"),
        outputs=("aligned",),
        attributes={"output_size": (SIDE, SIDE), "samples": 1},
    )
    dense = DenseConfig()
    conv, tensors = weighted_layer(rng, (3, CHANNELS, 1, 1), dense, name="conv", inputs=("aligned",), output="c")
    relu = Node(op="relu", name="relu", inputs=("c",), outputs=("r",))
    masks = Node(op="select_masks", name="masks", inputs=("r", "boxes"), outputs=("masks",))
    pool = Node(
        op="max_pool2d", name="pool", inputs=("r",), outputs=("p",), attributes={"kernel": (4, 4), "stride": (4, 4)}
    )
    flat = Node(op="flatten", name="flat", inputs=("p",), outputs=("f",))
    fc, more = weighted_layer(rng, (5, 3 * 16), dense, name="fc", inputs=("f",), output="scores")
    inputs = tuple(
        GraphInput(name=name, shape=shape, default=default)
        for name, shape, default in [
            ("images", (None, 3, None, None), (3, 32, 32)),
            ("boxes", (None, columns), (columns,)),
            ("features", (None, CHANNELS, None, None), (CHANNELS, 8, 8)),
        ]
    )
    graph = Graph(inputs=inputs, nodes=(align, conv, relu, pool, flat, fc, masks), outputs=outputs)
    rows = np.zeros((boxes, columns), np.float32)
    rows[used:, 0] = -1
    rows[:, 1:3] = rng.uniform(0, 16, (boxes, 2))
    rows[:, 3:5] = rows[:, 1:3] + rng.uniform(2, 16, (boxes, 2))
    rows[:, 6] = rng.integers(3, size=boxes)
    images, features = np.zeros((1, 3, 32, 32), np.float32), rng.standard_normal((1, CHANNELS, 8, 8)).astype(np.float32)
    return ModelFile(network=Network(graph=graph, tensors={**tensors, **more})), [images, rows, features]


def outputs_of(result: Any) -> dict[str, NDArray[np.float32]]:
    assert isinstance(result, dict)
    return result


@pytest.mark.parametrize(("boxes", "used"), [(1, 1), (32, 32), (33, 33), (70, 70), (70, 33), (70, 1), (70, 0)])
def test_chunks_give_what_all_boxes_at_once_give(boxes: int, used: int, rng: np.random.Generator) -> None:
    file, inputs = head(rng, boxes, used, outputs=("masks", "scores"))
    expected = reference.run(file.network, *inputs)
    for threads in (1, 3):
        model = Model(file, threads=threads)
        for _ in range(2):  # a run leaves the plan as it was
            got = outputs_of(model(*inputs))
            np.testing.assert_allclose(got["scores"][:used], expected["scores"][:used], rtol=0, atol=1e-3)
            np.testing.assert_allclose(got["masks"], expected["masks"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("outputs", [("masks", "f"), ("masks", "p", "scores"), ("aligned", "masks"), ("c", "r")])
def test_values_inside_may_be_read_from_outside(outputs: tuple[str, ...], rng: np.random.Generator) -> None:
    file, inputs = head(rng, 40, 40, outputs=outputs)
    expected = reference.run(file.network, *inputs)
    got = outputs_of(Model(file, threads=2)(*inputs))
    for name in outputs:
        np.testing.assert_allclose(got[name], expected[name], rtol=0, atol=1e-3)


def test_bytes_that_are_read_outside(rng: np.random.Generator) -> None:
    file, inputs = head(rng, 40, 40, outputs=("c",))
    align, conv = file.network.graph.nodes[:2]
    again = replace(align, name="again", outputs=("aligned_again",))
    conv, tensors = weighted_layer(
        rng, (8, CHANNELS, 1, 1), DenseConfig(), name="conv", inputs=("aligned",), output="c"
    )
    after, more = weighted_layer(rng, (4, 8, 1, 1), DenseConfig(), name="after", inputs=("c",), output="d")
    results = []
    for nodes in ((align, conv, again, after), (again, align, conv, after)):  # another section between the two, or not
        graph = replace(file.network.graph, nodes=nodes, outputs=("aligned_again", "d"))
        network = Network(graph=graph, tensors={**tensors, **more})
        width = {"c": 200.0}
        ranges = np.array([(-width.get(name, 20.0), width.get(name, 20.0)) for name in graph.values()], np.float32)
        calibrated = replace(file, network=network.with_activation_ranges(ranges))
        results.append(outputs_of(Model(calibrated, precision="fast", kernel="direct8", threads=2)(*inputs))["d"])
    np.testing.assert_array_equal(*results)
    assert np.ptp(results[0]) > 1


def test_memory_does_not_grow_with_the_number_of_boxes(rng: np.random.Generator) -> None:
    sizes = []
    for boxes in (64, 640):
        file, inputs = head(rng, boxes, boxes, outputs=("masks", "scores"))
        plan, _ = Model(file)._prepare(inputs)
        sizes.append(plan.arena_bytes)
    # Only what is there as a whole is larger: boxes, masks and what they are chosen from.
    whole = 4 * (7 + 5 + 4 * SIDE * SIDE)
    assert sizes[1] - sizes[0] < 1.1 * whole * (640 - 64)
    assert sizes[0] > 4 * 32 * CHANNELS * SIDE * SIDE


def test_profile_adds_up_the_chunks(rng: np.random.Generator) -> None:
    file, inputs = head(rng, 70, 70, outputs=("masks", "scores"))
    steps = Model(file).profile(*inputs)["steps"]
    assert [step["name"] for step in steps] == ["align", "conv", "pool", "fc", "masks"]
    assert all(step["ms"] > 0 for step in steps)


PADDED: dict[str, Any] = {"padding": (1, 1, 1, 1)}


def large_planes(
    rng: np.random.Generator, images: int, *, side: int = 64, outputs: tuple[str, ...] = ("scores",)
) -> Build:
    """Return a network that begins with values of 128 channels, a residual among them, and its input.

    Where `side` is 64, such a value takes 2 MB for each image in floats; in bytes it does where it is 128, and for six
    images together where it is 56.
    """
    dense, pair = DenseConfig(), ProductConfig(block=(2, 3, 3), centroids=16)
    wide, tensors = weighted_layer(rng, (128, 4, 1, 1), dense, name="wide", inputs=("x",), output="w")
    down, more = weighted_layer(rng, (6, 128, 1, 1), dense, name="down", inputs=("w",), output="d")
    conv, coded = weighted_layer(rng, (6, 6, 3, 3), pair, name="conv", inputs=("d",), output="c", **PADDED)
    up, others = weighted_layer(rng, (128, 6, 1, 1), dense, name="up", inputs=("c",), output="u")
    add = Node(op="add", name="sum", inputs=("u", "w"), outputs=("s",))
    relu = Node(op="relu", name="relu", inputs=("s",), outputs=("r",))
    pool = Node(
        op="max_pool2d", name="pool", inputs=("r",), outputs=("p",), attributes={"kernel": (8, 8), "stride": (8, 8)}
    )
    flat = Node(op="flatten", name="flat", inputs=("p",), outputs=("f",))
    fc, last = weighted_layer(rng, (5, 2 * side**2), dense, name="fc", inputs=("f",), output="scores")
    graph = Graph(
        inputs=(GraphInput(name="x", shape=(None, 4, None, None), default=(4, side, side)),),
        nodes=(wide, down, conv, up, add, relu, pool, flat, fc),
        outputs=outputs,
    )
    scaled = {
        name: 0.1 * tensor if tensor.dtype == np.float32 else tensor for name, tensor in {**tensors, **more}.items()
    }
    network = Network(graph=graph, tensors={**scaled, **coded, **others, **last})
    return ModelFile(network=network), [rng.standard_normal((images, 4, side, side), dtype=np.float32)]


@pytest.mark.parametrize(("images", "threads"), [(2, 1), (3, 1), (3, 2), (4, 2), (2, 2), (6, 3)])
@pytest.mark.parametrize("outputs", [("scores",), ("w", "scores"), ("d", "r", "scores"), ("p",)])
def test_images_of_large_values(images: int, threads: int, outputs: tuple[str, ...], rng: np.random.Generator) -> None:
    file, inputs = large_planes(rng, images, outputs=outputs)
    expected = reference.run(file.network, *inputs)
    model = Model(file, threads=threads)
    for _ in range(2):  # a run leaves the plan as it was
        got = model(*inputs)
        for name, values in (got if isinstance(got, dict) else {outputs[0]: got}).items():
            np.testing.assert_allclose(values, expected[name], rtol=0, atol=1e-5 * np.abs(expected[name]).max())
    assert all(step["ms"] > 0 for step in model.profile(*inputs)["steps"])


@pytest.mark.parametrize("outputs", [("scores",), ("w", "scores"), ("r", "scores")])
@pytest.mark.parametrize(("calibrated", "images", "side"), [(False, 4, 128), (True, 4, 128), (True, 6, 56)])
def test_images_of_large_values_in_bytes(
    calibrated: bool, outputs: tuple[str, ...], images: int, side: int, rng: np.random.Generator
) -> None:
    """Ranges that a run measures are those of all images, so that these are not run a few at a time then."""
    file, (x,) = large_planes(rng, images, side=side, outputs=outputs)
    x *= np.linspace(0.2, 4, images, dtype=np.float32).reshape(images, 1, 1, 1)
    values = values_of(file, x)
    if calibrated:
        file = with_ranges(file, values)
    results = []
    for isa, threads in (("reference", 1), (None, 1), (None, 2), (None, 4)):
        got = Model(file, precision="fast", kernel="direct8", isa=isa, threads=threads)(x)
        results.append(got if isinstance(got, dict) else {outputs[0]: got})
    for name, first in results[0].items():
        largest = np.abs(values[name]).max()
        assert np.abs(first - values[name]).max() < 0.05 * largest
        for got in results[1:]:
            np.testing.assert_allclose(got[name], first, rtol=0, atol=1e-5 * largest)


def test_values_of_another_rank_are_not_taken_apart(rng: np.random.Generator) -> None:
    """As many channels as images: a number for each channel is none for each image."""
    product = Node(op="mul", name="product", inputs=("x", "weights"), outputs=("y",))
    again = Node(op="relu", name="again", inputs=("y",), outputs=("z",))
    inputs = (
        GraphInput(name="x", shape=(None, 4, None, None), default=(4, 400, 400)),
        GraphInput(name="weights", shape=(None, 1, 1), default=(1, 1)),
    )
    network = Network(graph=Graph(inputs=inputs, nodes=(product, again), outputs=("z",)), tensors={})
    x = rng.standard_normal((4, 4, 400, 400), dtype=np.float32)
    weights = rng.standard_normal((4, 1, 1), dtype=np.float32)
    got = Model(ModelFile(network=network), threads=1)(x, weights)
    np.testing.assert_array_equal(got, np.maximum(x * weights, 0))


def test_memory_for_images_grows_by_what_is_there_as_a_whole(rng: np.random.Generator) -> None:
    sizes = []
    for images in (4, 40):
        file, inputs = large_planes(rng, images)
        plan, _ = Model(file, threads=2)._prepare(inputs)
        sizes.append(plan.arena_bytes)
    assert sizes[1] - sizes[0] < 1.1 * 36 * 4 * (4 * 64 * 64 + 128 * 64)  # inputs, and what is pooled
    assert sizes[0] > 4 * 2 * 128 * 64 * 64


def test_memory_for_bytes_grows_once_they_fill_a_cache_together(rng: np.random.Generator) -> None:
    file, (x,) = large_planes(rng, 60, side=56)
    graph = replace(file.network.graph, nodes=file.network.graph.nodes[:2], outputs=("d",))
    tensors = {name: value for name, value in file.network.tensors.items() if name.startswith(("wide", "down"))}
    file = ModelFile(network=Network(graph=graph, tensors=tensors))
    model = Model(with_ranges(file, values_of(file, x[:1])), precision="fast", kernel="direct8")
    sizes = {images: model._prepare([x[:images]])[0].arena_bytes for images in (5, 6, 60)}
    assert sizes[6] < sizes[5]
    assert sizes[60] - sizes[6] < 1.1 * 54 * 4 * (4 + 6) * 56 * 56  # what is read, and what is written
