"""Networks in 8-bit integers: what they compute from bytes, and the same bits on every instruction set."""

from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from layer_networks import model_file, weighted_layer
from numpy.typing import NDArray
from test_runtime_layers import CONVOLUTIONS, POINTWISE, pointwise_layers

from pyquant import _core, reference
from pyquant.codecs import DenseConfig, ProductConfig, ScalarConfig, SparseConfig
from pyquant.codecs.product import weight_from_blocks
from pyquant.errors import ConfigError
from pyquant.file import ModelFile
from pyquant.graph import Network, Node, Weight
from pyquant.runtime import Model

ISAS = _core.available_isas()

Floats = NDArray[np.float32]


def as_bytes(x: Floats) -> Floats:
    """Return the numbers that the bytes of `x` stand for, which reach from its smallest to its largest number."""
    low, high = min(x.min(), np.float32(0)), max(x.max(), np.float32(0))
    scale = (high - low) / np.float32(255)
    zero = np.rint(-low / scale)
    # Rounded where the kernel rounds: once, to float32, and then to a byte.
    levels = (x.astype(np.float64) * (np.float32(1) / scale) + zero).astype(np.float32)
    return ((np.clip(np.rint(levels), 0, 255) - zero) * scale).astype(np.float32)


def weights_as_bytes(network: Network, weight: Weight) -> NDArray[np.float64]:
    """Return the weights that signed bytes stand for: of one scale for a layer's codebooks, or for each dense row.

    Weights on grids are bytes as they are.
    """
    codec = weight.codec
    if isinstance(codec, (ScalarConfig, SparseConfig)):
        return network.weight(weight).astype(np.float64)
    if isinstance(codec, DenseConfig):
        rows = network.weight(weight).astype(np.float64)
        scale = np.abs(rows).max(axis=tuple(range(1, rows.ndim)), keepdims=True) / 127
        scale[scale == 0] = 1
        return np.rint(rows / scale) * scale
    codebook, codes = network.codebook(weight).astype(np.float64), network.codes(weight)
    sums = _sums(codebook, codes)
    if codec.codebooks == 1 or codec.centroids**codec.codebooks <= 1024:  # what any sum of centroids is rounded to
        scale = np.abs(_sums(codebook, _combinations(codec)) if codec.codebooks > 1 else codebook).max() / 127
        rounded = np.rint(sums / scale)
    else:  # each codebook is rounded to parts, 128 of a step, and their sum once more
        scale = max(np.abs(codebook).max(), np.abs(sums).max()) / (127 - codec.codebooks / 256)
        rounded = np.floor((_sums(np.rint(codebook / scale * 128), codes) + 64) / 128)
    return weight_from_blocks((rounded * scale).astype(np.float32), weight.shape, codec.block).astype(np.float64)


def _sums(codebook: NDArray[np.float64], codes: Any) -> NDArray[np.float64]:
    return np.sum([book[np.array(indices)] for book, indices in zip(codebook, codes, strict=True)], axis=0)


def _combinations(codec: ProductConfig) -> list[tuple[int, ...]]:
    return list(zip(*product(range(codec.centroids), repeat=codec.codebooks), strict=True))


def expected_outputs(file: ModelFile, x: Floats) -> NDArray[np.float64]:
    """Return what the only layer of a network gives for the bytes of `x`, in numbers."""
    (node,) = file.network.graph.nodes
    assert node.weight is not None
    dense = replace(node, weight=replace(node.weight, codec=DenseConfig()))
    values = weights_as_bytes(file.network, node.weight)
    tensors = {
        **{node.tensor(role): file.network.tensors[node.tensor(role)] for role in node.tensors},
        node.weight.tensor("weight"): values.astype(np.float32),
    }
    network = Network(graph=replace(file.network.graph, nodes=(dense,)), tensors=tensors)
    (result,) = reference.run(network, as_bytes(x)).values()
    return result.astype(np.float64)


def run(file: ModelFile, x: Floats, **options: Any) -> Floats:
    result = Model(file, precision="fast", **options)(x)
    assert isinstance(result, np.ndarray)
    return result


def check_layer(file: ModelFile, x: Floats) -> None:
    """Compare a layer's integer kernels with NumPy, on every instruction set and number of threads.

    Outputs in floats are as close as fp32 gets; in bytes, all are the same.
    """
    expected = expected_outputs(file, x)
    exact = Model(file, isa="reference")(x)
    most = float(np.abs(expected).max())
    # Wider than needed: zero is a byte, which moves the others by up to half a step.
    low, high = 1.01 * min(float(expected.min()), 0), 1.01 * max(float(expected.max()), 0)
    as_bytes = writing_bytes(file, x, low, high)
    step = (high - low) / 255
    kernels = {"direct8", "matrix8", "winograd8", "table8", "shuffle8", "sparse8"}
    for kernel in kernels & set(candidates(file, x, isa="reference")):
        # Entries of tables are rounded, to 16 bits or to 8, and frequencies to 8.
        error = {"winograd8": 0.03, "table8": 0.02, "shuffle8": 0.03}.get(kernel, 0.0) * most
        first = run(as_bytes, x, isa="reference", kernel=kernel)
        assert np.abs(first - expected).max() <= 0.51 * step + error
        isas = [isa for isa in ISAS if kernel in candidates(file, x, isa=isa)]
        for isa, threads in product(isas, (1, 3)):
            got = run(file, x, isa=isa, kernel=kernel, threads=threads)
            assert np.abs(got - expected).max() <= 1e-5 * most + error
            assert np.abs(got - exact).max() <= 0.1 * most
            got = run(as_bytes, x, isa=isa, kernel=kernel, threads=threads)
            np.testing.assert_array_equal(got, first, err_msg=f"{isa} {kernel}")


def writing_bytes(file: ModelFile, x: Floats, low: float, high: float) -> ModelFile:
    """Return the network with another layer behind its only one, which makes that one write bytes, low to high."""
    (node,) = file.network.graph.nodes
    assert node.weight is not None
    outputs = node.weight.shape[0]
    after = Node(
        op=node.op,
        name="after",
        inputs=(node.output,),
        outputs=("z",),
        weight=Weight(name="after", shape=(4, outputs, 1, 1)[: len(node.weight.shape)]),
    )
    tensors = {**file.network.tensors, "after.weight": np.ones(after.weight.shape if after.weight else (), np.float32)}
    network = Network(graph=replace(file.network.graph, nodes=(node, after)), tensors=tensors)
    ranges = [(x.min(), x.max()), (low, high), (-1, 1)]
    return replace(file, network=network.with_activation_ranges(np.array(ranges, np.float32)))


def candidates(file: ModelFile, *inputs: Floats, isa: str | None = None) -> list[str]:
    """Return the kernels that the network's first layer with a weight could have."""
    steps = Model(file, precision="fast", isa=isa).profile(*inputs)["steps"]
    return next(step["candidates"] for step in steps if step["candidates"])


@pytest.mark.parametrize("case", CONVOLUTIONS, ids=str)
def test_convolutions(case: Any, rng: np.random.Generator) -> None:
    shape, block, centroids, codebooks, attributes, plane = case
    codec = DenseConfig()
    if block is not None:
        codec = ProductConfig(block=block, centroids=centroids, codebooks=codebooks)
    node, tensors = weighted_layer(rng, shape, codec, **attributes)
    x = rng.standard_normal((2, shape[1] * attributes.get("groups", 1), *plane)).astype(np.float32)
    check_layer(model_file([node], tensors, x.shape), x)


# (weight shape, block, K, M, attributes, plane), each of which has both integer kernels.
INTEGERS: list[tuple[tuple[int, int, int, int], Any, int, int, dict[str, Any], tuple[int, int]]] = [
    ((24, 16, 1, 1), (8, 1, 1), 16, 2, {}, (7, 7)),
    ((17, 12, 1, 1), (4, 1, 1), 256, 1, {"stride": (2, 2)}, (15, 9)),
    ((9, 32, 3, 3), (8, 1, 1), 64, 1, {"padding": (1, 1, 1, 1)}, (8, 11)),
    ((12, 8, 3, 3), (1, 3, 3), 16, 2, {"padding": (1, 1, 1, 1), "stride": (2, 2)}, (13, 17)),
    ((10, 12, 3, 3), (2, 3, 3), 32, 1, {"padding": (1, 1, 1, 1)}, (29, 31)),
    ((6, 7, 3, 3), (1, 3, 3), 300, 1, {"padding": (2, 2, 2, 2), "dilation": (2, 2)}, (10, 10)),
    ((5, 6, 5, 5), (1, 5, 5), 9, 1, {"padding": (2, 2, 2, 2)}, (3, 66)),
    ((20, 8, 3, 3), (2, 3, 3), 16, 2, {"padding": (1, 1, 0, 2)}, (17, 15)),
    ((17, 5, 3, 3), (1, 3, 3), 12, 4, {"padding": (1, 1, 1, 1)}, (5, 130)),
    # Registers of 32 entries: more outputs than are added up together, a position too few for the last register.
    ((150, 20, 1, 1), (4, 1, 1), 32, 1, {}, (14, 5)),
    ((70, 24, 1, 1), (8, 1, 1), 20, 2, {"stride": (2, 1)}, (9, 11)),
    ((97, 48, 1, 1), (24, 1, 1), 17, 1, {}, (1, 3)),
    ((33, 15, 3, 3), (1, 3, 3), 32, 2, {"padding": (1, 1, 1, 1)}, (6, 11)),
]


def coded_layer(case: Any, rng: np.random.Generator) -> tuple[ModelFile, Floats]:
    """Return the network and two inputs of such a case."""
    shape, block, centroids, codebooks, attributes, plane = case
    codec = ProductConfig(block=block, centroids=centroids, codebooks=codebooks)
    node, tensors = weighted_layer(rng, shape, codec, **attributes)
    x = rng.uniform(-1, 3, size=(2, shape[1] * attributes.get("groups", 1), *plane)).astype(np.float32)
    return model_file([node], tensors, x.shape), x


@pytest.mark.parametrize("case", INTEGERS, ids=str)
def test_integer_kernels_of_codebooks(case: Any, rng: np.random.Generator) -> None:
    file, x = coded_layer(case, rng)
    assert {"direct8", "table8"} <= set(candidates(file, x))
    check_layer(file, x)
    check_layer(file, x[:1])  # whose inputs may be unfolded by columns


@pytest.mark.parametrize(
    "codec",
    [
        DenseConfig(),
        ScalarConfig(bits=8),
        ProductConfig(block=(4, 1, 1), centroids=8),
        ProductConfig(block=(1, 3, 3), centroids=8),
        ProductConfig(block=(1, 3, 3), centroids=8, codebooks=5),
    ],
    ids=lambda codec: codec.setting,
)
def test_large_weights_side_by_side(codec: Any, rng: np.random.Generator) -> None:
    """Two products of the largest bytes exceed 16 bits, in which some kernels add them."""
    node, tensors = weighted_layer(rng, (18, 12, 3, 3), codec, padding=(1, 1, 1, 1))
    for role in {"layer.weight", "layer.codebook"} & set(tensors):
        shape, dtype = tensors[role].shape, tensors[role].dtype
        tensors[role] = (np.sign(rng.uniform(-1, 2, shape)) * rng.uniform(0.6, 1, shape)).astype(dtype)
    x = rng.uniform(0, 1, size=(2, 12, 9, 9)).astype(np.float32)
    file = model_file([node], tensors, x.shape)
    check_layer(file, x)
    decoded_once = [run(file, x, isa=isa, kernel="direct8", memory_budget=1 << 20) for isa in ISAS]
    decoded_in_each_run = [run(file, x, isa=isa, kernel="direct8") for isa in ISAS]
    np.testing.assert_array_equal(decoded_once, decoded_in_each_run)


# Other shapes of blocks, and sums of centroids that are too many to be made beforehand.
DECODED: list[tuple[tuple[int, int, int, int], Any, int, int, dict[str, Any], tuple[int, int]]] = [
    ((20, 12, 3, 3), (1, 1, 3), 16, 1, {"padding": (1, 1, 1, 1)}, (13, 9)),
    ((9, 7, 3, 3), (1, 1, 1), 300, 1, {"padding": (1, 1, 1, 1)}, (14, 14)),
    ((9, 10, 1, 1), (1, 1, 1), 16, 1, {}, (9, 9)),
    ((11, 10, 1, 1), (2, 1, 1), 40, 1, {"stride": (2, 2)}, (9, 9)),
    ((12, 9, 3, 3), (2, 1, 1), 16, 1, {"padding": (1, 1, 1, 1)}, (7, 11)),
    ((7, 6, 3, 3), (2, 2, 3), 16, 1, {"padding": (1, 1, 1, 1)}, (9, 9)),
    ((14, 12, 3, 3), (4, 3, 3), 32, 1, {"padding": (1, 1, 1, 1)}, (15, 15)),
    ((6, 12, 3, 3), (8, 3, 3), 16, 1, {"padding": (1, 1, 1, 1), "stride": (2, 2)}, (15, 15)),
    ((6, 13, 3, 3), (4, 1, 3), 16, 1, {"padding": (1, 1, 1, 1)}, (8, 8)),
    ((18, 20, 1, 1), (4, 1, 1), 64, 2, {}, (10, 10)),
    ((18, 20, 1, 1), (8, 1, 1), 16, 3, {}, (10, 10)),
    ((18, 20, 1, 1), (2, 1, 1), 16, 4, {}, (10, 10)),
    ((10, 9, 3, 3), (1, 3, 3), 64, 2, {"padding": (1, 1, 1, 1)}, (12, 12)),
    ((10, 9, 3, 3), (2, 3, 3), 256, 3, {"padding": (1, 1, 1, 1)}, (12, 12)),
    ((10, 12, 3, 3), (4, 3, 3), 128, 2, {"padding": (1, 1, 1, 1)}, (12, 12)),
    ((8, 4, 3, 3), (2, 3, 3), 64, 2, {"padding": (1, 1, 1, 1), "groups": 2}, (12, 12)),
    ((8, 4, 1, 1), (8, 1, 1), 16, 1, {"groups": 2}, (12, 12)),
    ((8, 4, 1, 1), (4, 1, 1), 64, 2, {"groups": 2}, (12, 12)),
    ((6, 8, 3, 3), (1, 3, 3), 65535, 1, {"padding": (1, 1, 1, 1)}, (7, 7)),
]


@pytest.mark.parametrize("case", DECODED, ids=str)
def test_integer_kernels_of_other_blocks(case: Any, rng: np.random.Generator) -> None:
    file, x = coded_layer(case, rng)
    assert "direct8" in candidates(file, x)
    check_layer(file, x)


# (weight shape, block, K, M, attributes, plane): odd planes, one tile, tiles of several vectors and blocks, groups.
TRANSFORMED: list[tuple[tuple[int, int, int, int], Any, int, int, dict[str, Any], tuple[int, int]]] = [
    ((9, 7, 3, 3), (1, 3, 3), 20, 1, {"padding": (1, 1, 1, 1)}, (3, 3)),
    ((8, 12, 3, 3), (1, 3, 3), 16, 2, {"padding": (1, 1, 1, 1)}, (7, 7)),
    ((21, 6, 3, 3), (2, 3, 3), 40, 1, {}, (9, 5)),
    ((12, 9, 3, 3), (2, 3, 3), 16, 1, {"padding": (2, 0, 1, 2)}, (30, 47)),
    ((12, 8, 3, 3), (1, 3, 3), 16, 1, {"padding": (1, 1, 1, 1), "groups": 3}, (13, 14)),
    ((5, 260, 3, 3), (1, 3, 3), 16, 1, {"padding": (1, 1, 1, 1)}, (40, 33)),
]


@pytest.mark.parametrize("case", TRANSFORMED, ids=str)
def test_winograd_in_integers(case: Any, rng: np.random.Generator) -> None:
    shape, *rest = case
    groups = rest[3].get("groups", 1)
    file, x = coded_layer(((shape[0] * groups, *shape[1:]), *rest), rng)
    assert "winograd8" in candidates(file, x, isa="reference")
    check_layer(file, x)
    check_layer(file, x[:1])
    for isa in (isa for isa in ISAS if "winograd8" in candidates(file, x, isa=isa)):
        decoded_in_each_run, decoded_once = (
            run(file, x, isa=isa, kernel="winograd8", memory_budget=budget) for budget in (0, 1 << 24)
        )
        np.testing.assert_array_equal(decoded_once, decoded_in_each_run, err_msg=isa)


def test_no_winograd_in_integers_of_tiles_by_themselves(rng: np.random.Generator) -> None:
    """Padding gives all of their frequencies a mean, with which what is rounded off weights is multiplied."""
    node, tensors = weighted_layer(
        rng, (8, 8, 3, 3), ProductConfig(block=(1, 3, 3), centroids=16), padding=(1, 1, 1, 1)
    )
    for plane, applies in (((2, 9), False), ((9, 2), False), ((3, 3), True)):
        x = rng.standard_normal((1, 8, *plane), dtype=np.float32)
        assert ("winograd8" in candidates(model_file([node], tensors, x.shape), x, isa="reference")) == applies


def test_winograd_in_integers_takes_a_scale_for_each_tile(rng: np.random.Generator) -> None:
    """A tile of small inputs is as exact beside a large one as it is by itself."""
    node, tensors = weighted_layer(rng, (8, 8, 3, 3), ProductConfig(block=(1, 3, 3), centroids=16))
    small = rng.uniform(0, 0.1, size=(1, 8, 6, 6)).astype(np.float32)
    small[0, 0, 0, 0] = 1  # which sets the scale of bytes
    x = np.concatenate([small, np.ones_like(small)], axis=3)
    file = model_file([node], tensors, small.shape)
    assert "winograd8" in candidates(file, small, isa="reference")
    alone, together = (run(file, inputs, isa="reference", kernel="winograd8") for inputs in (small, x))
    np.testing.assert_array_equal(together[..., :4], alone)


@pytest.mark.parametrize("codec", [DenseConfig(), ProductConfig(block=(4, 1, 1), centroids=32)], ids=["dense", "coded"])
@pytest.mark.parametrize("images", [1, 5, 33])
def test_linear(codec: Any, images: int, rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (19, 44), codec)
    x = rng.standard_normal((images, 44)).astype(np.float32)
    check_layer(model_file([node], tensors, x.shape), x)


@pytest.mark.parametrize(("outputs", "groups", "plane"), POINTWISE)
def test_inputs_read_in_place(outputs: int, groups: int, plane: tuple[int, int], rng: np.random.Generator) -> None:
    for file, x in pointwise_layers(rng, outputs, groups, plane):
        check_layer(file, x)


@pytest.mark.parametrize(("outputs", "groups", "images"), [(12, 3, 1), (90, 1, 2)])
@pytest.mark.parametrize("codec", [DenseConfig(), ProductConfig(block=(8, 1, 1), centroids=16)], ids=["dense", "coded"])
def test_long_steps_between_quads(codec: Any, outputs: int, groups: int, images: int, rng: np.random.Generator) -> None:
    """Two quads of 72x72 are 41 kB, four are 82: blocks are read in another order, dense rows eight quads at a time."""
    for channels in (32, 72):
        node, tensors = weighted_layer(rng, (outputs, channels, 1, 1), codec, groups=groups)
        x = rng.standard_normal((images, channels * groups, 72, 72)).astype(np.float32)
        check_layer(model_file([node], tensors, x.shape), x)


@pytest.mark.parametrize("threads", [1, 2, 3, 5])
@pytest.mark.parametrize("plane", [(1, 1), (7, 7), (8, 8), (14, 14), (11, 23)])
def test_tables_on_any_number_of_threads(threads: int, plane: tuple[int, int], rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (44, 16, 1, 1), ProductConfig(block=(8, 1, 1), centroids=32))
    x = rng.standard_normal((1, 16, *plane)).astype(np.float32)
    most = float(np.abs(reference.run(model_file([node], tensors, x.shape).network, x)["y"]).max())
    file = writing_bytes(model_file([node], tensors, x.shape), x, -most, most)
    expected = run(file, x, kernel="table8", isa="reference", threads=1)
    for isa in ISAS:
        np.testing.assert_array_equal(run(file, x, kernel="table8", isa=isa, threads=threads), expected)


def test_largest_bytes_stay_within_tables(rng: np.random.Generator) -> None:
    """Sums of a pass that are as large as they can be are not cut off."""
    node, tensors = weighted_layer(rng, (8, 64, 1, 1), ProductConfig(block=(8, 1, 1), centroids=4))
    tensors["layer.codebook"][:] = np.sign(rng.standard_normal(tensors["layer.codebook"].shape))
    tensors["layer.codebook"][0, 0] = 1
    tensors["layer.codebook"][0, 1] = -1
    x = rng.choice([0, 1], size=(1, 64, 9, 9)).astype(np.float32)
    x[0, :, 0, 0] = 1
    check_layer(model_file([node], tensors, x.shape), x)


def test_profile_measures_integer_kernels_by_their_own_peak(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (32, 32, 1, 1), DenseConfig())
    x = rng.standard_normal((1, 32, 20, 20), dtype=np.float32)
    for kernel, peak in (("direct8", "peak8_gmacs"), ("direct", "peak_gmacs")):
        profile = Model(model_file([node], tensors, x.shape), precision="fast", kernel=kernel, threads=1).profile(x)
        (step,) = (step for step in profile["steps"] if step["name"] == "layer")
        assert step["kernel"] == kernel
        assert step["of_peak"] == pytest.approx(step["gmacs"] / profile[peak])


def test_kernel_in_integers_needs_fast(rng: np.random.Generator) -> None:
    node, tensors = weighted_layer(rng, (4, 4, 1, 1), DenseConfig())
    with pytest.raises(ConfigError, match=r"expected one of direct, .*got 'direct8'"):
        Model(model_file([node], tensors, (1, 4, 2, 2)), kernel="direct8")


def test_extreme_inputs(rng: np.random.Generator) -> None:
    """Zeros, infinities and NaN give numbers, and spoil no other image's."""
    node, tensors = weighted_layer(rng, (4, 8, 1, 1), ProductConfig(block=(4, 1, 1), centroids=8))
    file = model_file([node], tensors, (1, 8, 3, 3))
    x = np.zeros((1, 8, 3, 3), np.float32)
    np.testing.assert_allclose(
        run(file, x, kernel="direct8"), np.broadcast_to(tensors["layer.bias"][None, :, None, None], (1, 4, 3, 3))
    )
    x[0, 0, 0] = np.nan, np.inf, -np.inf
    x[0, 1] = 1
    assert np.isfinite(run(file, x, kernel="direct8")).all()
