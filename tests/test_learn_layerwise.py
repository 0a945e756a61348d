"""The walk through the layers: errors, statistics and streams equal what the finished network shows."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pyquant import reference
from pyquant.choose import Recipe, parse_rule
from pyquant.codecs import ProductConfig
from pyquant.errors import InputError
from pyquant.graph import Network, Node

torch = pytest.importorskip("torch", reason="learning needs PyTorch")
pytest.importorskip("faiss", reason="learning needs faiss")

import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.learn import activations, layerwise  # noqa: E402
from pyquant.learn.calibration import Calibration, from_arrays  # noqa: E402
from pyquant.learn.layerwise import Learnt, learn  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402
from pyquant.module_state import norms_of  # noqa: E402

SIDE = 12


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((40, 3, SIDE, SIDE), dtype=np.float32)


def learnt_from(
    module: nn.Module,
    calibration: Calibration | None,
    *,
    threads: int = 1,
    rules: tuple[str, ...] = (),
    method: str = "abgd",
) -> tuple[Network, Learnt]:
    network = capture(module, (3, SIDE, SIDE))
    choices = Recipe(rules=tuple(map(parse_rule, rules))).choose(network.graph)
    with Workers(threads) as workers:
        result = learn(
            network,
            choices,
            seed=0,
            workers=workers,
            method=METHODS[method],
            calibration=calibration,
            norms=norms_of(network.graph, module.state_dict()),
            progress=lambda what, done, total: None,
        )
    return network, result


def without_epilogue(network: Network, node: Node, x: np.ndarray) -> np.ndarray:
    return reference.OPS[node.op](network, replace(node, tensors=()), [x.astype(np.float64)])


@pytest.mark.parametrize("rules", [(), ("conv=block:1,3,3;centroids:8", "block.conv1=block:3,3,3;centroids:16")])
def test_errors_are_those_of_outputs_before_scale_and_bias(inputs: np.ndarray, rules: tuple[str, ...]) -> None:
    dense, learnt = learnt_from(tiny_networks.residual(), from_arrays(inputs, samples=100, seed=0), rules=rules)
    x = reference.all_values(dense, inputs)
    x_coded = reference.all_values(learnt.network, inputs)
    coded_nodes = {node.name: node for node, _ in learnt.network.graph.weighted()}
    assert list(learnt.errors) == [*(["conv"] if rules else []), "block.conv1", "block.conv2", "wide", "fc"]
    for node, _ in dense.graph.weighted():
        if node.name not in learnt.errors:
            continue
        wx = without_epilogue(dense, node, x[node.inputs[0]])
        wx_coded = without_epilogue(learnt.network, coded_nodes[node.name], x_coded[node.inputs[0]])
        expected = np.square(wx - wx_coded).sum() / np.square(wx).sum()
        assert learnt.errors[node.name] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("folded", [False, True])
def test_outputs_of_norms_keep_their_mean_and_deviation(inputs: np.ndarray, folded: bool) -> None:
    module = tiny_networks.residual()
    if folded:  # statistics in the weight and bias, a mean of 0 and a variance of 1 in their place
        for norm in [part for part in module.modules() if isinstance(part, nn.BatchNorm2d)]:
            with torch.no_grad():
                factor = (norm.running_var + norm.eps).rsqrt()
                norm.bias -= norm.running_mean * norm.weight * factor
                norm.weight *= factor * (1 + norm.eps) ** 0.5
                norm.running_mean.zero_()
                norm.running_var.fill_(1)
    network, learnt = learnt_from(module, from_arrays(inputs, samples=100, seed=0))
    assert list(learnt.norms) == ["block.bn1", "block.bn2"]  # nothing before the stem's norm is compressed
    before, after = reference.all_values(network, inputs), reference.all_values(learnt.network, inputs)
    for node in [node for node in network.graph.nodes if node.state.norm in learnt.norms]:
        y, z = before[node.output], after[node.output]
        np.testing.assert_allclose(z.mean(axis=(0, 2, 3)), y.mean(axis=(0, 2, 3)), atol=1e-3)
        np.testing.assert_allclose(z.std(axis=(0, 2, 3)), y.std(axis=(0, 2, 3)), rtol=1e-2)


class Biased(nn.Module):
    """A convolution with a bias before its norm, a norm after an addition, and a channel that never varies."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 16, 3, padding=1)
        self.bn = nn.BatchNorm2d(16)
        self.last = nn.BatchNorm2d(16, affine=False)
        with torch.no_grad():
            self.conv.weight[3] = 0
            self.conv.bias.uniform_(1, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.last(x + self.bn(self.conv(x)))


def test_biases_and_norms_by_themselves(inputs: np.ndarray) -> None:
    torch.manual_seed(0)
    rule = "conv=block:1,3,3;centroids:64"
    network, learnt = learnt_from(Biased().eval(), from_arrays(inputs, samples=100, seed=0), rules=(rule,))
    assert "affine" in [node.op for node in network.graph.nodes]
    assert list(learnt.norms) == ["bn", "last"]
    before, after = reference.all_values(network, inputs), reference.all_values(learnt.network, inputs)
    for node in [node for node in network.graph.nodes if node.state.norm in learnt.norms]:
        y, z = before[node.output], after[node.output]
        varies = y.std(axis=(0, 2, 3)) > 1e-3
        assert varies.sum() >= 15
        np.testing.assert_allclose(z.mean(axis=(0, 2, 3)), y.mean(axis=(0, 2, 3)), atol=1e-3)
        np.testing.assert_allclose(z.std(axis=(0, 2, 3))[varies], y.std(axis=(0, 2, 3))[varies], rtol=1e-2)
    # A channel that never varies keeps its variance.
    assert learnt.norms["bn"].variance[3] == 1


class TwiceNormed(nn.Module):
    """One convolution and one batch norm, each used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.conv = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        return self.bn(self.conv(torch.relu(self.bn(self.conv(x)))))


def test_a_norm_used_twice_keeps_its_statistics(inputs: np.ndarray) -> None:
    torch.manual_seed(0)
    network, learnt = learnt_from(TwiceNormed().eval(), from_arrays(inputs, samples=100, seed=0))
    assert learnt.norms == {}
    assert len(learnt.errors) == 2
    assert len({weight.name for _, weight in learnt.network.graph.weighted()}) == 2
    for node in network.graph.nodes:
        if node.state.norm:
            np.testing.assert_array_equal(learnt.network.own(node, "scale"), network.own(node, "scale"))


def test_without_calibration_weights_alone_are_coded(rng: np.random.Generator) -> None:
    network, learnt = learnt_from(tiny_networks.residual(), None)
    assert learnt.errors == {}
    assert learnt.norms == {}
    coded = [weight.name for _, weight in learnt.network.graph.weighted() if isinstance(weight.codec, ProductConfig)]
    assert len(coded) == 4
    for node in network.graph.nodes:
        for role in node.tensors:
            np.testing.assert_array_equal(learnt.network.own(node, role), network.own(node, role))


def test_a_network_left_dense_is_left_alone(inputs: np.ndarray) -> None:
    network, learnt = learnt_from(tiny_networks.residual(), from_arrays(inputs, samples=8, seed=0), rules=("*=dense",))
    assert learnt.errors == {}
    assert learnt.network.tensors == network.tensors


def test_a_dense_layer_after_compressed_ones_is_measured_too(inputs: np.ndarray) -> None:
    _, learnt = learnt_from(
        tiny_networks.residual(), from_arrays(inputs, samples=100, seed=0), rules=("block.conv2=dense",)
    )
    assert learnt.errors["block.conv2"] > 0
    assert "block.bn2" in learnt.norms


def tensors_equal(first: Learnt, second: Learnt) -> bool:
    pairs = ((first.network.tensors[name], second.network.tensors[name]) for name in first.network.tensors)
    return first.errors == second.errors and all(np.array_equal(a, b) for a, b in pairs)


def test_threads_do_not_change_anything(inputs: np.ndarray) -> None:
    calibration = from_arrays(inputs, samples=100, seed=0)
    results = [learnt_from(tiny_networks.residual(), calibration, threads=threads)[1] for threads in (1, 2, 3)]
    assert tensors_equal(results[0], results[1])
    assert tensors_equal(results[0], results[2])


def test_activations_on_disk_do_not_change_anything(inputs: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    calibration = from_arrays(inputs, samples=100, seed=0)
    _, in_memory = learnt_from(tiny_networks.residual(), calibration)
    monkeypatch.setattr(layerwise, "Activations", lambda: activations.Activations(memory_bytes=100_000))
    _, on_disk = learnt_from(tiny_networks.residual(), calibration)
    assert tensors_equal(in_memory, on_disk)


def test_outputs_that_are_not_finite_are_an_error(inputs: np.ndarray) -> None:
    module = tiny_networks.residual()
    module.wide.weight.data *= 1e38
    with pytest.raises(InputError, match="layer 'wide': its outputs on the calibration inputs are not finite"):
        learnt_from(module, from_arrays(100 * inputs, samples=8, seed=0))


def test_progress_counts_work(inputs: np.ndarray) -> None:
    network = capture(tiny_networks.residual(), (3, SIDE, SIDE))
    seen: list[tuple[str, int, int]] = []
    with Workers(1) as workers:
        learn(
            network,
            Recipe().choose(network.graph),
            seed=0,
            workers=workers,
            method=METHODS["abgd"],
            calibration=from_arrays(inputs, samples=20, seed=0),
            norms=norms_of(network.graph, tiny_networks.residual().state_dict()),
            progress=lambda what, done, total: seen.append((what, done, total)),
        )
    assert seen[:3] == [("reading calibration inputs", done, 2) for done in range(3)]
    assert [what for what, _, _ in seen[3:]] == 6 * ["learning layers"]  # the stem, and four layers
    work = [done for _, done, _ in seen[3:]]
    assert work[0] == 0
    assert work == sorted(set(work))
    assert {total for _, _, total in seen[3:]} == {work[-1]}


def test_workers_keep_order_and_raise() -> None:
    with Workers(3) as workers:
        assert workers.map(lambda i: i * i, range(50)) == [i * i for i in range(50)]
        with pytest.raises(ZeroDivisionError):
            workers.map(lambda i: 1 // i, [1, 0, 2])


def test_workers_give_back_the_number_of_threads() -> None:
    before = torch.get_num_threads()
    with Workers(3) as workers:
        assert set(workers.map(lambda _: torch.get_num_threads(), range(9))) == {1}
        assert torch.is_grad_enabled()
    assert torch.get_num_threads() == before


def test_activations_spill_to_files_that_are_gone_afterwards(rng: np.random.Generator) -> None:
    arrays = [rng.standard_normal((4, 5), dtype=np.float32) for _ in range(4)]
    with activations.Activations(memory_bytes=200) as values:
        for batch, array in enumerate(arrays):
            values.put("x", batch, array)
        spilled = values.get("x", 3)
        assert isinstance(spilled, np.memmap)
        folder = Path(str(spilled.filename)).parent
        assert len(list(folder.iterdir())) == 2
        for batch, array in enumerate(arrays):
            np.testing.assert_array_equal(values.get("x", batch), array)
        values.put("x", 3, arrays[0])
        np.testing.assert_array_equal(values.get("x", 3), arrays[0])
        values.drop(["x"])
        assert not list(folder.iterdir())
        values.put("y", 0, arrays[1])
        assert not isinstance(values.get("y", 0), np.memmap)
    assert not folder.exists()


def test_a_full_temporary_folder_is_an_error_before_and_during_the_work(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"need .* bytes there, .* are free; use fewer samples"):
        activations.check_room(1 << 62)
    activations.check_room(activations.MEMORY_BYTES)

    class Full(np.ndarray):
        def tofile(self, *arguments: object) -> None:
            raise OSError("1000 requested and 500 written")  # as NumPy has it

    with activations.Activations(memory_bytes=0) as values:
        array = rng.standard_normal((4, 5), dtype=np.float32).view(Full)
        with pytest.raises(InputError, match="1000 requested and 500 written"):
            values.put("x", 0, array)


def as_iterable(array: np.ndarray) -> object:
    return (torch.from_numpy(part) for part in np.split(array, 4))


@pytest.mark.parametrize("form", [lambda a: a, torch.from_numpy, as_iterable])
def test_calibration_comes_as_array_tensor_or_iterable(form: Callable, inputs: np.ndarray) -> None:
    calibration = from_arrays(form(inputs), samples=1000, seed=0)
    assert (calibration.count, calibration.batches, calibration.shape) == (40, 3, (3, SIDE, SIDE))
    np.testing.assert_array_equal(np.concatenate([calibration.load(i) for i in range(3)]), inputs)


def test_an_array_is_sampled_by_seed_and_an_iterable_is_cut_off(inputs: np.ndarray) -> None:
    first, again, other = (from_arrays(inputs, samples=10, seed=seed).load(0) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)

    def endless() -> object:
        while True:
            yield inputs[:7]

    assert from_arrays(endless(), samples=10, seed=0).count == 10


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.ones((4, 3, 8, 8)), r"expected float32 \[N, C, H, W\], got float64"),
        (np.ones((3, 8, 8), np.float32), r"got float32 \[3, 8, 8\]"),
        (np.ones((0, 3, 8, 8), np.float32), r"got float32 \[0, 3, 8, 8\]"),
        (np.full((1, 3, 8, 8), np.nan, np.float32), "not finite"),
        ([], "gave no arrays"),
        ([np.ones((1, 3, 8, 8), np.float32), np.ones((1, 3, 9, 8), np.float32)], r"batch 1: .* \[3, 8, 8\]"),
        ([(np.ones((1, 3, 8, 8), np.float32), 1)], "batch 0: expected a float32 array or tensor .* got tuple"),
        (3, "got int"),
        (torch.ones(1, 3, 8, 8, dtype=torch.bfloat16), "got bfloat16"),
    ],
)
def test_unusable_calibration_is_an_error(source: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        from_arrays(source, samples=10, seed=0)
