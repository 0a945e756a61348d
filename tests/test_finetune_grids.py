"""Fine-tuning of networks on grids: codes move to where outputs come closer, steps stay, rates are kept to."""

from dataclasses import replace
from math import prod

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402
from layer_networks import random_weight  # noqa: E402
from test_finetune import SIDE, captured, same_tensors, tuned, with_rates  # noqa: E402

from pyquant.codecs import ScalarConfig, SparseConfig, scalar  # noqa: E402
from pyquant.codecs.packing import unpack_codes  # noqa: E402
from pyquant.declared import PackedCodes  # noqa: E402
from pyquant.entropy import weight_bytes  # noqa: E402
from pyquant.graph import Network  # noqa: E402
from pyquant.learn.calibration import Calibration, from_arrays  # noqa: E402
from pyquant.learn.trainable import Trainable  # noqa: E402
from pyquant.torch_network import TorchNetwork  # noqa: E402


@pytest.fixture
def calibration(rng: np.random.Generator) -> Calibration:
    return from_arrays(rng.standard_normal((64, 3, SIDE, SIDE), dtype=np.float32), samples=64, seed=0)


def badly_coded(network: Network, rng: np.random.Generator, config: ScalarConfig) -> Network:
    """Return a network on grids, of whose codes every third is one too high or too low."""
    tensors, nodes = dict(network.tensors), []
    for node in network.graph.nodes:
        if node.weight is not None:
            weight = tensors.pop(node.weight.tensor("weight"))
            rows = weight.reshape(len(weight), -1)
            zero = config.centroids // 2
            step = scalar.rounded_steps(np.abs(rows).max(axis=1) / zero)
            codes = np.rint(rows / step[:, None]) + zero + rng.choice([-1, 0, 0, 0, 0, 1], rows.shape)
            kept = scalar.tensors_of(
                codes.clip(0, config.centroids - 1).astype(np.uint8), step, np.full(len(step), 2 * zero), config
            )
            tensors |= {node.weight.tensor(role): tensor for role, tensor in kept.items()}
            node = replace(node, weight=replace(node.weight, codec=config))
        nodes.append(node)
    return Network(graph=replace(network.graph, nodes=tuple(nodes)), tensors=tensors)


def half_kept(network: Network, rng: np.random.Generator) -> Network:
    """Return a network with 2 of 4 weights kept, or some anywhere, at random codes."""
    tensors, nodes = dict(network.tensors), []
    for node in network.graph.nodes:
        if (weight := node.weight) is not None:
            config = SparseConfig(kept=0.5, of=4, bits=4)
            if config.misfit(weight.shape):
                config = SparseConfig(kept=0.4, bits=4)
            weight, made = random_weight(rng, weight.name, weight.shape, config)
            tensors = {**{name: t for name, t in tensors.items() if name != weight.tensor("weight")}, **made}
            node = replace(node, weight=weight)
        nodes.append(node)
    return Network(graph=replace(network.graph, nodes=tuple(nodes)), tensors=tensors)


def test_of_sparse_weights_codes_move_and_masks_stay(calibration: Calibration, rng: np.random.Generator) -> None:
    dense = captured(tiny_networks.residual())
    start = half_kept(dense, rng)
    x = torch.from_numpy(calibration.load(0))
    torch.testing.assert_close(Trainable(start)(x), TorchNetwork(start)(x))
    assert same_tensors(Trainable(start).result(), start)
    result = tuned(dense, start, calibration, steps=100, recipe=with_rates(0.01))
    assert result.kept < 0.8 * result.losses[0]
    for _, weight in result.network.graph.weighted():
        for role in ("mask", "step", "zero"):
            name = weight.tensor(role)
            assert np.array_equal(result.network.tensors[name], start.tensors[name])
        assert not np.array_equal(result.network.weight(weight), start.weight(weight))
    student = Trainable(result.network).eval()
    torch.testing.assert_close(student(x), TorchNetwork(result.network)(x))


def test_a_network_to_be_trained_computes_the_same(calibration: Calibration, rng: np.random.Generator) -> None:
    start = badly_coded(captured(tiny_networks.residual()), rng, ScalarConfig(bits=4, rate=3.5))
    x = torch.from_numpy(calibration.load(0))
    torch.testing.assert_close(Trainable(start)(x), TorchNetwork(start)(x))
    assert same_tensors(Trainable(start).result(), start)


@pytest.mark.parametrize("rate", [0.0, 3.6])
def test_codes_move_and_steps_stay(rate: float, calibration: Calibration, rng: np.random.Generator) -> None:
    config = ScalarConfig(bits=4, rate=rate)
    dense = captured(tiny_networks.residual())
    start = badly_coded(dense, rng, config)
    result = tuned(dense, start, calibration, steps=100, recipe=with_rates(0.01))
    assert result.kept < 0.5 * result.losses[0]
    moved = 0
    for _, weight in result.network.graph.weighted():
        for role in ("step", "zero"):
            name = weight.tensor(role)
            assert np.array_equal(result.network.tensors[name], start.tensors[name])
        count = prod(weight.shape)
        before, after = (
            unpack_codes(network.tensors[weight.tensor("codes")], config.bits, count)
            for network in (start, result.network)
        )
        moved += int((before != after).sum())
        if rate:
            tensors = {role: result.network.tensors[weight.tensor(role)] for role in ("codes", "step", "zero")}
            at_first = {role: start.tensors[weight.tensor(role)] for role in tensors}
            packed = PackedCodes(models=1, count=count, bits=config.bits)
            most = max(config.coded_bytes(weight.shape), weight_bytes(at_first, packed))
            assert weight_bytes(tensors, packed) <= most
    assert moved > 100


def test_it_goes_on_where_it_stopped(calibration: Calibration, rng: np.random.Generator) -> None:
    """What is rounded depends on nothing but the numbers that are saved."""
    start = badly_coded(captured(tiny_networks.residual()), rng, ScalarConfig(bits=4, rate=3.5))
    one, other = Trainable(start), Trainable(start)
    with torch.no_grad():
        for value in one.trained().values():
            value += 0.01 * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))
    other.load(one.values())
    x = torch.from_numpy(calibration.load(0))
    assert torch.equal(one(x), other(x))
    assert same_tensors(one.result(), other.result())
