"""A damaged file is refused with a message that says what is wrong, whatever the damage."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_models import IMAGES, conv2d, fill, golden_model, layer, linear

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.container import PREFIX_BYTES, pack, unpack
from pyquant.errors import FormatError
from pyquant.file import ModelFile, dumps, loads
from pyquant.graph import Graph, GraphInput

GOLDEN = dumps(golden_model(), fixed_length=True)  # what may damage coded tensors is in test_entropy.py
METADATA, TENSORS = unpack(GOLDEN)
HEADER_BYTES = int.from_bytes(GOLDEN[:8], "little")


def refuse(data: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message) as caught:
        loads(data, "some.pqmodel")
    assert str(caught.value).startswith("some.pqmodel: ")


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flip_of_any_byte_is_noticed(flip: int) -> None:
    damaged = bytearray(GOLDEN)
    for position in range(len(damaged)):
        damaged[position] ^= flip
        with pytest.raises(FormatError):
            loads(bytes(damaged), "flipped")
        damaged[position] ^= flip
    assert damaged == GOLDEN


def test_truncation_at_any_length_is_noticed() -> None:
    for length in range(len(GOLDEN)):
        with pytest.raises(FormatError):
            loads(GOLDEN[:length], "truncated")


def test_further_bytes_are_noticed() -> None:
    refuse(GOLDEN + b"\0", "do not fit the digest")
    refuse(sign(GOLDEN + b"\0"), "not a valid safetensors file")


# What follows is damage with a right digest, as only somebody who means it would make it.


def sign(data: bytes) -> bytes:
    """Put the right digest into a file."""
    zeroed = data[: PREFIX_BYTES - 64] + b"0" * 64 + data[PREFIX_BYTES:]
    return data[: PREFIX_BYTES - 64] + hashlib.sha256(zeroed).hexdigest().encode() + data[PREFIX_BYTES:]


def with_header(change: Callable[[str], str]) -> bytes:
    """Return the golden file with another header text, padded and signed again."""
    text = change(GOLDEN[8 : 8 + HEADER_BYTES].decode().rstrip(" ")).encode()
    text += b" " * (-(8 + len(text)) % 64)
    return sign(len(text).to_bytes(8, "little") + text + GOLDEN[8 + HEADER_BYTES :])


def with_entry(name: str, change: Callable[[dict[str, Any]], None]) -> bytes:
    """Return the golden file with the header entry of one tensor changed, signed again."""

    def change_text(text: str) -> str:
        header = json.loads(text)
        change(header[name])
        return json.dumps(header, separators=(",", ":"), ensure_ascii=False)

    return with_header(change_text)


def with_metadata(**entries: str | None) -> bytes:
    """Return the golden file with other metadata; None leaves an entry out."""
    return pack({key: value for key, value in {**METADATA, **entries}.items() if value is not None}, TENSORS)


def with_json(entry: str, change: Callable[[dict[str, Any]], object]) -> bytes:
    """Return the golden file with a JSON entry of its metadata changed."""
    value = json.loads(METADATA[entry])
    change(value)
    return with_metadata(**{entry: json.dumps(value)})


def with_tensors(**arrays: np.ndarray | None) -> bytes:
    """Return the golden file with other tensors (`__` stands for the dot); None leaves one out."""
    named = {key.replace("__", "."): array for key, array in arrays.items()}
    return pack(METADATA, {key: array for key, array in {**TENSORS, **named}.items() if array is not None})


def packed_first_byte(name: str, byte: int, position: int = 0) -> np.ndarray:
    array = TENSORS[name].copy()
    array[position] = byte
    return array


def spoilt(name: str, value: float) -> np.ndarray:
    array = TENSORS[name].copy()
    array.reshape(-1)[-1] = value
    return array


def test_helpers_change_nothing_by_themselves() -> None:
    assert with_header(lambda text: text) == with_metadata() == with_tensors() == GOLDEN


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"PK\3\4" + GOLDEN[4:], r"a header of [\d,]+ bytes is not possible"),
        (GOLDEN[:8] + b"[" + GOLDEN[9:], "not a .pqmodel file"),
        (b"\0" * 200, "not a .pqmodel file"),
        (GOLDEN[:60], "not a .pqmodel file, or one that is truncated"),
        (GOLDEN[:200], r"the header needs [\d,]+ bytes, the file has 200: it is truncated"),
        ((1 << 40).to_bytes(8, "little") + GOLDEN[8:], "is not possible"),
        ((HEADER_BYTES - 1).to_bytes(8, "little") + GOLDEN[8:], "is not possible"),
        (GOLDEN[:-1] + b"\xff", "do not fit the digest"),
        (GOLDEN[:PREFIX_BYTES].upper() + GOLDEN[PREFIX_BYTES:], "not a .pqmodel file"),
        (GOLDEN[: PREFIX_BYTES - 64] + b"\xff" * 64 + GOLDEN[PREFIX_BYTES:], "do not fit the digest"),
    ],
)
def test_prefix_and_digest(data: bytes, message: str) -> None:
    refuse(data, message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (with_header(lambda text: text[:-1]), "the header is not valid JSON"),
        (with_header(lambda text: text[:-1] + ',"fc.bias":0}'), "the header is not valid JSON: a key is repeated"),
        (with_header(lambda text: text[:-1] + ',"odd":1e999}'), "the header is not valid JSON"),
        (with_header(lambda text: text[:-1] + ',"odd":NaN}'), "the header is not valid JSON: NaN is not a number"),
        (with_header(lambda text: text[:-1] + ',"odd":' + "[" * 100_000 + "}"), "the header is not valid JSON"),
        (with_header(lambda text: text[:-1] + ',"\\ud800":0}'), "the header is not valid JSON"),
        (with_header(lambda text: text.replace('"features":"product"', '"features":1')), "must hold strings alone"),
        (with_header(lambda text: text[:-1] + ',"odd":{"dtype":"U8"}}'), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(shape=[4])), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(shape=[-3])), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(shape=[2**62, 8])), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(data_offsets=[4, 16])), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(data_offsets=[0, 2**60])), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(dtype="S9")), "not a valid safetensors file"),
        (with_entry("fc.bias", lambda entry: entry.update(dtype="I32")), "tensor 'fc.bias' is I32; expected F32, F16"),
    ],
)
def test_header(data: bytes, message: str) -> None:
    refuse(data, message)


def test_header_that_is_not_utf8() -> None:
    data = GOLDEN.replace("crème".encode(), b"cr\xff\xffme")
    refuse(sign(data), "the header is not valid JSON")


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"format_version": None}, "format_version: expected 'major.minor', got ''"),
        ({"format_version": "1"}, "format_version: expected 'major.minor', got '1'"),
        ({"format_version": "1.0.0"}, "format_version: expected"),
        ({"format_version": "0.9"}, "format_version: expected"),
        ({"format_version": "٢.0"}, "format_version: expected"),
        ({"format_version": "2.0"}, "format version 2.0 is newer than 1.0; use a newer pyquant"),
        ({"format_version": "2.0", "graph": None, "features": "tomorrow"}, "format version 2.0 is newer"),
        ({"graph": None, "classes": None}, "__metadata__ lacks classes, graph"),
        ({"surprise": "1"}, "__metadata__ has unknown entries: surprise"),
        (
            {"features": "product,tomorrow,never"},
            "the file needs 'tomorrow', 'never', which this pyquant",
        ),
        ({"features": ""}, r"features: the file uses \['product'\], it declares \[\]"),
        ({"features": "product,product"}, "features: the file uses"),
        ({"graph": "[]"}, "the graph must be a JSON object, got list"),
        ({"graph": "{"}, "the graph is not valid JSON"),
        ({"graph": "{}"}, "the graph is not as declared: KeyError: 'inputs'"),
        ({"preprocessing": "{}"}, r"preprocessing: expected resize, crop, mean, std, got \[\]"),
        ({"preprocessing": "null"}, "preprocessing must be a JSON object"),
        ({"classes": "n01 ant\nn01 bee\nn03 cat\n"}, "classes: line 2: 'n01' is there already"),
        ({"classes": "n01 ant\nbee\n\n"}, "classes: line 2: expected a folder name, .*; line 3: expected"),
        ({"classes": "n01 ant\nn02 bee\n"}, "2 classes are named, but the network has 3 outputs"),
        ({"classes": "n01 \x1b[2Jant\nn02 bee\nn03 cat\n"}, "classes: line 1: has characters that cannot be shown"),
        ({"provenance": "[]"}, "provenance must be a JSON object"),
        ({"provenance": '{"dense":{"stem":1}}'}, "provenance: 'dense' must hold one str for each layer"),
        ({"provenance": '{"errors":[0.5]}'}, "provenance: 'errors' must hold one float for each layer"),
    ],
)
def test_metadata(entries: dict[str, str | None], message: str) -> None:
    refuse(with_metadata(**entries), message)


def test_newer_minor_version_may_say_more() -> None:
    model = loads(with_metadata(format_version="1.7", remark="made tomorrow"), "newer")
    assert model.format_version == "1.7"
    assert model.network.graph == golden_model().network.graph


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resize": 7}, "a short side of 7 pixels is too small for a crop of 8x8"),
        ({"resize": "10"}, "resize must be 1 to 65,536 pixels, got '10'"),
        ({"resize": True}, "resize must be 1 to 65,536 pixels, got True"),
        ({"crop": [8]}, "crop must be a height and a width"),
        ({"crop": [8, 8.0]}, "crop must be a height and a width"),
        ({"crop": [8, 0]}, "crop must be a height and a width"),
        ({"mean": [0.1, 0.1, "0.1"]}, "mean must be three numbers"),
        ({"mean": [0.1, 0.1, 1e39]}, "mean must be three numbers"),
        ({"std": [0.1, 0.1, 0]}, "std must be three positive numbers"),
        ({"std": 0.1}, "std must be three positive numbers"),
        ({"rotate": 90}, "preprocessing: expected resize, crop, mean, std, got"),
    ],
)
def test_preprocessing(change: dict[str, object], message: str) -> None:
    refuse(with_json("preprocessing", lambda value: value.update(change)), message)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"fc__codes": None, "stem__scale": None, "norm__bias": None, "odd": np.zeros(1, np.uint8)},
            "missing tensors: fc.codes, norm.bias, stem.scale; unknown tensors: odd",
        ),
        ({"fc__bias": np.zeros(3, np.float16)}, r"tensor 'fc.bias': expected F32 \[3\], got F16 \[3\]"),
        ({"fc__bias": np.zeros((3, 1), np.float32)}, r"tensor 'fc.bias': expected F32 \[3\], got F32 \[3, 1\]"),
        ({"fc__bias": np.zeros((3, 0), np.float32)}, r"tensor 'fc.bias': expected F32 \[3\], got F32 \[3, 0\]"),
        ({"stem__weight": np.zeros((4, 27), np.float16)}, r"expected F32 or F16 \[4, 3, 3, 3\], got F16 \[4, 27\]"),
        ({"fc__codebook": np.zeros((1, 6, 4), np.float16)}, r"expected F16 or F32 \[1, 6, 3\], got F16 \[1, 6, 4\]"),
        ({"fc__codes": np.zeros(5, np.uint8)}, r"tensor 'fc.codes': expected U8 \[4\], got U8 \[5\]"),
        ({"fc__codes": packed_first_byte("fc.codes", 7)}, "tensor 'fc.codes': code 7 for 6 centroids"),
        ({"grouped__codes": packed_first_byte("grouped.codes", 0xC0, 1)}, "tensor 'grouped.codes': code 3 for 3 cent"),
        ({"fc__codes": packed_first_byte("fc.codes", 0x80, -1)}, "the 5 spare bits of its last byte must be zero"),
        ({"stem__weight": spoilt("stem.weight", np.nan)}, "tensor 'stem.weight' holds numbers that are not finite"),
        ({"fc__codebook": spoilt("fc.codebook", np.inf)}, "tensor 'fc.codebook' holds numbers that are not finite"),
        ({"fc__bias": spoilt("fc.bias", -np.inf)}, "tensor 'fc.bias' holds numbers that are not finite"),
        (
            {"activation_ranges": np.zeros((11, 2), np.float32)},
            r"'activation_ranges': expected F32 \[12, 2\], got F32 \[11",
        ),
        ({"activation_ranges": np.zeros((12, 2), np.float16)}, r"'activation_ranges': expected F32 \[12, 2\], got F16"),
        (
            {"activation_ranges": spoilt("activation_ranges", np.inf)},
            "'activation_ranges' holds numbers that are not fin",
        ),
        ({"activation_ranges": spoilt("activation_ranges", -0.1)}, r"that hold 0 .* but 'fc' has \[-0.5, -0.1\]$"),
        (
            {"activation_ranges": spoilt("activation_ranges", 1e30)},
            r"are 9e-19 to 1e\+18 wide, but 'fc' has \[-0.5, 1e\+30\]",
        ),
        (
            {"activation_ranges": np.zeros((12, 2), np.float32)},
            r"but 'x' has \[0, 0\], 'stem' .*'spatial' .* and 7 more$",
        ),
        ({"input_range": np.ones(2, np.float32)}, "unknown tensors: input_range"),
    ],
)
def test_tensors(tensors: dict[str, np.ndarray | None], message: str) -> None:
    refuse(with_tensors(**tensors), message)


def golden_with(*, nodes: tuple[Any, ...] = (), inputs: tuple[GraphInput, ...] = (IMAGES,)) -> bytes:
    """Return a file with the golden tensors, but the graph of `nodes`, written without the writer's checks."""
    graph = Graph(inputs=inputs, nodes=nodes, outputs=nodes[-1].outputs)
    codecs = {weight.codec_name for _, weight in graph.weighted()}
    return with_metadata(
        graph=json.dumps(graph.to_json()),
        features="product" if "product" in codecs else "",
        classes="",
        provenance="{}",
    )


SHARED = linear("second", "first", (6, 6), ProductConfig(block=(2, 1, 1), centroids=4))
HUGE = 2**31 - 1


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            (conv2d("a", "x", (4, 5, 3, 3), DenseConfig()),),
            r"cannot take its default input: layer 'a' \(conv2d\)",
        ),
        ((layer("max_pool2d", "a", "x", kernel=(9, 9)),), "cannot take its default input: .* leaves it an output"),
        ((layer("upsample", "a", "x", mode="nearest"),), "cannot take its default input: .* leaves it an output"),
        ((layer("upsample", "a", "x", mode="nearest", size=(HUGE, HUGE)),), "values too large to compute: 'a'"),
        ((layer("adaptive_avg_pool2d", "a", "x", output_size=(HUGE, HUGE)),), "values too large to compute: 'a'"),
        (
            (layer("upsample", "a", "x", mode="nearest", size=(9, 9), factor=(1e-20, 1e-20)),),
            r"cannot take its default input: layer 'a' \(upsample\): expected a size or a factor, got both",
        ),
        ((conv2d("a", "x", (HUGE, 3, 1, 1), DenseConfig()),), "values too large to compute: 'a'"),
        (
            (
                layer("upsample", "u", "x", mode="nearest", size=(HUGE // 3, 1)),
                layer("flatten", "f", "u"),
                linear("a", "f", (HUGE // 3 * 3, HUGE // 3 * 3), ProductConfig(block=(HUGE, 1, 1), centroids=2)),
            ),
            "layer 'a': a weight of .* is too large",
        ),
        (
            (conv2d("a", "x", (4096, 3, 1, 1), ProductConfig(block=(2**20, 1, 1), centroids=2)),),
            "layer 'a': a weight of .* is too large",
        ),
        ((layer("affine", "a", "x", tensors=("scale",)),), r"layer 'a' \(affine\) needs bias"),
        ((layer("affine", "a", "y", tensors=("scale", "bias")),), "reads 'y', which nothing before it writes"),
        (
            (
                layer("flatten", "flat", "x"),
                linear("first", "flat", (6, 192), DenseConfig()),
                replace(SHARED, weight=replace(SHARED.weight, name="first")),
            ),
            "layer 'second' stores the shared weight 'first' in another way",
        ),
    ],
)
def test_graph(nodes: tuple[Any, ...], message: str) -> None:
    refuse(golden_with(nodes=nodes), message)


def test_default_input_must_fit_the_fixed_dimensions() -> None:
    inputs = (replace(IMAGES, shape=(None, 3, 16, 16)),)
    refuse(golden_with(nodes=(layer("relu", "a", "x"),), inputs=inputs), "cannot take its default input: input 'x'")


def test_affine_needs_channels() -> None:
    graph = json.dumps(
        Graph(
            inputs=(GraphInput(name="x", shape=(None,), default=()),),
            nodes=(layer("affine", "a", "x", tensors=("scale", "bias")),),
            outputs=("a",),
        ).to_json()
    )
    refuse(with_metadata(graph=graph, features="", classes=""), "cannot take its default input")


def test_writer_refuses_what_the_reader_would_refuse() -> None:
    golden = golden_model()
    spoilt_network = replace(golden.network, tensors={**golden.network.tensors, "fc.bias": np.full(3, np.nan, "f4")})
    with pytest.raises(FormatError, match=r"'fc\.bias' holds numbers that are not finite"):
        dumps(replace(golden, network=spoilt_network))
    wide = replace(golden.network, tensors={**golden.network.tensors, "fc.bias": np.zeros(3)})
    with pytest.raises(FormatError, match=r"'fc.bias': expected F32 \[3\], got float64 \[3\]"):
        dumps(replace(golden, network=wide))
    with pytest.raises(FormatError, match="the model cannot be written"):
        dumps(replace(golden, provenance={"when": float("nan")}))
    with pytest.raises(FormatError, match="the model cannot be written"):
        dumps(replace(golden, provenance={"what": object()}))
    with pytest.raises(FormatError, match="the model cannot be written: line 1"):
        dumps(replace(golden, classes=(replace(golden.classes[0], folder=""), *golden.classes[1:])))
    with pytest.raises(FormatError, match="the model cannot be written: a class's folder"):
        dumps(replace(golden, classes=(replace(golden.classes[0], folder="two words"), *golden.classes[1:])))


def test_shared_weight_is_stored_once() -> None:
    nodes = (
        layer("flatten", "flat", "x"),
        linear("a", "flat", (192, 192), ProductConfig(block=(4, 1, 1), centroids=16)),
        replace(linear("b", "a", (192, 192), DenseConfig()), weight=None),
    )
    nodes = (*nodes[:2], replace(nodes[2], weight=nodes[1].weight))
    network = fill(Graph(inputs=(IMAGES,), nodes=nodes, outputs=("b",)))
    assert sorted(network.tensors) == ["a.bias", "a.codebook", "a.codes", "b.bias"]
    model = loads(dumps(ModelFile(network=network)), "shared")
    assert [weight.name for _, weight in model.network.graph.weighted()] == ["a", "a"]
