"""What a file costs is counted as the README says."""

from dataclasses import replace
from pathlib import Path

import pytest
from small_models import IMAGES, fill, golden_model, layer, linear

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.errors import InputError
from pyquant.file import ModelFile, read_storage, write_model
from pyquant.graph import Graph, StateNames
from pyquant.report import Report, bit_operations, dense_bytes, inspect_json, layer_rows

GOLDEN = golden_model()
GRAPH = GOLDEN.network.graph
LAYER_KEYS = [
    "name", "op", "status", "codec", "reason", "block", "centroids", "codebooks", "levels", "kept", "setting", "rate",
    "bits_per_weight", "bytes", "relative_output_error",
]  # fmt: skip


def test_dense_bytes_count_the_original_parameters() -> None:
    weights = 4 * 27 + 4 * 36 + 4 * 2 + 3 * 8
    norms = 3 * 2 * 4  # of the three convolutions; the affine layer names no module
    assert dense_bytes(GRAPH) == 4 * (weights + norms + 3)


def test_norms_without_parameters_and_free_norms() -> None:
    nodes = [replace(node, state=replace(node.state, norm_affine=False)) for node in GRAPH.nodes]
    assert dense_bytes(replace(GRAPH, nodes=tuple(nodes))) == dense_bytes(GRAPH) - 4 * 24
    nodes = [replace(node, state=StateNames(norm="bn")) if node.op == "affine" else node for node in GRAPH.nodes]
    assert dense_bytes(replace(GRAPH, nodes=tuple(nodes))) == dense_bytes(GRAPH) + 4 * 8


def test_bit_operations() -> None:
    bits = {"stem": 32, "spatial": 2.321928094887362 / 9, "grouped": 1.584962500721156, "fc": 2.584962500721156 / 3}
    macs = {"stem": 4 * 27 * 64, "spatial": 4 * 36 * 16, "grouped": 4 * 2 * 16, "fc": 24}
    assert bit_operations(GRAPH) == round(sum(macs[name] * bits[name] * 32 for name in macs))
    assert bit_operations(GRAPH, activation_bits=8) == round(sum(macs[name] * bits[name] * 8 for name in macs))


def test_rows() -> None:
    rows = {row.name: row for row in layer_rows(GOLDEN)}
    assert list(rows) == ["stem", "spatial", "grouped", "fc"]
    stem, spatial, fc = rows["stem"], rows["spatial"], rows["fc"]
    assert (stem.status, stem.reason, stem.block, stem.centroids) == ("dense", "the first convolution", None, None)
    assert (stem.bits_per_weight, stem.bytes, stem.relative_output_error) == (16, 2 * 108 + 2 * 16, None)
    assert (spatial.op, spatial.status, spatial.reason) == ("conv2d", "compressed", None)
    assert spatial.codebooks == 1
    assert (spatial.block, spatial.centroids, spatial.relative_output_error) == ((1, 3, 3), 5, 0.125)
    codes, codebook = 6, 2 * 5 * 9  # 16 codes of 3 bits, and 45 numbers in fp16
    assert spatial.bits_per_weight == pytest.approx(8 * (codes + codebook) / 144)
    assert spatial.bytes == codes + codebook + 2 * 16
    assert fc.bytes == 4 + 4 * 6 * 3 + 12
    assert rows["grouped"].relative_output_error is None
    assert sum(row.bytes for row in rows.values()) == sum(
        array.nbytes
        for name, array in GOLDEN.network.tensors.items()
        if not name.startswith(("norm", "activation_ranges"))
    )


def test_dense_layer_without_a_reason_still_has_one() -> None:
    (stem, *_) = layer_rows(replace(GOLDEN, provenance={}))
    assert stem.reason == "kept dense"


def test_shared_weights_count_once() -> None:
    first = linear("a", "f", (192, 192), ProductConfig(block=(4, 1, 1), centroids=16))
    second = replace(linear("b", "a", (192, 192), DenseConfig()), weight=first.weight)
    graph = Graph(inputs=(IMAGES,), nodes=(layer("flatten", "f", "x"), first, second), outputs=("b",))
    model = ModelFile(network=fill(graph))
    one, two = layer_rows(model)
    assert dense_bytes(graph) == 4 * (192 * 192 + 2 * 192)
    assert two.bytes == 4 * 192
    assert one.bytes + two.bytes == sum(array.nbytes for array in model.network.tensors.values())
    assert one.bits_per_weight == two.bits_per_weight


def test_report(tmp_path: Path) -> None:
    path = tmp_path / "a.pqmodel"
    size = write_model(path, GOLDEN)
    report = Report.of(path, GOLDEN, max_relative_error=1e-6)
    value = report.to_json()
    assert list(value) == ["file", "bytes", "dense_bytes", "ratio", "bit_operations", "layers", "self_check"]
    assert (value["file"], value["bytes"]) == (str(path), size)
    assert value["ratio"] == report.ratio == dense_bytes(GRAPH) / size
    assert value["self_check"] == report.self_check == {"max_relative_error": 1e-6}
    assert [list(row) for row in value["layers"]] == [LAYER_KEYS] * 4
    assert value["layers"][1]["block"] == [1, 3, 3]
    assert value["layers"][0]["block"] is None


def test_inspect(tmp_path: Path) -> None:
    path = tmp_path / "a.pqmodel"
    size = write_model(path, GOLDEN)
    assert inspect_json(path) == {
        "format_version": "1.0",
        "features": ["product", "rans"],
        "bytes": size,
        "ratio": dense_bytes(GRAPH) / size,
        "bit_operations": bit_operations(GRAPH),
        "input": {"name": "x", "shape": [None, 3, None, None], "default": [3, 8, 8]},
        "classes": ["ant", "honey bee", 'crème "brûlée"'],
        "activation_ranges": True,
        "layers": [row.to_json() for row in layer_rows(GOLDEN, read_storage(path).tensor_bytes)],
    }
    with pytest.raises(InputError, match="no such file"):
        inspect_json(tmp_path / "missing")
