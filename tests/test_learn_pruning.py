"""Pruning: the weights that go are those of exact OBS, so many are kept as asked for, and less is lost than by size."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE

torch = pytest.importorskip("torch", reason="learning needs torch")

import tiny_networks  # noqa: E402
from test_learn_grids import gaussian, signal_to_noise  # noqa: E402
from test_learn_methods import LAYERS, error_of, inputs_of, layer_of  # noqa: E402

import pyquant  # noqa: E402
from pyquant.choose import Recipe, parse_rule  # noqa: E402
from pyquant.codecs import SparseConfig  # noqa: E402
from pyquant.codecs.sparse import channels_last  # noqa: E402
from pyquant.file import read_model  # noqa: E402
from pyquant.graph import Weight  # noqa: E402
from pyquant.learn.descent import Problem  # noqa: E402
from pyquant.learn.grids import Ordered  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402
from pyquant.learn.methods.base import Floats, Layer, Tensors  # noqa: E402
from pyquant.learn.pruning import error, exchanged, greedy, least_squares, pruned, unit_costs  # noqa: E402
from pyquant.learn.workers import Workers  # noqa: E402

CONFIGS = {
    "half": SparseConfig(kept=0.5),
    "quarter": SparseConfig(kept=0.25, bits=4),
    "2:4": SparseConfig(kept=0.5, of=4),
    "1:3": SparseConfig(kept=1 / 3, of=3),
    "runs": SparseConfig(kept=0.5, run=4),
}


@pytest.fixture
def workers() -> Iterator[Workers]:
    with Workers(2) as pool:
        yield pool


def some_problem(rng: np.random.Generator, groups: int = 2, rows: int = 9, inputs: int = 24) -> Problem:
    def normal(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape).astype(np.float32))

    x = normal(groups, 4 * inputs, inputs) @ (normal(groups, inputs, inputs) + 2)
    gram = x.transpose(1, 2) @ x / (8 * inputs)
    return Problem(target=normal(groups, rows, inputs), gram=gram, importance=normal(groups, rows).square() + 0.1)


def exact_obs(
    weight: Floats, gram: Floats, importance: float, config: SparseConfig, threshold: float
) -> tuple[list[bool], Floats]:
    """Return what one output keeps, and with which weights: each step inverts the Gram of what is left."""
    size, target = config.run, weight.astype(np.float64)
    left = list(range(len(weight) // size))
    ours = target.copy()
    while True:
        inputs = [size * run + i for run in left for i in range(size)]
        inverse = np.linalg.inv(gram[np.ix_(inputs, inputs)].astype(np.float64))
        costs = {}
        for at, run in enumerate(left):
            here = slice(size * at, size * at + size)
            own = ours[size * run : size * run + size]
            dropped = config.of and config.of - sum(run // config.of == other // config.of for other in left)
            if not config.of or dropped < config.of - config.kept_of:
                costs[run] = float(own @ np.linalg.solve(inverse[here, here], own))
        if not costs or (not config.of and min(costs.values()) * importance > threshold):
            return [index // size in left for index in range(len(weight))], ours
        gone = min(costs, key=lambda run: costs[run])
        here = slice(size * left.index(gone), size * left.index(gone) + size)
        own = ours[size * gone : size * gone + size].copy()
        ours[inputs] -= inverse[:, here] @ np.linalg.solve(inverse[here, here], own)
        ours[size * gone : size * gone + size] = 0
        left.remove(gone)


@pytest.mark.parametrize("threshold", [0.03, 0.3, 1e9])
@pytest.mark.parametrize("kind", CONFIGS)
def test_what_goes_is_what_exact_obs_drops(
    kind: str, threshold: float, rng: np.random.Generator, workers: Workers
) -> None:
    """In blocks that hold all inputs."""
    config = CONFIGS[kind]
    ordered = Ordered.of(some_problem(rng), workers, unit=config.unit)
    kept, weight = greedy(ordered, config, threshold, workers)
    problem = ordered.problem
    for g, r in np.ndindex(*problem.target.shape[:2]):
        damped = (ordered.upper[g].double().T @ ordered.upper[g].double()).numpy()
        mask, expected = exact_obs(
            problem.target[g, r].numpy(), damped, float(problem.importance[g, r]), config, threshold
        )
        assert kept[g, r].tolist() == mask
        np.testing.assert_allclose(weight[g, r], expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("groups", "rows", "inputs"), [(1, 5, 300), (3, 1, 12), (1, 200, 36), (2, 40, 132)])
def test_less_is_lost_than_by_size(
    kind: str, groups: int, rows: int, inputs: int, rng: np.random.Generator, workers: Workers
) -> None:
    config = CONFIGS[kind]
    problem = some_problem(rng, groups, rows, inputs)
    ordered = Ordered.of(problem, workers, unit=config.unit)
    problem = ordered.problem
    count = config.kept_weights((groups * rows, inputs))
    kept, weight = pruned(ordered, config, count, workers)
    assert int(kept.sum()) == count
    assert not bool(weight[~kept].any())
    assert structure_holds(kept.numpy(), config)
    by_size = largest(problem.target, config, count)
    assert int(by_size.sum()) == count
    alone = error(problem, problem.target * by_size, workers)
    made_up = error(problem, least_squares(problem, by_size, problem.target * by_size, 200, workers), workers)
    assert error(problem, weight, workers) < made_up < alone


def largest(weight: torch.Tensor, config: SparseConfig, count: int) -> torch.Tensor:
    """Return the mask that keeps the largest weights, or runs of them."""
    squares = weight.square()
    if config.of:
        chosen = squares.unflatten(2, (-1, config.of)).topk(config.kept_of, dim=3).indices
        mask = torch.zeros(squares.unflatten(2, (-1, config.of)).shape, dtype=torch.bool)
        return mask.scatter_(3, chosen, True).flatten(2)
    runs = squares.unflatten(2, (-1, config.run)).sum(3)
    mask = torch.zeros(runs.numel(), dtype=torch.bool)
    mask[runs.flatten().topk(count // config.run).indices] = True
    return mask.reshape(runs.shape).repeat_interleave(config.run, 2)


def structure_holds(kept: np.ndarray, config: SparseConfig) -> bool:
    units = kept.reshape(-1, config.unit)
    patterns = {tuple(pattern) for pattern in config.unit_patterns()}
    return {tuple(unit) for unit in units} <= patterns


def test_every_step_lowers_the_error(rng: np.random.Generator, workers: Workers) -> None:
    problem = some_problem(rng, inputs=40)
    ordered = Ordered.of(problem, workers)
    problem = ordered.problem
    config = CONFIGS["half"]
    patterns = torch.from_numpy(config.unit_patterns())
    kept, weight = greedy(ordered, config, 0.2, workers)
    price = 0.1

    def cost(mask: torch.Tensor, weight: torch.Tensor) -> float:
        return error(problem, weight, workers) + price * int(mask.sum())

    costs = [cost(kept, weight)]
    for _ in range(3):
        weight = least_squares(problem, kept, weight, 20, workers)
        costs.append(cost(kept, weight))
        kept, weight = exchanged(problem, weight, patterns, price, workers)
        costs.append(cost(kept, weight))
        assert torch.equal(kept, weight != 0)
    assert costs == sorted(costs, reverse=True)


@pytest.mark.parametrize("size", [1, 4])
def test_costs_are_what_leaving_a_unit_out_adds(size: int, rng: np.random.Generator, workers: Workers) -> None:
    problem = some_problem(rng, groups=1, rows=3, inputs=12)
    costs = unit_costs(problem, problem.target, size, workers)
    for row, unit in np.ndindex(3, 12 // size):
        without = problem.target.clone()
        without[0, row, size * unit : size * unit + size] = 0
        assert float(costs[0, row, unit]) == pytest.approx(error(problem, without, workers), rel=1e-3)


@pytest.mark.parametrize("kind", ["half", "2:4", "runs"])
def test_any_number_of_threads_gives_the_same(kind: str, rng: np.random.Generator) -> None:
    config = CONFIGS[kind]
    problem = some_problem(rng, groups=1, rows=300, inputs=12)
    found = []
    for threads in (1, 3):
        with Workers(threads) as pool:
            found.append(pruned(Ordered.of(problem, pool, unit=config.unit), config, 1800, pool))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])


def sparse(kind: str, config: SparseConfig, rng: np.random.Generator) -> Layer:
    """Return a layer with a config that suits its channels."""
    layer = layer_of(kind, rng)
    if layer.weight.shape[1] % config.unit == 0:
        return replace(layer, config=config)
    shape = (layer.weight.shape[0], 12, *layer.weight.shape[2:])
    attributes = dict(layer.node.attributes)
    node = replace(layer.node, weight=Weight(name=kind, shape=shape), attributes=attributes)
    return replace(layer, weight=rng.standard_normal(shape).astype(np.float32), node=node, config=config)


def solved(layer: Layer, coded: torch.Tensor | None, workers: Workers) -> Tensors:
    """Return the tensors of the weight, measured on three batches; without inputs, those of the weight alone."""
    method = METHODS["exactobs"]
    if coded is None:
        return method.code(layer, None, seed=0, workers=workers)

    def measure(rows: slice) -> object:
        return method.measure(layer.node, layer.config, None, coded[rows])

    measured = workers.fold(measure, [slice(0, 20), slice(20, 40), slice(40, 60)], method.add)
    return method.code(layer, measured, seed=0, workers=workers)


@pytest.mark.parametrize("config", ["half", "2:4", "runs"])
@pytest.mark.parametrize("kind", LAYERS)
def test_layers_of_every_kind(kind: str, config: str, rng: np.random.Generator, workers: Workers) -> None:
    layer = sparse(kind, CONFIGS[config], rng)
    x = inputs_of(layer, rng)
    tensors = solved(layer, x, workers)
    assert not list(layer.config.faults(tensors, layer.weight.shape))
    weight = layer.config.decoded(tensors, layer.weight.shape)
    blind = layer.config.decoded(solved(layer, None, workers), layer.weight.shape)
    # Without inputs, what is kept are the largest weights.
    assert error_of(layer, weight, x, x) < (0.98 if kind == "depthwise" else 0.8) * error_of(layer, blind, x, x)


def test_without_inputs_the_largest_are_kept(rng: np.random.Generator, workers: Workers) -> None:
    layer = sparse("3x3", CONFIGS["half"], rng)
    weight = layer.config.decoded(solved(layer, None, workers), layer.weight.shape)
    kept = largest(torch.from_numpy(layer.weight).reshape(1, 24, -1), layer.config, weight.size // 2).numpy()
    np.testing.assert_array_equal(weight.reshape(1, 24, -1) != 0, kept)
    np.testing.assert_allclose(weight.reshape(1, 24, -1)[kept], layer.weight.reshape(1, 24, -1)[kept], atol=0.02)


def test_gaussian_weights(workers: Workers) -> None:
    """Dropping three quarters leaves 5.6 dB (Kuzmin et al., "Pruning vs Quantization", NeurIPS 2023)."""
    layer = replace(gaussian(8, outputs=256), config=SparseConfig(kept=0.25))
    assert signal_to_noise(layer, solved(layer, None, workers)) == pytest.approx(5.6, abs=0.2)


def test_neighbours_are_channels(rng: np.random.Generator, workers: Workers) -> None:
    layer = sparse("3x3", CONFIGS["2:4"], rng)
    weight = layer.config.decoded(solved(layer, inputs_of(layer, rng), workers), layer.weight.shape)
    assert structure_holds(channels_last(weight) != 0, layer.config)


@pytest.mark.parametrize("config", ["half", "2:4", "runs"])
@pytest.mark.parametrize("channels", [1, 12], ids=["one dead channel", "no signal"])
def test_inputs_that_are_always_zero(channels: int, config: str, rng: np.random.Generator, workers: Workers) -> None:
    layer = sparse("1x1", CONFIGS[config], rng)
    x = inputs_of(layer, rng)
    x[:, :channels] = 0
    assert np.isfinite(layer.config.decoded(solved(layer, x, workers), layer.weight.shape)).all()


@pytest.mark.parametrize("config", ["half", "2:4", "runs"])
@pytest.mark.parametrize("value", [0.0, 0.3])
def test_weights_without_structure(value: float, config: str, rng: np.random.Generator, workers: Workers) -> None:
    layer = replace(sparse("1x1", CONFIGS[config], rng), weight=np.full((40, 12, 1, 1), value, np.float32))
    x = inputs_of(layer, rng)
    weight = layer.config.decoded(solved(layer, x, workers), layer.weight.shape)
    if value:
        assert error_of(layer, weight, x, x) < 0.5
    else:
        assert not weight.any()


def test_one_weight(workers: Workers) -> None:
    layer = replace(layer_of("linear", np.random.default_rng(0)), config=SparseConfig(kept=0.3))
    layer = replace(layer, weight=np.array([[2.0]], np.float32), importance=np.ones(1, np.float32))
    assert layer.config.decoded(solved(layer, None, workers), (1, 1))[0, 0] == pytest.approx(2, rel=0.01)


@pytest.mark.parametrize("rule", ["*=sparse:0.5", "*=sparse:0.3;bits:4", "*=sparse:2:4", "*=sparse:0.5;run:4;bits:3"])
@pytest.mark.parametrize("calibrated", [True, False])
def test_whole_networks(calibrated: bool, rule: str, tmp_path: Path) -> None:
    inputs = np.random.default_rng(0).standard_normal((64, 3, SIDE, SIDE), dtype=np.float32)
    out = tmp_path / "x.pqmodel"
    options: dict[str, Any] = {"input_shape": (3, SIDE, SIDE), "threads": 1, "method": "exactobs"}
    recipe = Recipe(preset="half", rules=(parse_rule(rule), parse_rule("conv=dense")))
    report = pyquant.compress(
        tiny_networks.residual(), inputs if calibrated else None, out=out, recipe=recipe, **options
    )
    codecs = {weight.codec for node, weight in read_model(out).network.graph.weighted() if node.name != "conv"}
    assert codecs == {parse_rule(rule).codec}
    if calibrated:
        errors = [row.relative_output_error for row in report.layers if row.relative_output_error is not None]
        assert max(errors) < 0.6


def test_the_method_brings_its_preset(tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    pyquant.compress(tiny_networks.residual(), None, out=out, method="exactobs", input_shape=(3, SIDE, SIDE), threads=1)
    codecs = {node.name: weight.codec_name for node, weight in read_model(out).network.graph.weighted()}
    assert codecs.pop("conv") == "dense"
    assert set(codecs.values()) == {"sparse"}
