"""How much outputs count: what an error of each does to the outputs of the network, found by gradients."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs PyTorch")
pytest.importorskip("faiss", reason="learning needs faiss")

import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.learn.calibration import from_arrays  # noqa: E402
from pyquant.learn.importance import LEAST, importance_of_outputs  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402

SHAPE = (3, 12, 12)


def measured(module: nn.Module, inputs: np.ndarray, *, threads: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    calibration = from_arrays(inputs, samples=len(inputs), seed=0)
    with Workers(threads) as workers:
        return importance_of_outputs(
            capture(module, inputs.shape[1:]),
            calibration,
            seed=seed,
            workers=workers,
            progress=lambda what, done, total: None,
        )


def drawn(rng: np.random.Generator, count: int = 64) -> np.ndarray:
    return rng.standard_normal((count, *SHAPE), dtype=np.float32)


@pytest.mark.parametrize("classes", [True, False])
def test_errors_cost_what_is_measured(classes: bool, rng: np.random.Generator) -> None:
    """An error of one channel alone changes the outputs by as much as that channel counts."""
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 6, 3, padding=1)
    with torch.no_grad():
        conv.weight[2] *= 4
    rest = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 5)]
    module = nn.Sequential(conv, *(rest if classes else [nn.ReLU(), nn.Conv2d(6, 2, 3)])).eval()
    inputs = drawn(rng, 256)
    found = measured(module, inputs)["0"]
    module.double()
    with torch.no_grad():
        y = conv(torch.from_numpy(inputs).double())
        expected = module[1:](y)
        costs = np.zeros(6)
        for draw in range(6 * 20):
            moved = y.clone()
            moved[:, draw % 6] += 0.02 * torch.from_numpy(rng.standard_normal(y[:, 0].shape))
            other = module[1:](moved)
            if classes:
                costs[draw % 6] += float(F.kl_div(other.log_softmax(1), expected.softmax(1), reduction="sum"))
            else:
                costs[draw % 6] += float((other - expected).square().sum())
    np.testing.assert_allclose(found, costs / costs.mean(), rtol=0.25)


def test_scales_behind_an_error_count(rng: np.random.Generator) -> None:
    torch.manual_seed(0)
    conv, norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
    last = nn.Conv2d(4, 2, 1)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([1.0, 2.0, 3.0, 4.0]))
        last.weight.fill_(0.5)
    found = measured(nn.Sequential(conv, norm, last).eval(), drawn(rng))
    np.testing.assert_allclose(found["0"], np.array([1, 4, 9, 16]) / 7.5, rtol=0.1)


def test_outputs_that_never_count_count_a_little(rng: np.random.Generator) -> None:
    module = tiny_networks.residual()
    with torch.no_grad():
        module.fc.weight[:, 3] = 0
    found = measured(module, drawn(rng))
    assert set(found) == {"conv", "block.conv1", "block.conv2", "wide", "fc"}
    assert all(importance.min() >= np.float32(LEAST) for importance in found.values())
    assert found["wide"][3] == np.float32(LEAST)


def test_nothing_depends_on_the_number_of_threads(rng: np.random.Generator) -> None:
    inputs = drawn(rng, 70)
    one, two, other = (
        measured(tiny_networks.residual(), inputs, threads=threads, seed=seed)
        for threads, seed in ((1, 0), (2, 0), (2, 1))
    )
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert any(not np.array_equal(one[name], other[name]) for name in one)


def test_where_nothing_counts_all_outputs_count_the_same(rng: np.random.Generator) -> None:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1, bias=False)).eval()
    with torch.no_grad():
        module[2].weight.zero_()
    np.testing.assert_array_equal(measured(module, drawn(rng, 8))["0"], np.ones(4, np.float32))
