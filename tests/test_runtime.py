"""The model as users hold it: calls, plans, threads, forks, predictions and what it refuses."""

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer

from pyquant import _core, reference
from pyquant.classes import ClassName
from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile, write_model
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.preprocessing import Preprocessing
from pyquant.runtime import Model


@pytest.fixture
def classifier(rng: np.random.Generator) -> ModelFile:
    """A convolution, global pooling and four classes."""
    conv, tensors = weighted_layer(
        rng, (8, 3, 3, 3), ProductConfig(block=(1, 3, 3), centroids=16), name="conv", output="a", padding=(1, 1, 1, 1)
    )
    fc, more = weighted_layer(
        rng, (4, 8), ProductConfig(block=(4, 1, 1), centroids=4), name="fc", inputs=("c",), output="logits"
    )
    nodes = (
        conv,
        Node(op="adaptive_avg_pool2d", name="pool", inputs=("a",), outputs=("b",), attributes={"output_size": (1, 1)}),
        Node(op="flatten", name="flatten", inputs=("b",), outputs=("c",)),
        fc,
    )
    graph = Graph(
        inputs=(GraphInput(name="x", shape=(None, 3, None, None), default=(3, 16, 16)),),
        nodes=nodes,
        outputs=("logits",),
    )
    return ModelFile(
        network=Network(graph=graph, tensors={**tensors, **more}),
        preprocessing=Preprocessing(resize=16, crop=(16, 16)),
        classes=tuple(ClassName(folder=f"n{i}", name=f"thing {i}") for i in range(4)),
        provenance={},
    )


def images(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_inputs_and_outputs(classifier: ModelFile) -> None:
    model = Model(classifier)
    assert [(i.name, i.shape, i.default) for i in model.inputs] == [("x", (None, 3, None, None), (3, 16, 16))]
    assert model.outputs == ("logits",)


def test_many_shapes_in_turn(classifier: ModelFile, rng: np.random.Generator) -> None:
    model = Model(classifier)
    for shape in [(1, 3, 16, 16), (2, 3, 9, 30), (5, 3, 1, 1), (1, 3, 40, 8), (3, 3, 16, 16), (1, 3, 17, 16)] * 2:
        x = images(rng, *shape)
        np.testing.assert_allclose(model(x), reference.run(classifier.network, x)["logits"], atol=1e-4)


def test_several_outputs_come_as_a_dict(rng: np.random.Generator) -> None:
    nodes = [Node(op=op, name=op, inputs=("x",), outputs=(op,)) for op in ("relu", "sigmoid")]
    file = model_file(nodes, {}, (1, 2, 3, 3))
    graph = Graph(inputs=file.network.graph.inputs, nodes=tuple(nodes), outputs=("relu", "sigmoid", "x"))
    x = images(rng, 2, 2, 3, 3)
    got = Model(ModelFile(network=Network(graph=graph, tensors={}), preprocessing=None, classes=(), provenance={}))(x)
    assert isinstance(got, dict)
    np.testing.assert_array_equal(got["relu"], np.maximum(x, 0))
    np.testing.assert_array_equal(got["x"], x)
    np.testing.assert_allclose(got["sigmoid"], 1 / (1 + np.exp(-x)), atol=1e-6)


def test_same_bits_for_any_number_of_threads(classifier: ModelFile, rng: np.random.Generator) -> None:
    x = images(rng, 3, 3, 33, 31)
    for kernel in _core.kernel_names(fast=False):
        one, *others = (Model(classifier, threads=threads, kernel=kernel)(x) for threads in (1, 2, 5))
        for other in others:
            np.testing.assert_array_equal(other, one)


def test_arrays_in_any_layout(classifier: ModelFile, rng: np.random.Generator) -> None:
    model = Model(classifier)
    x = images(rng, 2, 3, 16, 16)
    np.testing.assert_array_equal(model(np.asfortranarray(x)), model(x))
    np.testing.assert_array_equal(model(x[:, :, ::-1][:, :, ::-1]), model(x))
    x.setflags(write=False)
    model(x)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((1, 3, 16, 16)), "expected float32, got float64"),
        (np.zeros((1, 3, 16, 16), np.uint8), "expected float32, got uint8"),
        (np.zeros((3, 16, 16), np.float32), r"expected shape \[any, 3, any, any\], got \[3, 16, 16\]"),
        (np.zeros((1, 4, 16, 16), np.float32), r"got \[1, 4, 16, 16\]"),
        (np.zeros((0, 3, 16, 16), np.float32), r"got \[0, 3, 16, 16\]"),
    ],
)
def test_input_that_does_not_fit(classifier: ModelFile, x: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Model(classifier)(x)


def test_wrong_number_of_inputs(classifier: ModelFile) -> None:
    with pytest.raises(InputError, match="takes 1 inputs, got 0"):
        Model(classifier)()


def test_input_too_small_for_a_layer(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (2, 3, 5, 5), ProductConfig(block=(1, 5, 5), centroids=2))
    with pytest.raises(InputError, match=r"layer 'layer' .* give a larger input"):
        Model(model_file([node], tensors, (1, 3, 8, 8)))(images(rng, 1, 3, 4, 9))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fancy"}, "expected one of exact, fast, got 'fancy'"),
        ({"threads": 0}, "expected 1 to 1024, got 0"),
        ({"memory_budget": -1}, "memory_budget: expected 0 to .* bytes, got -1"),
    ],
)
def test_unknown_option(classifier: ModelFile, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Model(classifier, **options)


def test_several_threads_call_one_model(classifier: ModelFile, rng: np.random.Generator) -> None:
    model = Model(classifier, threads=2)
    inputs = [images(rng, 1 + i % 3, 3, 24, 20 + i % 2) for i in range(6)]
    expected = [np.asarray(model(x)) for x in inputs]
    wrong: list[int] = []

    def call(first: int) -> None:
        for turn in range(40):
            i = (first + turn) % len(inputs)
            if not np.array_equal(np.asarray(model(inputs[i])), expected[i]):
                wrong.append(i)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(4)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the system has no fork")
def test_model_works_in_a_forked_child(classifier: ModelFile, rng: np.random.Generator) -> None:
    model = Model(classifier, threads=2)
    x = images(rng, 2, 3, 64, 64)
    expected = model(x)
    stop = threading.Event()

    def keep_busy() -> None:
        while not stop.is_set():
            model(x)

    busy = threading.Thread(target=keep_busy)  # so that some forks happen in the middle of a run
    busy.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                same = all(np.array_equal(model(x), expected) for _ in range(3))
                os._exit(0 if same else 1)
            assert os.waitpid(child, 0)[1] == 0
    finally:
        stop.set()
        busy.join()


STARVED = """
import os, resource, sys
import numpy as np
import pyquant

x = np.ones((1, 3, 64, 64), np.float32)
expected = pyquant.load(sys.argv[1], threads=1)(x)
model = pyquant.load(sys.argv[1], threads=64)
size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + 2**27, size + 2**27))
for _ in range(3):
    np.testing.assert_allclose(model(x), expected, rtol=0, atol=1e-5)
child = os.fork()
if child == 0:
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="the system does not tell how much memory is used")
def test_threads_that_cannot_be_started_are_done_without(classifier: ModelFile, tmp_path: Path) -> None:
    write_model(tmp_path / "x.pqmodel", classifier)
    subprocess.run([sys.executable, "-c", STARVED, tmp_path / "x.pqmodel"], check=True, timeout=60)


def test_denormal_numbers_count_as_zero(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (40, 30, 3, 3), DenseConfig(), padding=(1, 1, 1, 1))
    tensors["layer.bias"][:] = 0
    file = model_file([node], tensors, (1, 30, 7, 7))
    x = np.full((1, 30, 7, 7), 1e-38, np.float32)
    for isa in _core.available_isas():
        for threads in (1, 3):
            assert not np.asarray(Model(file, isa=isa, threads=threads)(x)).any()
    assert (x * np.float32(0.5)).all()  # elsewhere they do not


def test_predict(classifier: ModelFile, rng: np.random.Generator) -> None:
    picture = rng.integers(256, size=(20, 31, 3), dtype=np.uint8)
    model = Model(classifier)
    (best, two) = model.predict([picture], topk=9)[0], model.predict([picture, picture], topk=2)
    assert [len(best), len(two), len(two[0])] == [4, 2, 2]
    assert sum(p["probability"] for p in best) == pytest.approx(1)
    assert best[0]["probability"] >= best[1]["probability"]
    assert classifier.preprocessing is not None
    logits = np.asarray(model(classifier.preprocessing(picture)[None]))
    assert best[0]["class"] == f"thing {logits.argmax()}"


def test_predict_needs_preprocessing(rng: np.random.Generator) -> None:
    file = model_file([Node(op="relu", name="r", inputs=("x",), outputs=("y",))], {}, (1, 3, 8, 8))
    with pytest.raises(InputError, match="does not say how pictures become inputs"):
        Model(file).predict([np.zeros((8, 8, 3), np.uint8)])


def test_predict_needs_a_classifier(rng: np.random.Generator) -> None:
    file = model_file([Node(op="relu", name="r", inputs=("x",), outputs=("y",))], {}, (1, 3, 8, 8))
    file = ModelFile(
        network=file.network, preprocessing=Preprocessing(resize=8, crop=(8, 8)), classes=(), provenance={}
    )
    with pytest.raises(InputError, match="not a score per class"):
        Model(file).predict([np.zeros((8, 8, 3), np.uint8)])


def test_paths_do_not_depend_on_the_batch(rng: np.random.Generator) -> None:
    """Planes of whole vectors are tiled image by image, others all together: neither is cheaper for its images."""
    codec = ProductConfig(block=(2, 3, 3), centroids=64)
    node, tensors = weighted_layer(rng, (64, 64, 3, 3), codec, padding=(1, 1, 1, 1))
    model = Model(model_file([node], tensors, (1, 64, 32, 32)), threads=1)
    (first,) = model.profile(images(rng, 1, 64, 32, 32))["steps"]
    (of_many,) = model.profile(images(rng, 8, 64, 32, 32))["steps"]
    assert first["kernel"] == of_many["kernel"]


def test_profile(classifier: ModelFile, rng: np.random.Generator) -> None:
    steps = Model(classifier).profile(images(rng, 1, 3, 16, 16))["steps"]
    assert [step["name"] for step in steps] == ["conv", "pool", "fc"]
    assert all(set(step) == {"name", "op", "kernel", "candidates", "ms", "share", "gmacs", "of_peak"} for step in steps)
    assert sum(step["share"] for step in steps) == pytest.approx(1)
    # A unit for matrices not all processors have.
    assert [[kernel for kernel in step["candidates"] if kernel != "matrix"] for step in steps] == [
        ["direct", "winograd2", "winograd4", "table"],
        [],
        ["direct", "table", "dot", "lookup"],
    ]
