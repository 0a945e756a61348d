"""Kernels that are measured, chosen, and remembered between processes."""

from pathlib import Path

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer

from pyquant import _core, tuning
from pyquant.codecs import ProductConfig
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile
from pyquant.runtime import Model

SHAPE = (1, 4, 9, 9)


@pytest.fixture
def file(rng: np.random.Generator) -> ModelFile:
    """A 3x3 convolution."""
    codec = ProductConfig(block=(1, 3, 3), centroids=16)
    node, tensors = weighted_layer(rng, (8, 4, 3, 3), codec, name="conv", padding=(1, 1, 1, 1))
    return model_file([node], tensors, SHAPE)


@pytest.fixture
def x(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal(SHAPE).astype(np.float32)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder of the test's own, not made yet."""
    monkeypatch.setenv("PYQUANT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def kernel_of(model: Model, x: np.ndarray) -> str:
    (step,) = model.profile(x)["steps"]
    return str(step["kernel"])


def test_fastest_kernel_is_chosen_and_remembered(file: ModelFile, x: np.ndarray) -> None:
    model = Model(file)
    before = model(x)
    (layer,) = model.tune(x, seconds=0.01)
    assert layer["name"] == "conv"
    assert set(layer["ms"]) == {"direct", "winograd2", "winograd4", "table"}
    assert layer["kernel"] == min(layer["ms"], key=layer["ms"].__getitem__)
    assert kernel_of(model, x) == layer["kernel"]
    np.testing.assert_allclose(model(x), before, atol=1e-4)
    assert list(tuning.remembered(model.isa, model.threads, "exact").values()) == [layer["kernel"]]
    assert kernel_of(Model(file), x) == layer["kernel"]


@pytest.mark.parametrize("kernel", ["direct", "winograd2", "winograd4", "table"])
def test_what_is_remembered_is_used(kernel: str, file: ModelFile, x: np.ndarray) -> None:
    model = Model(file, threads=1)
    (node,) = file.network.graph.nodes
    tuning.remember(model.isa, 1, "exact", {tuning.layer_key(node, [SHAPE]): kernel})
    assert kernel_of(model, x) == kernel
    assert kernel_of(model, np.concatenate([x, x])) == kernel_of(Model(file, threads=2), np.concatenate([x, x]))


def test_other_layers_and_threads_are_kept_apart(file: ModelFile) -> None:
    (node,) = file.network.graph.nodes
    assert tuning.layer_key(node, [SHAPE]) != tuning.layer_key(node, [(2, 4, 9, 9)])
    tuning.remember("avx2", 1, "exact", {"a": "table"})
    tuning.remember("avx2", 1, "exact", {"b": "dot"})
    assert tuning.remembered("avx2", 1, "exact") == {"a": "table", "b": "dot"}
    for other in [("avx2", 2, "exact"), ("avx512", 1, "exact"), ("avx2", 1, "fast")]:
        assert tuning.remembered(*other) == {}


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b"\xff\xfe", b'{"a": 3}', b"[" * 100_000])
def test_damaged_cache_counts_as_empty(content: bytes, cache: Path, file: ModelFile, x: np.ndarray) -> None:
    tuning.remember(_core.available_isas()[-1], 1, "exact", {"a": "table"})
    (remembered,) = cache.iterdir()
    remembered.write_bytes(content)
    assert tuning.remembered(_core.available_isas()[-1], 1, "exact") == {}
    Model(file, threads=1)(x)


@pytest.mark.parametrize("kernel", ["dot", "of another age"])
def test_direct_kernel_takes_the_place_of_one_that_does_not_apply(kernel: str, file: ModelFile, x: np.ndarray) -> None:
    (node,) = file.network.graph.nodes
    tuning.remember(_core.available_isas()[-1], 1, "exact", {tuning.layer_key(node, [SHAPE]): kernel})
    assert kernel_of(Model(file, threads=1), x) == "direct"


def test_cache_that_cannot_be_written(cache: Path, file: ModelFile, x: np.ndarray) -> None:
    cache.write_text("a file, not a folder")
    model = Model(file)
    with pytest.raises(InputError, match=r"cannot be made: .*; name another folder in PYQUANT_CACHE"):
        model.tune(x, seconds=0.01)
    model(x)


def test_impossible_time_and_restricted_model(file: ModelFile, x: np.ndarray) -> None:
    with pytest.raises(ConfigError, match="expected a positive number, got 0"):
        Model(file).tune(x, seconds=0)
    with pytest.raises(ConfigError, match="restricted to the kernel 'table'"):
        Model(file, kernel="table").tune(x)
    with pytest.raises(ConfigError, match=r"expected one of direct, winograd2, .*, got 'magic'"):
        Model(file, kernel="magic")
