"""Fine-tuning without labels: outputs come closer to the dense network's on pictures held back, or nothing changes."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import pyquant
from pyquant.checkpoint import Nowhere, Record
from pyquant.codecs import ProductConfig
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.product import codebook_tensors
from pyquant.container import compact_json
from pyquant.errors import ConfigError, InputError
from pyquant.file import read_model
from pyquant.graph import Network

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.learn import finetune as finetuning  # noqa: E402
from pyquant.learn import lesson as lessons  # noqa: E402
from pyquant.learn import schedule  # noqa: E402
from pyquant.learn.calibration import Calibration, from_arrays  # noqa: E402
from pyquant.learn.distillation import distillation_loss  # noqa: E402
from pyquant.learn.effort import Effort  # noqa: E402
from pyquant.learn.finetune import Finetuned, finetune  # noqa: E402
from pyquant.learn.layer_training import LayerTraining  # noqa: E402
from pyquant.learn.lesson import Lesson  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402
from pyquant.learn.pace import Pace  # noqa: E402
from pyquant.learn.recipes import ABGD, OURS, PQF  # noqa: E402
from pyquant.learn.schedule import TrainingRecipe  # noqa: E402
from pyquant.learn.trainable import Trainable  # noqa: E402
from pyquant.learn.training import Training  # noqa: E402
from pyquant.torch_network import TorchNetwork  # noqa: E402

SIDE = 12
STEPS = 12
LESSON = {"device": torch.device("cpu"), "seed": 0}


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((64, 3, SIDE, SIDE), dtype=np.float32)


@pytest.fixture
def calibration(inputs: np.ndarray) -> Calibration:
    return from_arrays(inputs, samples=64, seed=0)


def coded(
    network: Network, rng: np.random.Generator, *, codebooks: int = 1, dtype: str = "float", dense: tuple[str, ...] = ()
) -> Network:
    """Return a network with random codes, and centroids drawn from its own weights; those of layers `dense` stay."""
    tensors, nodes = dict(network.tensors), []
    for node in network.graph.nodes:
        if node.weight is not None and node.name not in dense:
            kernel = node.weight.shape[2:] or (1, 1)
            config = ProductConfig(block=(1, *kernel), centroids=16, codebooks=codebooks, codebook_dtype=dtype)
            count = codebooks * node.weight.shape[0] * config.blocks_per_row(node.weight.shape)
            values = network.weight(node.weight).reshape(-1)
            tensors.pop(node.weight.tensor("weight"), None)
            tensors[node.weight.tensor("codes")] = pack_codes(rng.integers(16, size=count), config.code_bits)
            drawn = rng.choice(values, size=(codebooks, 16, config.dim)) / codebooks
            kept = codebook_tensors(drawn, config)
            tensors |= {node.weight.tensor(role): tensor for role, tensor in kept.items()}
            node = replace(node, weight=replace(node.weight, codec=config))
        nodes.append(node)
    return Network(graph=replace(network.graph, nodes=tuple(nodes)), tensors=tensors)


@pytest.fixture
def dense() -> Network:
    return captured(tiny_networks.residual())


@pytest.fixture
def start(dense: Network, rng: np.random.Generator) -> Network:
    return coded(dense, rng)


def quiet(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""


def with_rates(*rates: float, recipe: TrainingRecipe = OURS) -> TrainingRecipe:
    stages = tuple(replace(stage, rates=rates, usual=rates[0]) for stage in recipe.stages)
    return replace(recipe, stages=stages)


def tuned(dense: Network, start: Network, calibration: Calibration, **options: Any) -> Finetuned:
    steps, seed = options.pop("steps", STEPS), options.pop("seed", 0)
    options = {"effort": Effort(steps=steps), "seed": seed, "threads": 1, "progress": quiet} | options
    return finetune(dense, start, calibration, **options)


def same_tensors(a: Network, b: Network) -> bool:
    return a.tensors.keys() == b.tensors.keys() and all(
        a.tensors[name].dtype == b.tensors[name].dtype and np.array_equal(a.tensors[name], b.tensors[name])
        for name in a.tensors
    )


def captured(module: nn.Module) -> Network:
    return capture(module.eval(), (3, SIDE, SIDE))


@pytest.mark.parametrize(("codebooks", "dtype"), [(1, "float"), (2, "float"), (1, "int8"), (2, "int8")])
def test_the_loss_on_pictures_held_back_falls(
    dense: Network, calibration: Calibration, rng: np.random.Generator, codebooks: int, dtype: str
) -> None:
    start = coded(dense, rng, codebooks=codebooks, dtype=dtype, dense=("conv",))
    result = tuned(dense, start, calibration, steps=30, recipe=with_rates(0.01))  # so few steps allow no choice
    assert result.kept < 0.8 * result.losses[0]
    assert result.steps == 30
    for name, before in start.tensors.items():
        after = result.network.tensors[name]
        assert (after.dtype, after.shape) == (before.dtype, before.shape)
        # Codes stay; whatever else there is takes part.
        assert np.array_equal(after, before) == name.endswith("codes"), name


def test_the_loss_is_that_of_the_network_returned(
    inputs: np.ndarray, dense: Network, start: Network, calibration: Calibration
) -> None:
    result = tuned(dense, start, calibration)
    held_back = np.random.default_rng(0).permutation(64)[:8]
    x = torch.from_numpy(inputs[held_back])
    loss = distillation_loss([TorchNetwork(result.network)(x)], [TorchNetwork(dense)(x)])
    assert float(loss) == pytest.approx(result.kept, rel=1e-3)


def test_equal_steps_give_the_same_network(dense: Network, start: Network, calibration: Calibration) -> None:
    state = torch.get_rng_state()
    first = tuned(dense, start, calibration)
    torch.rand(3)
    assert same_tensors(first.network, tuned(dense, start, calibration).network)
    assert not same_tensors(first.network, tuned(dense, start, calibration, seed=1).network)
    torch.set_rng_state(state)


class Killed(Exception):
    """What a run raises that is stopped on purpose."""


class Kept(Nowhere):
    """Records in memory of a run that is killed after some saves, one of which is due after each step."""

    def __init__(self, saves: int) -> None:
        self.record: Record | None = None
        self.left = saves

    def load(self, name: str) -> Record | None:
        return self.record

    def save(self, name: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        if not self.left:
            raise Killed
        self.left -= 1
        self.record = Record(values=json.loads(compact_json(values)), arrays=arrays)

    def is_due(self) -> bool:
        return True


@pytest.mark.parametrize("recipe", [TrainingRecipe(stages=OURS.stages + PQF.stages), ABGD], ids=["adam", "sgd"])
@pytest.mark.parametrize("saves", [1, 2, 25])  # at the start, in trials, and in passes that mix pictures
def test_what_was_stopped_goes_on_bit_for_bit(
    dense: Network,
    start: Network,
    calibration: Calibration,
    recipe: TrainingRecipe,
    saves: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(schedule, "LEAST_TRIAL", 1)
    monkeypatch.setattr(lessons, "BATCH", 16)
    options = {"steps": 40, "recipe": with_rates(0.001, 0.01, recipe=recipe)}
    whole = tuned(dense, start, calibration, **options)
    records = Kept(saves)
    with pytest.raises(Killed):
        tuned(dense, start, calibration, records=records, **options)
    records.left = -1
    resumed = tuned(dense, start, calibration, records=records, **options)
    assert resumed.losses == whole.losses
    assert resumed.learning_rates == whole.learning_rates
    assert same_tensors(resumed.network, whole.network)


def test_rates_that_diverge_are_kept_and_not_chosen(
    dense: Network, start: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEAST_TRIAL", 1)
    recipe = with_rates(1e30, 1e35)
    whole = tuned(dense, start, calibration, steps=40, recipe=recipe)
    assert whole.learning_rates == (1e30,)  # the lowest
    assert same_tensors(whole.network, start)
    records = Kept(saves=7)  # at the start, and after each step of the first trial
    with pytest.raises(Killed):
        tuned(dense, start, calibration, records=records, steps=40, recipe=recipe)
    assert records.record is not None
    assert records.record.values["trials"] == [None]
    records.left = -1
    assert tuned(dense, start, calibration, records=records, steps=40, recipe=recipe).losses == whole.losses


def test_steps_are_settled_after_the_trials_of_a_job_that_was_stopped_in_them(
    dense: Network, start: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEAST_TRIAL", 1)
    settled = []
    change_steps = Training.change_steps
    monkeypatch.setattr(
        Training, "change_steps", lambda self, steps: (settled.append(steps), change_steps(self, steps))
    )
    options = {"effort": Effort(minutes=0.02), "recipe": with_rates(0.001, 0.01)}
    records = Kept(saves=2)
    with pytest.raises(Killed):
        tuned(dense, start, calibration, records=records, **options)
    assert not settled
    assert records.record is not None
    left = records.record.values["timing"]["seconds"]
    assert 0 < left < 0.02 * 60
    records.left = -1
    assert tuned(dense, start, calibration, records=records, **options).steps == settled[0]


def test_the_callers_settings_are_left_alone(dense: Network, start: Network, calibration: Calibration) -> None:
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with torch.inference_mode():
        result = tuned(dense, start, calibration)
        assert torch.is_inference_mode_enabled()
    assert result.kept < result.losses[0]
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


def test_a_network_that_only_gets_worse_stays_as_it_is(
    dense: Network, start: Network, calibration: Calibration
) -> None:
    result = tuned(dense, start, calibration, recipe=with_rates(100.0))
    assert result.kept == result.losses[0]
    assert same_tensors(result.network, start)


def test_the_learning_rate_is_the_highest_that_gains_nearly_the_most(
    dense: Network, start: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schedule, "LEAST_TRIAL", 1)
    result = tuned(dense, start, calibration, steps=100, recipe=with_rates(1e-7, 0.01, 100.0))
    assert result.learning_rates == (0.01,)
    result = tuned(dense, start, calibration, steps=40, recipe=with_rates(10.0, 100.0))  # all do harm
    assert result.learning_rates == (10.0,)


def test_minutes_become_steps(dense: Network, start: Network, calibration: Calibration) -> None:
    seen = []
    result = tuned(
        dense,
        start,
        calibration,
        effort=Effort(minutes=0.01),
        progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert result.steps >= 1
    assert ("fine-tuning", result.steps, result.steps) in seen


def test_the_pace_is_that_of_the_faster_precision(
    dense: Network, start: Network, calibration: Calibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    lesson = Lesson(dense, calibration, **LESSON)
    seconds = iter([3.0, 1.0, 4.0, 2.0, 0.5] if lesson.has_bfloat16 else [3.0, 1.0, 0.5])
    monkeypatch.setattr(finetuning, "_seconds", lambda function, times=1: next(seconds))
    tuner = finetuning._Tuner(lesson, start, with_rates(0.01).stages, quiet)
    tuner._first = 0
    assert tuner._pace() == Pace(new=3.0, known=1.0, judging=0.5)
    assert lesson.bfloat16 == lesson.has_bfloat16


def test_minutes_count_the_dense_network_only_until_it_met_every_picture() -> None:
    pace = Pace(new=3.0, known=1.0, judging=0.0)
    assert pace.steps(1024.9, new_batches=8) == 8 + 1000
    assert pace.steps(10.0, new_batches=8) == 3


def test_trials_show_how_slow_a_busy_machine_is() -> None:
    pace = Pace(new=3.0, known=1.0, judging=2.0)
    expected = 10 * 3.0 + 2 * 10 * 1.0 + 3 * 2.0
    assert pace.corrected(1.5 * expected, 30, 3) == Pace(new=4.5, known=1.5, judging=3.0)
    assert pace.corrected(0.1, 0, 0) == pace  # too few steps for any trial


def test_compress_writes_what_was_tuned_and_says_how(inputs: np.ndarray, tmp_path: Path) -> None:
    out, files = tmp_path / "x.pqmodel", []
    for _ in range(2):
        report = pyquant.compress(tiny_networks.residual(), inputs, out=out, samples=32, finetune_steps=8, threads=1)
        files.append(out.read_bytes())
    assert files[0] == files[1]
    assert report.self_check["max_relative_error"] < 1e-4
    provenance = read_model(out).provenance
    assert provenance["samples"] == 32
    assert provenance["finetune"].keys() == {"steps", "learning_rates", "precision", "pictures"}
    assert provenance["finetune"]["steps"] == 8
    assert provenance["finetune"]["pictures"] == 64  # all there are


def test_the_command_line_takes_steps(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pyquant.cli import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    command = ["compress", "tiny_networks:residual", "--input-shape", "3,32,32", "--out", "x.pqmodel", "--threads", "1"]
    # Twelve pictures are too few to hold any back.
    assert main([*command, "--calibration", str(pictures), "--finetune", "0.1"]) == 2
    assert "needs at least 16; got 12" in " ".join(capsys.readouterr().err.split())
    for name in ("more", "most"):
        shutil.copytree(pictures, tmp_path / "data" / name)
    assert main([*command, "--calibration", "data", "--finetune-steps", "2"]) == 0
    assert read_model(tmp_path / "x.pqmodel").provenance["finetune"]["steps"] == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune_steps": -1}, "fine-tuning steps must be a whole number"),
        ({"finetune_steps": 1.5}, "fine-tuning steps must be a whole number"),
        ({"finetune_minutes": -1}, "fine-tuning minutes must be a number"),
        ({"finetune_minutes": float("nan")}, "fine-tuning minutes must be a number"),
        ({"finetune_minutes": "5"}, "fine-tuning minutes must be a number"),
        ({"finetune_minutes": 1, "finetune_steps": 1}, "not both"),
        ({"finetune_steps": 1, "device": "tpu"}, "device must be one of cpu, cuda"),
    ],
)
def test_bad_options_are_errors(inputs: np.ndarray, tmp_path: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        pyquant.compress(tiny_networks.residual(), inputs, out=tmp_path / "x.pqmodel", **options)
    assert not list(tmp_path.iterdir())


def test_without_cuda_it_cannot_be_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no CUDA device"):
        Effort(steps=1, device="cuda")


def test_too_few_pictures_or_none(inputs: np.ndarray, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    with pytest.raises(InputError, match=r"at least 16; got 15"):
        pyquant.compress(tiny_networks.residual(), inputs[:15], out=out, finetune_steps=1)
    with pytest.raises(InputError, match="fine-tuning needs calibration"):
        pyquant.compress(tiny_networks.residual(), None, out=out, input_shape=(3, SIDE, SIDE), finetune_steps=1)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_on_cuda(dense: Network, start: Network, calibration: Calibration) -> None:
    result = tuned(dense, start, calibration, effort=Effort(steps=30, device="cuda"))
    assert result.kept < result.losses[0]


def test_each_layer_is_trained_alone_with_the_rate_of_the_first(
    dense: Network, start: Network, calibration: Calibration
) -> None:
    lesson = Lesson(dense, calibration, **LESSON)
    effort = Effort(steps=100_000)
    assert ABGD.each_layer is not None
    short = replace(ABGD, each_layer=replace(ABGD.each_layer, share=20), stages=(replace(ABGD.stages[0], share=1e5),))
    options = {"effort": effort, "layers": 3, "threads": 1}
    records = Kept(10)
    layers = LayerTraining(lesson, short, records=records, **options)
    first, second = (start.graph.node(name).weight for name in ("block.conv1", "block.conv2"))
    assert first is not None
    assert second is not None
    found = layers.train(start, first)
    assert found is not None
    before = start.codebook(first)
    assert (found.dtype, found.shape) == (np.float32, before.shape)
    assert not np.array_equal(found, before)
    assert layers.steps == 19  # 20 in 100,060, rounded down
    resumed = LayerTraining(lesson, short, records=records, **options)
    assert np.array_equal(layers.train(start, second), resumed.train(start, second))
    assert layers.steps == resumed.steps == 38


def test_mean_gradients_are_sums_over_how_many_blocks_use_a_centroid(start: Network, calibration: Calibration) -> None:
    student = Trainable(start)
    x = torch.from_numpy(calibration.load(0))
    student(x).square().sum().backward()
    weight = start.graph.node("block.conv1").weight
    assert weight is not None
    book = student.tensors["block/conv1/codebook"]
    sums = book.grad.clone()
    student.average_gradients()
    counts = np.bincount(start.codes(weight).reshape(-1), minlength=16).clip(1)
    torch.testing.assert_close(book.grad, sums / torch.from_numpy(counts)[:, None])


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_fine_tuned_in_its_own_way(inputs: np.ndarray, tmp_path: Path, method: str) -> None:
    out, files = tmp_path / "x.pqmodel", []
    options = {"method": method, "threads": 1, "samples": 32}
    for steps in (0, 400):
        pyquant.compress(tiny_networks.residual(), inputs, out=out, finetune_steps=steps, **options)
        files.append(read_model(out))
    assert files[1].provenance["finetune"]["steps"] == 400
    stages = METHODS[method].training.stages
    assert len(files[1].provenance["finetune"]["learning_rates"]) == len(stages) + (method == "abgd")
    gained = distance(files[0].network, inputs) - distance(files[1].network, inputs)
    assert gained >= 0 if method in ("obq", "exactobs") else gained > 0  # grids leave this small network little to gain


def distance(network: Network, inputs: np.ndarray) -> float:
    x = torch.from_numpy(inputs)
    with torch.no_grad():
        return float(distillation_loss([TorchNetwork(network)(x)], [tiny_networks.residual()(x)]))
