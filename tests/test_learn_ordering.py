"""The order of channels: it makes blocks vary less, whatever the graph, and is the same for any number of threads."""

from collections.abc import Callable

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs torch")
pytest.importorskip("faiss", reason="learning needs faiss")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_examples import Written, residual_module  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.choose import Choice  # noqa: E402
from pyquant.codecs import ProductConfig  # noqa: E402
from pyquant.codecs.product import as_conv_shape, blocks_from_weight  # noqa: E402
from pyquant.graph import Network  # noqa: E402
from pyquant.learn.ordering import FLOOR, best_order  # noqa: E402
from pyquant.learn.permute import Channels, channels_of, reordered  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402


def chosen(network: Network, channels: int) -> dict[str, Choice]:
    choices = {}
    for _, weight in network.graph.weighted():
        _, width, kh, kw = as_conv_shape(weight.shape)
        choices[weight.name] = Choice(codec=ProductConfig(block=(min(channels, width), kh, kw), centroids=4))
    return choices


def volume(network: Network, choices: dict[str, Choice], names: list[str]) -> float:
    """Return the sum over layers of log det of the covariance of blocks, over their size."""
    total = 0.0
    for _, weight in network.graph.weighted():
        config = choices[weight.name].codec
        assert isinstance(config, ProductConfig)
        if weight.name in names:
            array = network.weight(weight)
            blocks = blocks_from_weight(array, config.block).reshape(-1, config.dim) / np.sqrt(np.square(array).mean())
            covariance = np.cov(blocks.T.astype(np.float64), bias=True) + FLOOR * np.eye(config.dim)
            total += np.linalg.slogdet(covariance)[1] / config.dim
    return total


def ordered(network: Network, choices: dict[str, Choice], *, threads: int = 1, seed: int = 0) -> np.ndarray:
    with Workers(threads) as workers:
        return best_order(network, choices, channels_of(network), seed=seed, workers=workers, progress=lambda *_: None)


def moved(network: Network, source: np.ndarray) -> Network:
    return reordered(network, {}, channels_of(network), source)[0]


def concatenated(self: nn.Module, x: torch.Tensor) -> torch.Tensor:
    both = torch.cat([self.a(x), self.b(x)], 1).relu()
    return self.fc(F.avg_pool2d(self.grouped(both) + self.plain(both), 3).flatten(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {
    "residual": (residual_module, ["conv3", "shortcut.0", "fc"]),
    "awkward": (
        lambda: Written(
            concatenated,
            a=nn.Conv2d(3, 5, 3),
            b=nn.Conv2d(3, 7, 3),
            grouped=nn.Conv2d(12, 9, 3, groups=3),
            plain=nn.Conv2d(12, 9, 3),
            fc=nn.Linear(9 * 4, 6),
        ),
        ["grouped", "plain", "fc"],
    ),
}


def captured(kind: str) -> Network:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return capture(MODULES[kind][0]().eval(), (3, 10, 10))


def planted() -> tuple[Network, dict[str, Choice], Channels]:
    """Return two layers between which every second channel is large."""
    module = Written(lambda self, x: self.b(self.a(x)), a=nn.Conv2d(3, 16, 1), b=nn.Conv2d(16, 40, 1)).eval()
    with torch.no_grad():
        module.b.weight[:, ::2] *= 10
    network = capture(module, (3, 4, 4))
    return network, chosen(network, 2), channels_of(network)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("kind", MODULES)
def test_blocks_vary_less(kind: str, channels: int) -> None:
    network, names = captured(kind), MODULES[kind][1]
    choices = chosen(network, channels)
    better = moved(network, ordered(network, choices))
    assert volume(better, choices, names) < volume(network, choices, names) - 0.01


def test_large_channels_share_places() -> None:
    rng = np.random.default_rng(0)
    network, choices, channels = planted()
    read = channels.inputs["b"]
    # From any order: blocks of one large and one small channel, the large one always in the same place.
    source = np.arange(channels.count)
    source[read] = rng.permutation(read)
    network = moved(network, source)
    better = moved(network, ordered(network, choices))
    energy = np.square(better.tensors["b.weight"]).mean(axis=(0, 2, 3)).reshape(-1, 2)
    large = energy > energy.mean()
    assert (large[:, 0] != large[:, 1]).all()
    assert (large == large[0]).all()


def test_threads_and_repetition_do_not_change_the_order() -> None:
    network = captured("residual")
    choices = chosen(network, 2)
    orders = [ordered(network, choices, threads=threads) for threads in (1, 2, 3)]
    assert all(np.array_equal(order, orders[0]) for order in orders)
    assert not np.array_equal(ordered(network, choices, seed=1), orders[0])


def test_blocks_of_one_channel_have_no_say() -> None:
    network = captured("residual")
    order = ordered(network, chosen(network, 1))
    np.testing.assert_array_equal(order, np.arange(len(order)))


def test_dead_channels_and_weights_of_zeros_are_no_obstacle() -> None:
    network, choices, _ = planted()
    weight = network.tensors["b.weight"].copy()
    weight[:, :5] = 0
    for array in (weight, np.zeros_like(weight)):
        changed = Network(graph=network.graph, tensors={**network.tensors, "b.weight": array})
        order = ordered(changed, choices)
        assert sorted(order) == list(range(len(order)))
