"""Entropy-coded tensors: bit for bit what they were, counted as they are in the file, and named where damaged."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from skewed_codes import damaged, encode, skewed
from small_models import IMAGES, fill, golden_model, layer, linear

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.product import codebook_tensors
from pyquant.container import pack, unpack
from pyquant.declared import declared_tensors
from pyquant.entropy import MAX_EXPANSION, SUFFIX, coded_tensors, whole_tensors
from pyquant.errors import FormatError
from pyquant.file import ModelFile, dumps, loads, read_model, read_storage, write_model
from pyquant.graph import Graph, Network
from pyquant.report import inspect_json, layer_rows


def big_model(rng: np.random.Generator, dtype: str = "float") -> ModelFile:
    """Return a file whose codes, codebooks, dense weight and biases all gain by coding."""
    config = ProductConfig(block=(4, 1, 1), centroids=100, codebooks=2, codebook_dtype=dtype)
    nodes = (
        layer("flatten", "f", "x"),
        linear("coded", "f", (640, 192), config),
        linear("dense", "coded", (40, 640), DenseConfig()),
    )
    network = fill(Graph(inputs=(IMAGES,), nodes=nodes, outputs=("dense",)))
    tensors = dict(network.tensors)
    codes = np.concatenate([skewed(rng, 100, 640 * 48, 0.5), skewed(rng, 100, 640 * 48, 0.5)])
    tensors["coded.codes"] = pack_codes(codes, 7)
    codebook = rng.laplace(size=(2, 100, 4)).astype(np.float32)
    tensors |= {f"coded.{role}": tensor for role, tensor in codebook_tensors(codebook, config).items()}
    for name, tensor in tensors.items():
        if name.endswith((".weight", ".bias")):
            tensors[name] = rng.standard_normal(tensor.shape).astype(tensor.dtype)
    return ModelFile(network=Network(graph=network.graph, tensors=tensors))


@pytest.mark.parametrize("dtype", ["float", "int8"])
def test_tensors_of_every_kind(dtype: str, rng: np.random.Generator) -> None:
    network = big_model(rng, dtype).network
    stored = coded_tensors(network)
    assert {name for name in stored if name.endswith(SUFFIX)} >= {
        f"{name}{SUFFIX}" for name in ("coded.codes", "coded.codebook", "coded.bias", "dense.weight")
    }
    for name, array in whole_tensors(declared_tensors(network.graph), stored).items():
        expected = network.tensors[name]
        assert (array.dtype, array.shape, array.tobytes()) == (expected.dtype, expected.shape, expected.tobytes())


def test_numbers_of_every_pattern_of_bits(rng: np.random.Generator) -> None:
    network = big_model(rng).network
    whole = {**network.tensors, "dense.weight": np.full((40, 640), -0.0, np.float32)}
    whole["dense.weight"].reshape(-1)[:5] = [0.0, 1e-45, -1e-45, 3.4e38, -3.4e38]
    whole["dense.weight"][1:] = rng.standard_normal((39, 640)).astype(np.float16)
    network = replace(network, tensors=whole)
    again = whole_tensors(declared_tensors(network.graph), coded_tensors(network))["dense.weight"]
    assert again.tobytes() == whole["dense.weight"].tobytes()


def test_file(tmp_path: Path, rng: np.random.Generator) -> None:
    model = big_model(rng)
    data, plain = dumps(model), dumps(model, fixed_length=True)
    assert len(data) < 0.95 * len(plain)
    path = tmp_path / "x.pqmodel"
    assert write_model(path, model) == len(data) == path.stat().st_size
    storage = read_storage(path)
    assert storage.features == ("product", "rans")
    assert storage.tensor_bytes.keys() == model.network.tensors.keys()
    header = 8 + int.from_bytes(data[:8], "little")
    assert header + sum(storage.tensor_bytes.values()) == len(data)
    inspection = inspect_json(path)
    assert inspection["bytes"] == len(data)
    assert inspection["features"] == ["product", "rans"]
    assert sum(row["bytes"] for row in inspection["layers"]) == len(data) - header
    assert inspection["layers"] == [row.to_json() for row in layer_rows(model, storage.tensor_bytes)]
    for stored in (data, plain):
        read = loads(stored, "x")
        assert read.network.graph == model.network.graph
        assert not any(array.flags.writeable for array in read.network.tensors.values())
        assert dumps(read) == data
        assert dumps(read, fixed_length=True) == plain


def test_a_file_made_for_a_size_keeps_its_tensors_at_fixed_length(tmp_path: Path, rng: np.random.Generator) -> None:
    model = replace(big_model(rng), provenance={"target_bytes": 100_000})
    path = tmp_path / "x.pqmodel"
    write_model(path, model)
    assert path.read_bytes() == dumps(model, fixed_length=True) == dumps(read_model(path))
    assert read_storage(path).features == ("product",)


def test_uniform_codes_are_not_coded(rng: np.random.Generator) -> None:
    config = ProductConfig(block=(1, 1, 1), centroids=256)
    graph = Graph(
        inputs=(IMAGES,), nodes=(layer("flatten", "f", "x"), linear("a", "f", (64, 192), config)), outputs=("a",)
    )
    network = fill(graph)
    codes = {"a.codes": rng.permutation(np.arange(64 * 192) % 256).astype(np.uint8)}
    stored = coded_tensors(replace(network, tensors={**network.tensors, **codes}))
    assert "a.codes" in stored


def test_equal_numbers_are_not_coded_so_far_that_a_small_file_could_be_a_huge_network(rng: np.random.Generator) -> None:
    network = big_model(rng).network
    zeros = {"dense.weight": np.zeros((40, 640), np.float32)}
    stored = coded_tensors(replace(network, tensors={**network.tensors, **zeros}))
    assert "dense.weight" in stored


STORED = coded_tensors(big_model(np.random.default_rng(0)).network)
METADATA, _ = unpack(dumps(big_model(np.random.default_rng(0))))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("coded.codes", lambda a: a[:-1], "stream 1 of 2: it ends before its last symbol"),
        ("coded.codes", lambda a: np.append(a, np.uint8(7)), "1 bytes after the last stream"),
        ("coded.codes", lambda a: damaged(a, {0: 1}), "elements of 1 bytes; expected 0"),
        ("coded.codes", lambda a: a[:100], "100 bytes are too few for"),
        ("coded.codes", lambda a: a[:0], r"expected U8 \[at least 1\], got U8 \[0\]"),
        ("coded.codes", lambda a: a.reshape(1, -1), r"expected U8 \[at least 1\], got U8 \[1, "),
        ("coded.codes", lambda a: a.view(np.int8), r"expected U8 \[at least 1\], got I8"),
        ("dense.weight", lambda a: damaged(a, {0: 3}), "elements of 3 bytes; expected 4 or 2"),
        ("dense.weight", lambda a: damaged(a, {0: 4}), "it ends|it is|stream 3"),
        ("coded.bias", lambda a: a[:9], "too few|it ends"),
    ],
)
def test_damaged_tensor_is_named(name: str, change: object, message: str) -> None:
    assert callable(change)
    data = pack(METADATA, {**STORED, name + SUFFIX: np.ascontiguousarray(change(STORED[name + SUFFIX]))})
    with pytest.raises(FormatError, match=f"^some: tensor '{name}{SUFFIX}': .*({message})"):
        loads(data, "some")


def test_tensors_stored_twice_unknown_or_undeclared() -> None:
    twice = {**STORED, "coded.bias": np.zeros(640, np.float32)}
    with pytest.raises(FormatError, match=r"tensor 'coded\.bias' is stored twice"):
        loads(pack(METADATA, twice), "some")
    with pytest.raises(FormatError, match=r"unknown tensors: other\.bias\.rans"):
        loads(pack(METADATA, {**STORED, "other.bias.rans": STORED["coded.bias.rans"]}), "some")
    with pytest.raises(FormatError, match=r"features: the file uses \['product', 'rans'\], it declares \['product'\]"):
        loads(pack({**METADATA, "features": "product"}, STORED), "some")
    plain = golden_model().network.tensors
    golden, _ = unpack(dumps(golden_model(), fixed_length=True))
    with pytest.raises(FormatError, match=r"features: the file uses \['product'\], it declares \['product', 'rans'\]"):
        loads(pack({**golden, "features": "product,rans"}, plain), "some")


def test_codes_of_no_centroid_are_noticed(rng: np.random.Generator) -> None:
    codes = encode(np.append(skewed(rng, 100, 2 * 640 * 48 - 1, 0.5), 120), 7, 2)
    spoilt = {**STORED, "coded.codes.rans": np.append(np.uint8(0), codes)}
    with pytest.raises(FormatError, match=r"tensor 'coded\.codes': code 120 for 100 centroids"):
        loads(pack(METADATA, spoilt), "some")


def test_a_small_file_cannot_ask_for_much_memory() -> None:
    """A stream of one symbol stands for any number of codes."""
    few = encode(np.zeros(80_000, np.int64), 8)
    count = 2**31 // 4
    graph = Graph(
        inputs=(replace(IMAGES, default=(3, 8, 8)),),
        nodes=(layer("flatten", "f", "x"), linear("a", "f", (count // 64, 192), DenseConfig())),
        outputs=("a",),
    )
    stored = {"a.weight.rans": np.concatenate([np.array([4], np.uint8), few, few, few, few])}
    assert 4 * count > MAX_EXPANSION * stored["a.weight.rans"].size
    with pytest.raises(FormatError, match=r"tensor 'a\.weight\.rans': 9\d bytes are too few"):
        whole_tensors(declared_tensors(graph), stored)
