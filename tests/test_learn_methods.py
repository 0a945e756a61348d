"""The methods on layers of every kind: what they return fits the file, and ours has the smaller output error."""

from collections.abc import Iterator

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs torch")

from pyquant.codecs import ProductConfig  # noqa: E402
from pyquant.codecs.product import codebook_values, decode  # noqa: E402
from pyquant.errors import ConfigError  # noqa: E402
from pyquant.graph import Node, Weight  # noqa: E402
from pyquant.learn.methods import METHODS, method_called  # noqa: E402
from pyquant.learn.methods.base import Floats, Layer, Method  # noqa: E402
from pyquant.learn.moments import apply_weight  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402

LAYERS = {
    "3x3": ((24, 6, 3, 3), (1, 3, 3), {"padding": (1, 1, 1, 1)}),
    "tails": ((20, 7, 3, 3), (2, 2, 3), {"padding": (1, 0, 1, 1), "stride": (2, 1)}),
    "grouped": ((24, 3, 3, 3), (2, 3, 3), {"groups": 4, "padding": (1, 1, 1, 1)}),
    "depthwise": ((48, 1, 3, 3), (1, 3, 3), {"groups": 48, "padding": (1, 1, 1, 1)}),
    "dilated": ((30, 4, 3, 3), (1, 3, 3), {"dilation": (2, 2)}),
    "1x1": ((40, 12, 1, 1), (4, 1, 1), {}),
    "linear": ((50, 30), (4, 1, 1), {}),
}

OF_CODEBOOKS = {name: method for name, method in METHODS.items() if method.codec is ProductConfig}


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as pool:
        yield pool


def layer_of(kind: str, rng: np.random.Generator, centroids: int = 8, codebooks: int = 1) -> Layer:
    shape, block, attributes = LAYERS[kind]
    config = ProductConfig(block=block, centroids=centroids, codebooks=codebooks)
    node = Node(
        op="linear" if kind == "linear" else "conv2d",
        name=kind,
        inputs=("x",),
        outputs=("y",),
        weight=Weight(name=kind, shape=shape),
        attributes=attributes,
    )
    weight = rng.standard_normal(shape).astype(np.float32)
    return Layer(node=node, weight=weight, config=config, centred=True, importance=np.ones(shape[0], np.float32))


def inputs_of(layer: Layer, rng: np.random.Generator) -> torch.Tensor:
    """Return inputs that are smooth in the plane and correlated between channels."""
    channels = layer.weight.shape[1] * (1 if layer.node.op == "linear" else layer.node.attributes["groups"])
    mixing = rng.standard_normal((channels, channels)) / np.sqrt(channels) + 0.5
    plane = () if layer.node.op == "linear" else (9, 8)
    noise = rng.standard_normal((60, channels, *plane))
    if plane:
        noise = noise + np.roll(noise, 1, 2) + np.roll(noise, 1, 3)
    return torch.from_numpy(np.einsum("dc,nc...->nd...", mixing, noise).astype(np.float32) + 1)


def solve(method: Method, layer: Layer, dense: torch.Tensor, coded: torch.Tensor, workers: Workers) -> Floats:
    """Return the decoded weight, measured on three batches."""

    def measure(rows: slice) -> object:
        same = coded is dense
        return method.measure(layer.node, layer.config, None if same else dense[rows], coded[rows])

    measured = workers.fold(measure, [slice(0, 20), slice(20, 40), slice(40, 60)], method.add)
    tensors = method.code(layer, measured, seed=0, workers=workers)
    config = layer.config
    assert isinstance(config, ProductConfig)
    codes, codebooks = config.codes(tensors, layer.weight.shape), codebook_values(tensors)
    assert codes.dtype == np.uint16
    assert codes.shape == (config.codebooks, len(layer.weight), config.blocks_per_row(layer.weight.shape))
    assert codebooks.shape == (config.codebooks, config.centroids, config.dim)
    assert codes.max() < config.centroids
    return decode(codes, codebooks, layer.weight.shape, config)


def error_of(layer: Layer, weight: Floats, dense: torch.Tensor, coded: torch.Tensor) -> float:
    """Return the relative output error, each channel's mean error taken away."""
    wanted = apply_weight(layer.node, torch.from_numpy(layer.weight), dense)
    miss = apply_weight(layer.node, torch.from_numpy(weight), coded) - wanted
    axes = (0,) if wanted.ndim == 2 else (0, 2, 3)
    miss = miss - miss.mean(dim=axes, keepdim=True)
    return float(miss.square().sum() / (wanted - wanted.mean(dim=axes, keepdim=True)).square().sum())


@pytest.mark.parametrize("kind", LAYERS)
def test_ours_has_the_smaller_output_error(kind: str, rng: np.random.Generator, workers: Workers) -> None:
    layer = layer_of(kind, rng)
    x = inputs_of(layer, rng)
    errors = {name: error_of(layer, solve(method, layer, x, x, workers), x, x) for name, method in OF_CODEBOOKS.items()}
    assert errors["gram"] < errors["abgd"]


@pytest.mark.parametrize("kind", ["3x3", "grouped", "linear"])
def test_two_codebooks_are_better_than_one(kind: str, rng: np.random.Generator, workers: Workers) -> None:
    one, two = layer_of(kind, np.random.default_rng(1)), layer_of(kind, np.random.default_rng(1), codebooks=2)
    x = inputs_of(one, rng)
    gram = METHODS["gram"]
    assert error_of(two, solve(gram, two, x, x, workers), x, x) < error_of(one, solve(gram, one, x, x, workers), x, x)


def test_errors_of_earlier_layers_are_made_up_for(rng: np.random.Generator, workers: Workers) -> None:
    layer = layer_of("1x1", rng, centroids=64)
    dense = inputs_of(layer, rng)
    # One channel came out too small: a weight that is larger there gives the old outputs.
    coded = dense.clone()
    coded[:, 3] *= 0.5
    blind = solve(METHODS["gram"], layer, coded, coded, workers)
    aware = solve(METHODS["gram"], layer, dense, coded, workers)
    assert error_of(layer, aware, dense, coded) < 0.7 * error_of(layer, blind, dense, coded)


@pytest.mark.parametrize("method", OF_CODEBOOKS)
@pytest.mark.parametrize(
    "weight",
    [
        np.zeros((24, 6, 3, 3), np.float32),
        np.full((24, 6, 3, 3), 0.3, np.float32),
        np.full((24, 6, 3, 3), 1e-30, np.float32),
    ],
    ids=["zeros", "constant", "tiny"],
)
def test_weights_without_structure(method: str, weight: Floats, rng: np.random.Generator, workers: Workers) -> None:
    made = layer_of("3x3", rng)
    layer = Layer(node=made.node, weight=weight, config=made.config, centred=False, importance=np.ones(24, np.float32))
    x = inputs_of(layer, rng)
    np.testing.assert_allclose(solve(METHODS[method], layer, x, x, workers), weight, rtol=2e-2, atol=1e-7)


@pytest.mark.parametrize("method", OF_CODEBOOKS)
@pytest.mark.parametrize("channels", [[0], [0, 1, 2, 3, 4, 5]], ids=["one dead channel", "no signal"])
def test_inputs_that_are_always_zero(
    method: str, channels: list[int], rng: np.random.Generator, workers: Workers
) -> None:
    layer = layer_of("3x3", rng)
    x = inputs_of(layer, rng)
    x[:, channels] = 0
    assert np.isfinite(solve(METHODS[method], layer, x, x, workers)).all()


@pytest.mark.parametrize("method", OF_CODEBOOKS)
def test_a_centroid_for_each_block_loses_nothing(method: str, rng: np.random.Generator, workers: Workers) -> None:
    layer = layer_of("3x3", rng, centroids=256)  # 144 blocks
    x = inputs_of(layer, rng)
    np.testing.assert_allclose(solve(METHODS[method], layer, x, x, workers), layer.weight, rtol=2e-3, atol=1e-4)


def test_unknown_method_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown method 'magic'; known: gram, abgd, pqf, obq, exactobs"):
        method_called("magic")
