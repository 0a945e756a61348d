"""Weights on a grid in training: what they are rounded to, what gradients pass, and how long their codes become."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="learning needs torch")

from pyquant.codecs import ScalarConfig  # noqa: E402
from pyquant.codecs.scalar import values  # noqa: E402
from pyquant.learn.grids import mean_length  # noqa: E402
from pyquant.learn.latent import Latent  # noqa: E402

SIZES = [(1, 1), (3, 500), (200, 7), (64, 300)]  # outputs, weights of each


def drawn(
    rng: np.random.Generator, size: tuple[int, int], bits: int, rate: float = 0.0
) -> tuple[Latent, torch.Tensor, torch.Tensor]:
    """Return a weight on grids, few of whose codes are far from zero: its grids, its codes and what they stand for."""
    middle = 2**bits // 2
    codes = np.clip(np.rint(rng.laplace(middle, 0.8, size)), 0, min(2**bits, 255) - 1)
    step = rng.uniform(0.01, 0.1, size[0]).astype(np.float32)
    zero = rng.integers(2 * middle - 1, 2 * middle + 1, size[0]).astype(np.uint8)
    latent = Latent(ScalarConfig(bits=bits, rate=rate), torch.from_numpy(codes.astype(np.float32)), step, zero)
    numbers = torch.from_numpy(values(codes.astype(np.int64), step, zero))
    return latent, torch.from_numpy(codes.astype(np.float32)), numbers


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("bits", "rate"), [(2, 0.0), (4, 0.0), (8, 0.0), (4, 1.5)])
def test_levels_stay_where_they_are(size: tuple[int, int], bits: int, rate: float, rng: np.random.Generator) -> None:
    latent, codes, numbers = drawn(rng, size, bits, rate)
    assert torch.equal(latent.codes(numbers), codes)
    torch.testing.assert_close(latent(numbers), numbers)


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_numbers_become_the_nearest_levels(bits: int, rng: np.random.Generator) -> None:
    latent, codes, numbers = drawn(rng, (20, 30), bits)
    moved = numbers + latent.step * torch.from_numpy(rng.uniform(-0.49, 0.49, numbers.shape).astype(np.float32))
    assert torch.equal(latent.codes(moved), codes)
    beyond = numbers + 1000 * latent.step
    assert torch.equal(latent.codes(beyond), torch.full_like(codes, latent.levels - 1))


def test_gradients_pass_to_numbers_within_the_grid(rng: np.random.Generator) -> None:
    latent, _, numbers = drawn(rng, (20, 30), 3)
    numbers[0] += 100 * latent.step[0]
    numbers.requires_grad_(True)
    weights = torch.from_numpy(rng.standard_normal(numbers.shape).astype(np.float32))
    (latent(numbers) * weights).sum().backward()
    assert numbers.grad is not None
    assert not numbers.grad[0].any()
    assert torch.equal(numbers.grad[1:], weights[1:])


@pytest.mark.parametrize("spread", [0.3, 1.0, 3.0])
@pytest.mark.parametrize("size", SIZES[1:])
def test_codes_at_a_rate_get_no_longer(size: tuple[int, int], spread: float, rng: np.random.Generator) -> None:
    latent, codes, numbers = drawn(rng, size, 5, rate=2)
    before = mean_length(codes, latent.levels)
    assert latent.most_bits == before
    moved = numbers + spread * latent.step * torch.from_numpy(rng.standard_normal(size).astype(np.float32))
    assert mean_length((moved / latent.step + latent.zero).round().clamp(0, 31), latent.levels) > before
    assert mean_length(latent.codes(moved), latent.levels) <= 1.02 * before
    assert mean_length(latent.codes(moved, spared=0.1), latent.levels) <= 0.92 * before


def test_outputs_without_weights(rng: np.random.Generator) -> None:
    """A step may be 0 in a file."""
    latent = Latent(ScalarConfig(bits=2), torch.ones(2, 4), np.array([0, 0.5], np.float32), np.array([2, 2], np.uint8))
    assert torch.equal(latent(torch.zeros(2, 4)), torch.zeros(2, 4))


@pytest.mark.parametrize("rate", [0.0, 1.2])
def test_training_brings_outputs_nearer(rate: float, rng: np.random.Generator) -> None:
    """Codes chosen one by one for a linear layer are bettered by gradients of its outputs' error."""
    teacher = torch.from_numpy((0.05 * rng.standard_normal((8, 40))).astype(np.float32))
    mixing = torch.from_numpy(rng.standard_normal((40, 40)).astype(np.float32))
    x = torch.from_numpy(rng.standard_normal((500, 40)).astype(np.float32)) @ mixing
    step, zero = np.full(8, 0.06, np.float32), np.full(8, 4, np.uint8)
    codes = (teacher / 0.06 + 2).round().clamp(0, 3)
    latent = Latent(ScalarConfig(bits=2, rate=rate), codes, step, zero)
    numbers = torch.nn.Parameter(0.06 * (codes - 2))

    def loss() -> torch.Tensor:
        return (x @ (latent(numbers) - teacher).T).square().mean()

    before, losses = float(loss().detach()), []
    optimizer = torch.optim.Adam([numbers], lr=0.002)
    for _ in range(300):
        optimizer.zero_grad()
        now = loss()
        now.backward()
        optimizer.step()
        losses.append(float(now.detach()))
    assert min(losses) < 0.85 * before
    if rate:
        assert mean_length(latent.codes(numbers.detach()), 4) <= 1.02 * mean_length(codes, 4)
