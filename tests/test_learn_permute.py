"""Channels in another order: the function stays, whatever the graph, and as many channels may move as can."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs torch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_examples import Written, residual_module, with_statistics  # noqa: E402

from pyquant import reference  # noqa: E402
from pyquant.capture import capture, flat_outputs  # noqa: E402
from pyquant.graph import Network  # noqa: E402
from pyquant.learn.layerwise import Learnt  # noqa: E402
from pyquant.learn.permute import Channels, channels_of, places, reordered  # noqa: E402
from pyquant.module_state import norms_of, with_learnt  # noqa: E402


def shuffled(channels: Channels, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    source = np.arange(channels.count)
    for sets in channels.exchangeable:
        source[sets] = rng.permutation(sets)
    return source


def sizes(channels: Channels) -> list[int]:
    return sorted(len(sets) for sets in channels.exchangeable)


class Tied(nn.Module):
    """Two convolutions with one weight between streams of their own, and one bias for two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3), nn.Conv2d(3, 6, 3, bias=False)
        self.middle, self.again = nn.Conv2d(6, 7, 1, bias=False), nn.Conv2d(6, 7, 1, bias=False)
        self.again.weight = self.middle.weight
        self.norm, self.other_norm = nn.BatchNorm2d(7), nn.BatchNorm2d(7)
        self.head = nn.Conv2d(14, 4, 1)

    def forward(self, x: Any) -> Any:
        left, right = self.norm(self.middle(self.a(x))), self.other_norm(self.again(self.b(x)))
        return self.head(torch.cat([left.relu(), right.sigmoid()], 1))


def pyramid(self: Any, x: Any) -> dict[str, Any]:
    low = self.stem(x).relu()
    high = self.down(low).relu()
    up = F.interpolate(self.side(high), scale_factor=2.0)
    merged = self.lateral(low) + up
    # One head, and its norm, for both levels.
    return {"fine": self.out(self.norm(self.head(merged))), "coarse": self.out(self.norm(self.head(self.side(high))))}


def excitation(self: Any, x: Any) -> Any:
    x = F.hardswish(self.norm(self.expand(x)))
    x = F.silu(self.deep(x))
    weights = self.second(self.first(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
    return self.project(x * weights - x / 3)


def dense_net(self: Any, x: Any) -> Any:
    x = self.stem(x)
    for norm, layer in zip(self.norms, self.layers, strict=True):
        x = torch.cat([x, layer(norm(x).relu())], 1)
    return self.fc(F.max_pool2d(x, 2).flatten(1))


def awkward_concat(self: Any, x: Any) -> Any:
    a, b = self.a(x), self.b(x)
    twice = torch.cat([a, a], 1) + self.c(x)  # each channel of `a` meets two of `c`
    crossed = torch.cat([a, b], 1) + torch.cat([b, a], 1)
    rows = torch.cat([self.c(x), crossed], 2)
    return self.out(twice), self.last(rows)


def grouped(self: Any, x: Any) -> Any:
    x = self.stem(x).relu()
    x = self.grouped(x)
    x = self.multiplied(x)
    return self.per_pixel(F.avg_pool2d(x, 3).flatten(1))


MODULES: dict[str, tuple[Callable[[], nn.Module], list[int]]] = {
    "residual": (residual_module, [8, 12]),
    "tied": (Tied, [6, 7]),
    "pyramid": (
        lambda: Written(
            pyramid,
            stem=nn.Conv2d(3, 6, 3, padding=1),
            down=nn.Conv2d(6, 8, 2, stride=2),
            side=nn.Conv2d(8, 5, 1),
            lateral=nn.Conv2d(6, 5, 1, bias=False),
            head=nn.Conv2d(5, 9, 3, padding=1),
            norm=nn.BatchNorm2d(9),
            out=nn.Conv2d(9, 2, 1),
        ),
        [5, 6, 8, 9],
    ),
    "excitation": (
        lambda: Written(
            excitation,
            expand=nn.Conv2d(3, 8, 1, bias=False),
            norm=nn.BatchNorm2d(8, affine=False),
            deep=nn.Conv2d(8, 16, 3, groups=8),  # two outputs of each channel
            first=nn.Conv2d(16, 4, 1),
            second=nn.Conv2d(4, 16, 1),
            project=nn.Conv2d(16, 3, 1),
        ),
        [4, 8],
    ),
    "dense": (
        lambda: Written(
            dense_net,
            stem=nn.Conv2d(3, 4, 3),
            norms=nn.ModuleList([nn.BatchNorm2d(4), nn.BatchNorm2d(7)]),
            layers=nn.ModuleList([nn.Conv2d(4, 3, 3, padding=1), nn.Conv2d(7, 2, 1)]),
            fc=nn.Linear(9 * 7 * 7, 5),
        ),
        [2, 3, 4],
    ),
    "awkward concat": (
        lambda: Written(
            awkward_concat,
            a=nn.Conv2d(3, 4, 1),
            b=nn.Conv2d(3, 4, 1),
            c=nn.Conv2d(3, 8, 1),
            out=nn.Conv2d(8, 3, 1),
            last=nn.Conv2d(8, 3, 1),
        ),
        [4],
    ),
    "grouped": (
        lambda: Written(
            grouped,
            stem=nn.Conv2d(3, 12, 3),
            grouped=nn.Conv2d(12, 8, 3, groups=2),
            multiplied=nn.Conv2d(8, 16, 1, groups=8),
            per_pixel=nn.Linear(16 * 16, 5),
        ),
        [4, 4, 6, 6],  # channels stay in their groups
    ),
}
IMAGES = np.random.default_rng(3).standard_normal((2, 3, 16, 16), dtype=np.float32)


def captured(kind: str) -> tuple[nn.Module, Network]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = with_statistics(MODULES[kind][0]()).eval()
    return module, capture(module, IMAGES.shape[1:])


@pytest.mark.parametrize("kind", MODULES)
def test_the_function_stays(kind: str) -> None:
    module, network = captured(kind)
    norms = norms_of(network.graph, module.state_dict())
    channels = channels_of(network)
    moved, moved_norms = reordered(network, norms, channels, shuffled(channels))
    weights = {name for name in network.tensors if name.endswith(".weight")}
    assert any(not np.array_equal(moved.tensors[name], network.tensors[name]) for name in weights)
    expected = reference.run(network, IMAGES)
    for name, got in reference.run(moved, IMAGES).items():
        np.testing.assert_allclose(got, expected[name], rtol=0, atol=1e-6 * np.abs(expected[name]).max())
    with torch.no_grad():
        mine = with_learnt(module, Learnt(network=moved, errors={}, norms=moved_norms))
        outputs = flat_outputs(mine(torch.from_numpy(IMAGES)))
    for got, wanted in zip(outputs, expected.values(), strict=True):
        np.testing.assert_allclose(got.numpy(), wanted, rtol=0, atol=5e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("kind", MODULES)
def test_all_that_can_move_may(kind: str) -> None:
    _, network = captured(kind)
    assert sizes(channels_of(network)) == MODULES[kind][1]


def test_inputs_and_outputs_stay() -> None:
    _, network = captured("pyramid")
    channels = channels_of(network)
    free = np.concatenate(channels.exchangeable)
    assert not np.isin(channels.inputs["stem"], free).any()
    assert not np.isin(channels.outputs["out"], free).any()


def test_constants_of_the_code_tell_channels_apart() -> None:
    scales = torch.tensor([1.0, 2.0, 1.0, 2.0, 1.0, 3.0]).reshape(1, 6, 1, 1)
    module = Written(lambda self, x: self.b(self.a(x) * scales), a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 2, 1)).eval()
    channels = channels_of(capture(module, (3, 4, 4)))
    outputs = channels.outputs["a"]
    assert [sorted(sets) for sets in channels.exchangeable] == [sorted(outputs[[0, 2, 4]]), sorted(outputs[[1, 3]])]


def test_one_channel_that_meets_all_others_stays() -> None:
    module = Written(
        lambda self, x: self.out(self.mask(x) * self.a(x)),
        mask=nn.Conv2d(3, 1, 1),
        a=nn.Conv2d(3, 5, 1),
        out=nn.Conv2d(5, 2, 1),
    ).eval()
    assert sizes(channels_of(capture(module, (3, 4, 4)))) == [5]


def test_places_follow_the_order_of_a_set() -> None:
    sets = np.array([0, 1, 0, 2, 1, 2])
    assert places(sets, np.array([2, 1, 0])).tolist() == [3, 1, 5, 0, 4, 2]
