"""The scalar codec: what its codes stand for, in the file, in NumPy, in PyTorch and in the runtime."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer
from test_runtime_fast import candidates, check_layer
from test_runtime_layers import check

from pyquant import codecs
from pyquant.codecs import ScalarConfig, scalar
from pyquant.container import pack, unpack
from pyquant.errors import ConfigError, FormatError
from pyquant.file import ModelFile, dumps, loads
from pyquant.report import layer_rows
from pyquant.runtime import Model

# (weight shape, attributes, plane): kernels, strides, paddings, groups of every kind.
CONVOLUTIONS: list[tuple[tuple[int, int, int, int], dict[str, Any], tuple[int, int]]] = [
    ((5, 3, 3, 3), {"padding": (1, 1, 1, 1)}, (9, 11)),
    ((17, 7, 1, 1), {}, (14, 3)),
    ((16, 12, 1, 1), {"stride": (2, 2)}, (15, 9)),
    ((34, 20, 1, 1), {"groups": 2}, (9, 14)),
    ((70, 36, 1, 1), {}, (7, 9)),
    ((8, 5, 3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}, (13, 17)),
    ((16, 4, 3, 3), {"groups": 4, "padding": (1, 1, 1, 1)}, (7, 7)),
    ((6, 1, 3, 3), {"groups": 6, "padding": (1, 1, 1, 1)}, (5, 21)),
    ((4, 3, 7, 7), {"padding": (3, 3, 3, 3), "stride": (2, 2)}, (31, 30)),
    ((6, 7, 3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}, (10, 10)),
]


def one_layer(
    shape: tuple[int, ...], bits: int, rng: np.random.Generator, plane: tuple[int, ...] = (), **attributes: Any
) -> tuple[ModelFile, np.ndarray]:
    node, tensors = weighted_layer(rng, shape, ScalarConfig(bits=bits), **attributes)
    x = rng.standard_normal((2, shape[1] * attributes.get("groups", 1), *plane)).astype(np.float32)
    return model_file([node], tensors, x.shape), x


@pytest.mark.parametrize("bits", range(2, 9))
def test_a_weight_is_its_step_times_its_distance_from_zero(bits: int, rng: np.random.Generator) -> None:
    config = ScalarConfig(bits=bits)
    codes = rng.integers(1 << bits, size=(6, 35))
    step = scalar.rounded_steps(rng.uniform(0.001, 10, 6))
    zero = rng.integers(256, size=6)
    tensors = scalar.tensors_of(codes, step, zero, config)
    assert {role: tensor.dtype for role, tensor in tensors.items()} == {
        "codes": np.uint8,
        "step": np.float32,
        "zero": np.uint8,
    }
    weight = config.decoded(tensors, (6, 5, 7, 1))
    for o, i in np.ndindex(6, 35):
        assert weight.reshape(6, 35)[o, i] == np.float32(float(step[o]) * (int(codes[o, i]) - int(zero[o]) / 2))
    assert sum(tensor.nbytes for tensor in tensors.values()) == config.coded_bytes((6, 5, 7, 1))


@pytest.mark.parametrize("size", [1.0, 1e-30, 1e30])
def test_steps_are_rounded_to_eleven_bits(size: float, rng: np.random.Generator) -> None:
    step = size * rng.uniform(0.1, 10, 100)
    rounded = scalar.rounded_steps(step)
    np.testing.assert_allclose(rounded, step, rtol=2.0**-11)
    assert not (rounded.view(np.uint32) & ((1 << 13) - 1)).any()
    assert scalar.rounded_steps(np.zeros(2)).tolist() == [0, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bits": 1}, "bits must be 2 to 8, got 1"),
        ({"bits": 9}, "bits must be 2 to 8, got 9"),
        ({"bits": 4, "rate": 4.5}, r"rate must be 0 \(none\) to 4, the bits of a code, got 4.5"),
        ({"bits": 4, "rate": float("nan")}, "rate must be 0"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ScalarConfig(**options)


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize(("shape", "attributes", "plane"), CONVOLUTIONS)
def test_convolutions(
    shape: tuple[int, ...], attributes: dict[str, Any], plane: tuple[int, int], bits: int, rng: np.random.Generator
) -> None:
    file, x = one_layer(shape, bits, rng, plane, **attributes)
    check(file, x, terms=int(np.prod(shape[1:])))


@pytest.mark.parametrize("bits", [2, 5, 7, 8])
@pytest.mark.parametrize(("shape", "attributes", "plane"), CONVOLUTIONS)
def test_convolutions_in_integers_multiply_with_the_codes_themselves(
    shape: tuple[int, ...], attributes: dict[str, Any], plane: tuple[int, int], bits: int, rng: np.random.Generator
) -> None:
    file, x = one_layer(shape, bits, rng, plane, **attributes)
    check_layer(file, x)


@pytest.mark.parametrize("bits", [2, 6, 8])
def test_linear_layers(bits: int, rng: np.random.Generator) -> None:
    file, x = one_layer((19, 66), bits, rng)
    check(file, x, terms=66)
    check_layer(file, x)
    assert "direct8" in candidates(file, x)


def test_grids_that_signed_bytes_cannot_hold_are_rounded(rng: np.random.Generator) -> None:
    file, x = one_layer((6, 40), 8, rng)
    wide = {**file.network.tensors, "layer.zero": np.zeros(6, np.uint8)}
    file = model_file(list(file.network.graph.nodes), wide, x.shape)
    check(file, x, terms=40)
    fast = Model(file, precision="fast", kernel="direct8")(x)
    exact = Model(file)(x)
    assert isinstance(exact, np.ndarray)
    assert np.abs(fast - exact).max() < 0.02 * np.abs(exact).max()


def test_a_layer_against_pytorch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is what the layer is compared with")
    from pyquant.torch_network import TorchNetwork

    for shape, attributes, plane in CONVOLUTIONS:
        file, x = one_layer(shape, 4, rng, plane, **attributes)
        ours = Model(file)(x)
        theirs = TorchNetwork(file.network)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_file_holds_it_entropy_coded_too(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (64, 50), ScalarConfig(bits=4, rate=1.5))
    skewed = np.clip(rng.poisson(0.3, (64, 50)) + 8, 0, 15)
    tensors |= {f"layer.{role}": t for role, t in scalar.tensors_of(
        skewed, np.ones(64), np.full(64, 16), ScalarConfig(bits=4, rate=1.5)).items()}  # fmt: skip
    file = model_file([node], tensors, (1, 50))
    for fixed_length in (True, False):
        data = dumps(file, fixed_length=fixed_length)
        read = loads(data, "read").network
        assert read.graph == file.network.graph
        np.testing.assert_array_equal(read.weight(read.graph.nodes[0].weight), file.network.weight(node.weight))
    assert len(dumps(file)) < len(dumps(file, fixed_length=True)) - 500
    (row,) = layer_rows(file)
    assert (row.status, row.levels, row.block, row.centroids) == ("compressed", 16, None, None)


def damaged(rng: np.random.Generator, **changes: Any) -> bytes:
    """Return a file with other tensors (`None` leaves one out), or with another text for its weight."""
    node, tensors = weighted_layer(rng, (3, 5), ScalarConfig(bits=3))
    metadata, stored = unpack(dumps(model_file([node], tensors, (1, 5)), fixed_length=True))
    if (attributes := changes.pop("attributes", None)) is not None:
        metadata = {**metadata, "graph": metadata["graph"].replace('"bits":3', attributes)}
    named = {f"layer.{role}": change(stored[f"layer.{role}"]) if change else None for role, change in changes.items()}
    return pack(metadata, {name: array for name, array in {**stored, **named}.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": '"bits":1'}, "expected a number of at least 2"),
        ({"attributes": '"bits":9'}, "bits must be 2 to 8, got 9"),
        ({"attributes": '"rate":1.0'}, "missing attribute 'bits'"),
        ({"attributes": '"bits":3,"rate":7.5'}, "rate must be 0"),
        ({"attributes": '"bits":3,"block":3'}, "unknown attribute 'block'"),
        ({"attributes": '"bits":4'}, r"tensor 'layer.codes': expected U8 \[8\], got U8 \[6\]"),
        ({"step": None}, "missing tensors: layer.step"),
        ({"codes": lambda codes: codes[:-1]}, r"tensor 'layer.codes': expected U8 \[6\], got U8 \[5\]"),
        ({"codes": lambda codes: codes | 128}, "tensor 'layer.codes': the 3 spare bits of its last byte must be zero"),
        ({"zero": lambda zero: zero[:-1]}, r"tensor 'layer.zero': expected U8 \[3\], got U8 \[2\]"),
        ({"step": lambda step: step.astype(np.float16)}, "tensor 'layer.step': expected F32"),
        ({"step": lambda step: -step}, "tensor 'layer.step' holds a negative step"),
        ({"step": lambda step: step * np.nan}, "tensor 'layer.step' holds numbers that are not finite"),
        ({"step": lambda step: step * 0 + 3e38}, "tensor 'layer.step' is too large: weights are not finite"),
        (
            {"zero": lambda zero: zero * 0 + 255, "step": lambda step: step * 0 + 1e37},
            "tensor 'layer.step' is too large: weights are not finite",
        ),
    ],
)
def test_damage(changes: dict[str, Any], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(FormatError, match=message):
        loads(damaged(rng, **changes), "damaged")


def test_the_registry_knows_every_codec_by_the_name_in_the_file() -> None:
    assert list(codecs.CODEC_CONFIGS) == ["dense", "product", "scalar", "sparse"]


def test_the_decoded_network_is_dense(rng: np.random.Generator) -> None:
    file, x = one_layer((4, 3, 3, 3), 4, rng, (8, 8))
    decoded = file.network.decoded()
    assert isinstance(decoded.graph.nodes[0].weight.codec, codecs.DenseConfig)
    np.testing.assert_array_equal(Model(file)(x), Model(replace(file, network=decoded))(x))


def test_export_as_onnx(rng: np.random.Generator) -> None:
    pytest.importorskip("onnx", reason="ONNX is the format")
    engine = pytest.importorskip("onnxruntime", reason="ONNX Runtime runs what was exported")
    from pyquant.export.onnx import onnx_model

    file, x = one_layer((4, 3, 3, 3), 4, rng, (8, 8))
    session = engine.InferenceSession(onnx_model(file.network).SerializeToString())
    (theirs,) = session.run(None, {"x": x})
    np.testing.assert_allclose(Model(file)(x), theirs, atol=1e-5 * np.abs(theirs).max())
