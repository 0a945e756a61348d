"""The sparse codec: which weights are kept, and as what, in the file, in NumPy, in PyTorch and in the runtime."""

from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_networks import model_file, random_mask, weighted_layer
from test_runtime_fast import candidates, check_layer
from test_runtime_layers import check
from test_scalar import CONVOLUTIONS

from pyquant.cli.show import show_inspection
from pyquant.codecs import DenseConfig, SparseConfig, scalar, sparse
from pyquant.codecs.packing import unpack_codes
from pyquant.codecs.sparse import MASK_TABLE_BYTES
from pyquant.container import pack, unpack
from pyquant.declared import PackedCodes
from pyquant.entropy import stored_bytes
from pyquant.errors import ConfigError, FormatError, InputError
from pyquant.file import ModelFile, dumps, loads, write_model
from pyquant.graph import Node
from pyquant.report import inspect_json, layer_rows
from pyquant.runtime import Model

# (config, weight shape): units of every kind, kernels, spare bits at the end of mask and codes.
CASES = [
    (SparseConfig(kept=0.25), (6, 5, 3, 3)),
    (SparseConfig(kept=0.3, bits=3), (5, 7)),
    (SparseConfig(kept=0.001, bits=5), (3, 5)),  # one is kept
    (SparseConfig(kept=0.999, bits=2), (3, 5)),  # all are
    (SparseConfig(kept=0.25, run=4, bits=4), (5, 8, 3, 3)),
    (SparseConfig(kept=0.6, run=4, bits=7), (3, 12)),
    (SparseConfig(kept=0.5, of=4, bits=4), (4, 8, 3, 3)),
    (SparseConfig(kept=0.25, of=4, bits=3), (3, 12)),
    (SparseConfig(kept=4 / 8, of=8, bits=6), (3, 16, 1, 2)),
    (SparseConfig(kept=2 / 3, of=3), (5, 3, 3, 1)),
    (SparseConfig(kept=1 / 256, of=256, bits=2), (3, 256)),
]


@pytest.mark.parametrize(("config", "shape"), CASES)
def test_a_weight_is_kept_or_zero(config: SparseConfig, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    outputs, depth = shape[0], int(np.prod(shape[1:]))
    kept = random_mask(rng, shape, config)
    codes = np.where(kept, rng.integers(1 << config.bits, size=(outputs, depth)), -7)
    step = scalar.rounded_steps(rng.uniform(0.001, 10, outputs))
    zero = rng.integers(256, size=outputs)
    tensors = sparse.tensors_of(kept, codes, step, zero, config, shape)
    assert not list(config.faults(tensors, shape))
    weight = config.decoded(tensors, shape)
    assert weight.shape == shape
    for o, i in np.ndindex(outputs, depth):
        expected = float(step[o]) * (int(codes[o, i]) - int(zero[o]) / 2) if kept[o, i] else 0.0
        assert weight.reshape(outputs, -1)[o, i] == np.float32(expected)
    assert not np.signbit(weight.reshape(outputs, -1)[~kept]).any()
    assert int(kept.sum()) == config.kept_weights(shape)
    sizes = {role: tensor.nbytes for role, tensor in tensors.items()}
    assert sum(sizes.values()) == config.coded_bytes(shape)
    assert {role: sizes[role] for role in ("mask", "codes")} == config.packed_bytes(shape)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        *(SparseConfig(kept=kept) for kept in (0.01, 0.05, 0.12, 0.25, 0.4, 0.5, 0.6, 0.8, 0.95, 0.999)),
        *(SparseConfig(kept=kept, run=4) for kept in (0.08, 0.35)),
        *(SparseConfig(kept=count / of, of=of) for count, of in ((2, 4), (1, 4), (4, 8), (1, 16))),
    ],
)
@pytest.mark.parametrize("shape", [(16, 16), (64, 64, 3, 3), (512, 1024), (256, 256, 3, 3)])
def test_a_coded_mask_takes_no_more_than_is_planned(
    shape: tuple[int, ...], config: SparseConfig, together: bool, rng: np.random.Generator
) -> None:
    """Random masks are the worst; where kept weights are near each other they take less."""
    kept = random_mask(rng, shape, config)
    if together:  # outputs that keep much come first
        kept = kept[np.argsort(-kept.sum(axis=1), kind="stable")]
    none = np.zeros(shape[0])
    tensors = sparse.tensors_of(kept, np.zeros(kept.shape, np.uint8), none, none, config, shape)
    mask = tensors["mask"]
    units = PackedCodes(bits=config.mask_bits, models=1, count=kept.size // config.unit)
    planned = config.planned_bytes(shape).get("mask", mask.nbytes)
    taken = stored_bytes(mask, units)
    assert taken <= planned <= mask.nbytes
    if planned < mask.nbytes and not together:
        assert planned < 1.05 * taken + MASK_TABLE_BYTES


@settings(max_examples=30)
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 9), st.integers(1, 4), st.integers(1, 4))
    | st.tuples(st.integers(1, 4), st.integers(1, 9))
)
def test_neighbours_are_the_channels_of_one_position(shape: tuple[int, ...]) -> None:
    weight = np.arange(np.prod(shape)).reshape(shape)
    rows = sparse.channels_last(weight)
    assert rows.shape == (shape[0], np.prod(shape[1:]))
    for at in np.ndindex(shape):
        o, c, y, x = (*at, 0, 0)[:4]
        _, channels, _, width = (*shape, 1, 1)[:4]
        assert rows[o, (y * width + x) * channels + c] == weight[at]
    np.testing.assert_array_equal(sparse.from_channels_last(rows, shape), weight, strict=True)


@pytest.mark.parametrize(("kept", "of"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (3, 10), (1, 256), (255, 256)])
def test_patterns_are_numbered_in_lexicographic_order(kept: int, of: int) -> None:
    config = SparseConfig(kept=kept / of, of=of, bits=2)
    patterns = sparse.patterns_of(kept, of)
    assert [tuple(np.flatnonzero(pattern)) for pattern in patterns] == list(combinations(range(of), kept))
    shape = (len(patterns), of)
    tensors = sparse.tensors_of(patterns, np.zeros(shape, int), np.ones(shape[0]), np.zeros(shape[0]), config, shape)
    ranks = unpack_codes(tensors["mask"], config.mask_bits, len(patterns))
    np.testing.assert_array_equal(ranks, np.arange(len(patterns)))


def test_the_mask_of_2_in_4_by_hand() -> None:
    config = SparseConfig(kept=0.5, of=4, bits=4)
    kept = np.array([[0, 1, 1, 0, 1, 0, 0, 1], [1, 1, 0, 0, 0, 0, 1, 1]], bool)
    codes = np.arange(16).reshape(2, 8)
    tensors = sparse.tensors_of(kept, codes, np.array([2.0, 1.0]), np.array([3, 15]), config, (2, 8))
    # Patterns 3, 2 and 0, 5; codes 1, 2, 4, 7 and 8, 9, 14, 15.
    assert tensors["mask"].tolist() == [0b00_010_011, 0b1010]
    assert tensors["codes"].tolist() == [0x21, 0x74, 0x98, 0xFE]
    np.testing.assert_array_equal(
        config.decoded(tensors, (2, 8)), [[0, -1, 1, 0, 5, 0, 0, 11], [0.5, 1.5, 0, 0, 0, 0, 6.5, 7.5]]
    )


@pytest.mark.parametrize(
    ("config", "kept", "message"),
    [
        (SparseConfig(kept=0.5), [[1, 0, 0, 0], [1, 0, 0, 1]], "expected 4 weights to be kept for 'sparse:0.5;bits:8'"),
        (SparseConfig(kept=0.5, run=4), [[1, 0, 1, 0], [1, 0, 0, 1]], "expected runs of 4 neighbouring inputs"),
        (SparseConfig(kept=0.5, of=4), [[1, 1, 1, 0], [1, 0, 0, 0]], "expected 2 of each 4 neighbouring inputs"),
    ],
)
def test_masks_that_do_not_agree_with_the_config(config: SparseConfig, kept: list[list[int]], message: str) -> None:
    with pytest.raises(InputError, match=message):
        sparse.tensors_of(np.array(kept, bool), np.zeros((2, 4), int), np.ones(2), np.ones(2), config, (2, 4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kept": 0.0}, "the share that is kept must lie between 0 and 1, got 0"),
        ({"kept": 1.0}, "must lie between 0 and 1, got 1"),
        ({"kept": float("nan")}, "must lie between 0 and 1, got nan"),
        ({"kept": 0.5, "bits": 1}, "bits must be 2 to 8, got 1"),
        ({"kept": 0.5, "bits": 9}, "bits must be 2 to 8, got 9"),
        ({"kept": 0.5, "run": 2}, "run must be 1 or 4, got 2"),
        ({"kept": 0.5, "run": 4, "of": 4}, "run must be 1 where so many of 4 inputs are kept, got 4"),
        ({"kept": 0.5, "of": 1}, "kept of 2 to 256 neighbouring inputs, got 1"),
        ({"kept": 0.5, "of": -4}, "kept of 2 to 256 neighbouring inputs, got -4"),
        ({"kept": 0.5, "of": 2**31 - 1}, "kept of 2 to 256 neighbouring inputs, got 2147483647"),
        ({"kept": 0.4, "of": 4}, "of 4 inputs a whole number must be kept, at least 1 and not all, got 1.6"),
        ({"kept": 0.05, "of": 4}, "a whole number must be kept, at least 1 and not all, got 0.2"),
        ({"kept": 8 / 16, "of": 16}, "8 of 16 inputs can be kept in 12,870 ways; expected at most 256"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SparseConfig(**options)


@pytest.mark.parametrize(
    ("config", "bits", "mask_bits"),
    [
        (SparseConfig(kept=0.25, bits=4), 1.0, 1),
        (SparseConfig(kept=0.5, run=4, bits=8), 4.0, 1),
        (SparseConfig(kept=0.5, of=4, bits=4), 2.0, 3),
        (SparseConfig(kept=0.25, of=4), 2.0, 2),
        (SparseConfig(kept=0.5, of=8, bits=2), 1.0, 7),
    ],
)
def test_bits_of_weights_and_masks(config: SparseConfig, bits: float, mask_bits: int) -> None:
    assert (config.weight_bits, config.mask_bits) == (bits, mask_bits)
    assert (config.rate, config.block, config.centroids) == (0.0, (1, 1, 1), 1 << config.bits)


def test_inputs_must_be_whole_units() -> None:
    config = SparseConfig(kept=0.5, run=4)
    assert config.misfit((3, 8, 3, 3)) == ""
    assert config.misfit((3, 6)) == (
        "its 6 input channels are no multiple of the 4 that 'sparse:0.5;run:4;bits:8' takes together"
    )
    assert SparseConfig(kept=0.5, of=2).misfit((3, 1, 3, 3)).startswith("its 1 input channels are no multiple of the 2")
    assert SparseConfig(kept=0.5).misfit((3, 1, 3, 3)) == ""


def one_layer(
    shape: tuple[int, ...],
    config: SparseConfig,
    rng: np.random.Generator,
    plane: tuple[int, ...] = (),
    **attributes: Any,
) -> tuple[ModelFile, np.ndarray]:
    node, tensors = weighted_layer(rng, shape, config, **attributes)
    x = rng.standard_normal((2, shape[1] * attributes.get("groups", 1), *plane)).astype(np.float32)
    return model_file([node], tensors, x.shape), x


LAYERS = [
    *((*layer, SparseConfig(kept=0.3, bits=bits)) for layer in CONVOLUTIONS for bits in (4, 8)),
    ((16, 12, 1, 1), {"stride": (2, 2)}, (15, 9), SparseConfig(kept=0.25, run=4, bits=7)),
    ((16, 4, 3, 3), {"groups": 4, "padding": (1, 1, 1, 1)}, (7, 7), SparseConfig(kept=0.5, of=4, bits=3)),
    ((7, 8, 3, 3), {"padding": (1, 1, 1, 1), "stride": (2, 2)}, (13, 17), SparseConfig(kept=4 / 8, of=8)),
    ((9, 8, 3, 3), {"padding": (2, 2, 2, 2), "dilation": (2, 2)}, (10, 10), SparseConfig(kept=0.5, run=4, bits=2)),
]


@pytest.mark.parametrize(("shape", "attributes", "plane", "config"), LAYERS)
def test_convolutions(
    shape: tuple[int, ...],
    attributes: dict[str, Any],
    plane: tuple[int, int],
    config: SparseConfig,
    rng: np.random.Generator,
) -> None:
    file, x = one_layer(shape, config, rng, plane, **attributes)
    check(file, x, terms=int(np.prod(shape[1:])))
    check_layer(file, x)


@pytest.mark.parametrize(
    "config",
    [SparseConfig(kept=0.4, bits=6), SparseConfig(kept=0.25, run=4), SparseConfig(kept=0.25, of=4, bits=2)],
)
def test_linear_layers(config: SparseConfig, rng: np.random.Generator) -> None:
    file, x = one_layer((19, 68), config, rng)
    check(file, x, terms=68)
    check_layer(file, x)
    assert "direct8" in candidates(file, x)


def test_a_transposed_convolution(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (6 * 4, 12, 1, 1), SparseConfig(kept=0.5, of=4, bits=4), output="pixels")
    shuffle = Node(op="pixel_shuffle", name="up", inputs=("pixels",), outputs=("y",), attributes={"factor": (2, 2)})
    x = rng.standard_normal((2, 12, 5, 3)).astype(np.float32)
    check(model_file([node, shuffle], tensors, x.shape), x, terms=12)


def test_a_layer_against_pytorch(rng: np.random.Generator) -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is what the layer is compared with")
    from pyquant.torch_network import TorchNetwork

    for shape, attributes, plane, config in LAYERS:
        file, x = one_layer(shape, config, rng, plane, **attributes)
        theirs = TorchNetwork(file.network)(torch.from_numpy(x)).numpy()
        np.testing.assert_allclose(Model(file)(x), theirs, atol=1e-5 * np.abs(theirs).max())


def test_the_decoded_network_is_dense(rng: np.random.Generator) -> None:
    file, x = one_layer((4, 8, 3, 3), SparseConfig(kept=0.5, run=4), rng, (8, 8))
    decoded = file.network.decoded()
    assert isinstance(decoded.graph.nodes[0].weight.codec, DenseConfig)
    np.testing.assert_array_equal(Model(file)(x), Model(replace(file, network=decoded))(x))


def test_export_as_onnx(rng: np.random.Generator) -> None:
    pytest.importorskip("onnx", reason="ONNX is the format")
    engine = pytest.importorskip("onnxruntime", reason="ONNX Runtime runs what was exported")
    from pyquant.export.onnx import onnx_model

    file, x = one_layer((4, 8, 3, 3), SparseConfig(kept=0.5, of=4, bits=4), rng, (8, 8))
    session = engine.InferenceSession(onnx_model(file.network).SerializeToString())
    (theirs,) = session.run(None, {"x": x})
    np.testing.assert_allclose(Model(file)(x), theirs, atol=1e-5 * np.abs(theirs).max())


@pytest.mark.parametrize(
    "config", [SparseConfig(kept=0.1, bits=4), SparseConfig(kept=0.1, run=4, bits=3), SparseConfig(kept=0.25, of=4)]
)
def test_the_file_holds_it_entropy_coded_too(config: SparseConfig, rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (64, 200), config)
    middle = 1 << (config.bits - 1)
    skewed = np.clip(np.rint(rng.laplace(middle, 0.5, (64, 200))), 0, 2 * middle - 1).astype(int)
    if config.of:
        kept = sparse.patterns_of(1, 4)[np.minimum(rng.geometric(0.8, 64 * 50) - 1, 3)]
    else:  # outputs that keep all, and others that keep nothing
        kept = np.arange(64 * 200) < config.kept_weights((64, 200))
    tensors |= {f"layer.{role}": tensor for role, tensor in sparse.tensors_of(
        kept.reshape(64, 200), skewed, np.ones(64), np.full(64, 2 * middle), config, (64, 200)).items()}  # fmt: skip
    file = model_file([node], tensors, (1, 200))
    coded, plain = (dumps(file, fixed_length=fixed_length) for fixed_length in (False, True))
    for data in (coded, plain):
        read = loads(data, "read").network
        assert read.graph == file.network.graph
        np.testing.assert_array_equal(read.weight(read.graph.nodes[0].weight), file.network.weight(node.weight))
    stored = unpack(coded)[1]
    assert {"layer.mask.rans", "layer.codes.rans"} <= stored.keys()
    assert len(coded) < len(plain) - 300


def test_a_row_of_the_report_says_what_is_kept(rng: np.random.Generator) -> None:
    file, _ = one_layer((5, 8), SparseConfig(kept=0.5, of=4, bits=3), rng)
    (row,) = layer_rows(file)
    assert (row.status, row.kept, row.levels, row.block, row.centroids) == ("compressed", 0.5, 8, None, None)
    assert row.setting == "sparse:2:4;bits:3"


def test_inspecting_a_file(rng: np.random.Generator, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, x = one_layer((5, 8), SparseConfig(kept=0.25, run=4, bits=3), rng)
    path = tmp_path / "a.pqmodel"
    write_model(path, file)
    inspection = inspect_json(path)
    assert inspection["features"] == ["sparse"]
    assert inspection["bit_operations"] == 40 * 0.25 * 3 * 32
    show_inspection(inspection)
    row = next(line for line in capsys.readouterr().out.splitlines() if " linear " in line)
    assert row.split()[:4] == ["layer", "linear", "sparse:0.25;run:4", "8"]
    assert [step["name"] for step in Model(file).profile(x)["steps"]] == ["layer"]


def damaged(rng: np.random.Generator, config: SparseConfig, shape: tuple[int, ...], **changes: Any) -> bytes:
    """Return a file with other tensors (`None` leaves one out), or with another text for its weight."""
    node, tensors = weighted_layer(rng, shape, config)
    metadata, stored = unpack(dumps(model_file([node], tensors, (1, shape[1])), fixed_length=True))
    for old, new in changes.pop("attributes", {}).items():
        assert old in metadata["graph"]
        metadata = {**metadata, "graph": metadata["graph"].replace(old, new)}
    named = {f"layer.{role}": change(stored[f"layer.{role}"]) if change else None for role, change in changes.items()}
    return pack(metadata, {name: array for name, array in {**stored, **named}.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attributes": {'"kept":0.3,': ""}}, "missing attribute 'kept'"),
        ({"attributes": {'"kept":0.3': '"kept":1.5'}}, "the share that is kept must lie between 0 and 1, got 1.5"),
        ({"attributes": {'"kept":0.3': '"kept":"0.3"'}}, "attribute 'kept': expected float, got '0.3'"),
        ({"attributes": {'"bits":3': '"bits":9'}}, "bits must be 2 to 8, got 9"),
        ({"attributes": {'"bits":3': '"bits":3,"run":3'}}, "run must be 1 or 4, got 3"),
        ({"attributes": {'"bits":3': '"bits":3,"of":4'}}, "of 4 inputs a whole number must be kept"),
        ({"attributes": {'"bits":3': '"bits":3,"of":2147483647'}}, "kept of 2 to 256 neighbouring inputs"),
        ({"attributes": {'"bits":3': '"bits":3,"rate":1.0'}}, "unknown attribute 'rate'"),
        (
            {"attributes": {'"bits":3': '"bits":3,"run":4'}},
            "layer 'layer': its 7 input channels are no multiple of the 4",
        ),
        ({"attributes": {'"bits":3': '"bits":5'}}, r"tensor 'layer.codes': expected U8 \[4\], got U8 \[3\]"),
        ({"mask": None, "step": None}, "missing tensors: layer.mask, layer.step"),
        ({"mask": lambda mask: mask[:-1]}, r"tensor 'layer.mask': expected U8 \[3\], got U8 \[2\]"),
        ({"mask": lambda mask: mask | 128}, "tensor 'layer.mask': the 3 spare bits of its last byte must be zero"),
        ({"mask": lambda mask: mask * 0}, "tensor 'layer.mask' keeps 0 weights; expected 6 of 21"),
        ({"mask": lambda mask: mask * 0 + 31}, "tensor 'layer.mask' keeps 15 weights; expected 6 of 21"),
        ({"codes": lambda codes: codes[:-1]}, r"tensor 'layer.codes': expected U8 \[3\], got U8 \[2\]"),
        ({"codes": lambda codes: codes | 128}, "tensor 'layer.codes': the 6 spare bits of its last byte must be zero"),
        ({"zero": lambda zero: zero[:-1]}, r"tensor 'layer.zero': expected U8 \[3\], got U8 \[2\]"),
        ({"step": lambda step: -step}, "tensor 'layer.step' holds a negative step"),
        ({"step": lambda step: step * 0 + 3e38}, "tensor 'layer.step' is too large: weights are not finite"),
        (
            {"zero": lambda zero: zero * 0 + 255, "step": lambda step: step * 0 + 1e37},
            "tensor 'layer.step' is too large: weights are not finite",
        ),
    ],
)
def test_damage(changes: dict[str, Any], message: str, rng: np.random.Generator) -> None:
    with pytest.raises(FormatError, match=message):
        loads(damaged(rng, SparseConfig(kept=0.3, bits=3), (3, 7), **changes), "damaged")


def test_damage_to_patterns(rng: np.random.Generator) -> None:
    config = SparseConfig(kept=0.5, of=4, bits=4)
    with pytest.raises(FormatError, match=r"tensor 'layer\.mask' holds pattern 7; there are 6"):
        loads(damaged(rng, config, (3, 12), mask=lambda mask: mask | 7), "damaged")


@pytest.mark.parametrize(
    ("role", "change", "message"),
    [
        ("mask", lambda mask: mask[:-1], "its mask does not fit 36 weights"),
        ("mask", lambda mask: mask | 7, "its mask holds a pattern that does not exist"),
        ("codes", lambda codes: codes[:-1], "its codes, steps and zeros do not fit 18 weights of 4 bits"),
        ("step", lambda step: step[:-1], "its codes, steps and zeros do not fit 18 weights of 4 bits"),
    ],
)
def test_the_core_checks_sizes_itself(role: str, change: Any, message: str, rng: np.random.Generator) -> None:
    file, _ = one_layer((3, 12), SparseConfig(kept=0.5, of=4, bits=4), rng)
    tensors = {
        **file.network.tensors,
        f"layer.{role}": np.ascontiguousarray(change(file.network.tensors[f"layer.{role}"])),
    }
    with pytest.raises(InputError, match=message):
        Model(replace(file, network=replace(file.network, tensors=tensors)))
