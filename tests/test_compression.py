"""Compression from beginning to end: one file that computes what the module computes, or an error and no file."""

import copy
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from conftest import SIDE

import pyquant
from pyquant.choose import Recipe, parse_rule
from pyquant.classes import ClassName
from pyquant.errors import CaptureError, ConfigError, InputError, SelfCheckError
from pyquant.file import read_model, read_storage
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import measure_ranges

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
faiss = pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402
from torch import nn  # noqa: E402

from pyquant import job  # noqa: E402
from pyquant.compression import compress  # noqa: E402

SHAPE = (3, SIDE, SIDE)


@pytest.fixture
def inputs(rng: np.random.Generator) -> np.ndarray:
    return rng.standard_normal((24, *SHAPE), dtype=np.float32)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "x.pqmodel"


def test_the_file_computes_what_the_module_with_decoded_weights_computes(inputs: np.ndarray, out: Path) -> None:
    report = pyquant.compress(tiny_networks.residual(), inputs, out=out)
    assert report.self_check["max_relative_error"] < 1e-4
    assert report.bytes == out.stat().st_size
    expected = pyquant.to_torch(out)(torch.from_numpy(inputs)).numpy()
    np.testing.assert_allclose(pyquant.load(out)(inputs), expected, atol=1e-4 * np.abs(expected).max())


def test_the_file_is_small(inputs: np.ndarray, out: Path) -> None:
    report = compress(tiny_networks.residual(), inputs, out=out)
    stored = read_storage(out).tensor_bytes
    assert sum(layer.bytes for layer in report.layers) == sum(stored.values()) - stored["activation_ranges"]
    assert report.bytes < sum(stored.values()) + 4096  # graph, provenance and names


def test_threads_and_repetition_do_not_change_the_file(inputs: np.ndarray, out: Path) -> None:
    files = []
    for threads in (1, 2, 3, None):
        compress(tiny_networks.residual(), inputs, out=out, threads=threads)
        files.append(out.read_bytes())
    assert len(set(files)) == 1
    compress(tiny_networks.residual(), inputs, out=out, seed=1)
    assert out.read_bytes() != files[0]


@pytest.mark.parametrize(("method", "calibrated"), [("gram", True), ("pqf", True), ("pqf", False)])
def test_reordered_channels_compute_the_same(method: str, calibrated: bool, inputs: np.ndarray, out: Path) -> None:
    module = tiny_networks.residual()
    files = []
    for threads in (1, 3):
        report = compress(
            module,
            inputs if calibrated else None,
            out=out,
            recipe=Recipe(preset="large-blocks"),
            method=method,
            input_shape=SHAPE,
            threads=threads,
        )
        files.append(out.read_bytes())
    assert files[0] == files[1]
    assert report.self_check["max_relative_error"] < 1e-4
    model = read_model(out)
    assert model.provenance["method"] == method
    assert model.provenance["objective"] == ("weights alone" if method == "pqf" else "outputs on calibration inputs")
    # The stem stays dense: its outputs are those of the module, in another order.
    before, after = module.conv.weight.detach().numpy(), model.network.tensors["conv.weight"]
    assert not np.array_equal(before, after)
    assert sorted(row.tobytes() for row in before) == sorted(row.tobytes() for row in after)


def test_the_module_and_global_state_are_left_as_they_were(inputs: np.ndarray, out: Path) -> None:
    module = tiny_networks.residual().train()
    module.bn.eval()
    calls: list[str] = []
    module.fc.register_forward_hook(lambda *_: calls.append("called"))
    before = copy.deepcopy(module.state_dict())
    flags = {name: part.training for name, part in module.named_modules()}
    random_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    kept = inputs.copy()
    inputs.flags.writeable = False
    compress(module, inputs, out=out, threads=2)
    np.testing.assert_array_equal(inputs, kept)
    assert not calls
    assert {name: part.training for name, part in module.named_modules()} == flags
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(parameter.requires_grad for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), random_state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    assert (torch.get_num_threads(), faiss.omp_get_max_threads()) == threads
    assert torch.is_grad_enabled()


def test_calibration_on_pictures(pictures: Path, out: Path) -> None:
    classes = [ClassName(folder=name, name=f"a {name}") for name in ("ant", "bee", "cat")]
    compress(tiny_networks.residual(), pictures, out=out, input_shape=SHAPE, classes=classes, samples=7)
    model = read_model(out)
    assert model.preprocessing == Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
    assert model.classes == tuple(classes)
    assert model.provenance["samples"] == 7


def test_preprocessing_gives_the_input_shape(pictures: Path, out: Path) -> None:
    compress(tiny_networks.residual(), pictures, out=out, preprocessing=Preprocessing(resize=32, crop=(24, 20)))
    (declared,) = read_model(out).network.graph.inputs
    assert declared.default == (3, 24, 20)


def test_without_calibration(out: Path) -> None:
    report = compress(tiny_networks.residual(), None, out=out, input_shape=SHAPE)
    assert read_model(out).network.activation_ranges is None
    provenance = read_model(out).provenance
    assert provenance["objective"] == "weights alone"
    assert provenance["samples"] == 0
    assert all(layer.relative_output_error is None for layer in report.layers)


def test_the_file_has_the_ranges_of_its_own_activations(
    inputs: np.ndarray, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "CALIBRATED_INPUTS", 8)
    compress(tiny_networks.residual(), inputs, out=out)
    network = read_model(out).network
    np.testing.assert_array_equal(network.activation_ranges, measure_ranges(network, [[inputs[::3]]]))


def test_provenance_tells_how_the_file_was_made(inputs: np.ndarray, out: Path) -> None:
    recipe = Recipe(preset="large-blocks", rules=(parse_rule("wide=dense"),))
    compress(tiny_networks.residual(), inputs, out=out, recipe=recipe, seed=3, samples=20)
    provenance = dict(read_model(out).provenance)
    errors = provenance.pop("errors")
    assert set(errors) == {"block.conv1", "block.conv2", "wide", "fc"}
    assert provenance == {
        "source": "compress",
        "method": "gram",
        "objective": "outputs on calibration inputs",
        "samples": 20,
        "seed": 3,
        "pyquant": pyquant.__version__,
        "preset": "large-blocks",
        "rules": ["wide=dense"],
        "dense": {"conv": "the first convolution", "wide": "rule 'wide=dense'"},
    }


class Tied(nn.Module):
    """Two layers with one weight, two outputs, and a part that is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.first = nn.Conv2d(16, 16, 3, padding=1)
        self.second = nn.Conv2d(16, 16, 3, padding=1)
        self.second.weight = self.first.weight
        self.unused = nn.Linear(5, 5)
        self.fc = nn.Linear(16, 40)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.first(x))
        y = self.second(x)
        return {"map": y, "scores": self.fc(y.mean((2, 3)))}


def test_tied_weights_several_outputs_and_unused_parts(inputs: np.ndarray, out: Path) -> None:
    torch.manual_seed(0)
    module = Tied()
    report = compress(module, inputs, out=out)
    first, second = (layer for layer in report.layers if layer.name in ("first", "second"))
    assert first.status == second.status == "compressed"
    assert second.bytes < first.bytes
    assert set(pyquant.load(out)(inputs)) == {"map", "scores"}
    assert module.first.weight is module.second.weight


def test_double_precision_modules_are_compressed_in_float32(inputs: np.ndarray, out: Path) -> None:
    module = tiny_networks.residual().double()
    compress(module, inputs, out=out)
    assert module.fc.weight.dtype == torch.float64


def damaged(weight: str) -> nn.Module:
    module = tiny_networks.residual()
    module.get_submodule(weight).weight.data.view(-1)[0] = float("nan")
    return module


class OneAtATime(nn.Module):
    """Does something else with one input than with several."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x.relu() if x.shape[0] == 1 else x)


ARRAY = np.zeros((2, *SHAPE), np.float32)


@dataclass(frozen=True, kw_only=True)
class Bad:
    """Arguments of `compress`, one of which it must refuse."""

    message: str
    error: type[Exception] | tuple[type[Exception], ...] = InputError
    module: Callable[[], object] = tiny_networks.residual
    calibration: object = field(default_factory=lambda: ARRAY)
    options: dict[str, object] = field(default_factory=dict)


ERRORS = {
    "nan weight": Bad(module=lambda: damaged("block.conv1"), message=r"NaN .* 'block.conv1.weight'"),
    "nan norm": Bad(module=lambda: damaged("block.bn1"), message=r"NaN .* 'block.bn1.weight'"),
    "one at a time": Bad(module=OneAtATime, error=CaptureError, message="takes batches of 1 alone"),
    "no module": Bad(module=lambda: 3, message="module must be a torch.nn.Module, got int"),
    "no shape": Bad(calibration=None, message="input_shape=.* is required"),
    "wrong shape": Bad(calibration=None, options={"input_shape": (3, 8)}, message="input_shape must be three sizes"),
    "channels": Bad(
        calibration=np.zeros((2, 4, 8, 8), np.float32), error=(CaptureError, InputError), message="channels"
    ),
    "no such folder": Bad(calibration="gone", options={"input_shape": SHAPE}, message="no such folder"),
    "pictures of unknown size": Bad(calibration="gone", message="give input_shape"),
    "rule": Bad(
        options={"recipe": Recipe(rules=(parse_rule("x=dense"),))}, error=ConfigError, message="matches no layer"
    ),
    "recipe": Bad(options={"recipe": "a"}, error=ConfigError, message="must be a Recipe, got str"),
    "classes": Bad(
        options={"classes": [ClassName(folder="a", name="a")]},
        message="1 classes are named, but the network has 3 outputs",
    ),
    "samples": Bad(options={"samples": 0}, error=ConfigError, message="samples must be"),
    "seed": Bad(options={"seed": -1}, error=ConfigError, message="seed must be"),
    "threads": Bad(options={"threads": 0}, error=ConfigError, message="threads must be"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_bad_input_is_an_error_before_the_work_and_leaves_no_file(
    case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ERRORS[case]
    module = bad.module()
    monkeypatch.setattr(job, "learn", lambda *_, **__: pytest.fail("the work has begun"))
    with pytest.raises(bad.error, match=bad.message):
        compress(module, bad.calibration, out=tmp_path / "x.pqmodel", **bad.options)
    assert not list(tmp_path.iterdir())


def test_a_corrupt_picture_is_named_and_leaves_no_file(pictures: Path, tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "good.png").write_bytes((pictures / "ant" / "0.png").read_bytes())
    (folder / "bad.png").write_bytes((pictures / "ant" / "0.png").read_bytes()[:60])
    with pytest.raises(InputError, match=r"bad\.png"):
        compress(tiny_networks.residual(), folder, out=tmp_path / "x.pqmodel", input_shape=SHAPE)
    assert [path.name for path in tmp_path.iterdir()] == ["pictures"]


def test_the_calibration_is_not_overwritten(tmp_path: Path) -> None:
    archive = tmp_path / "pictures.zip"
    archive.write_bytes(b"PK")
    with pytest.raises(InputError, match="would be overwritten"):
        compress(tiny_networks.residual(), archive, out=archive, input_shape=SHAPE)
    assert archive.read_bytes() == b"PK"


def test_a_failed_self_check_leaves_what_was_there(
    inputs: np.ndarray, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out.write_bytes(b"older")

    def fail(*_: object, **__: object) -> float:
        raise SelfCheckError("differs")

    monkeypatch.setattr(job, "check_against_module", fail)
    with pytest.raises(SelfCheckError):
        compress(tiny_networks.residual(), inputs, out=out)
    assert out.read_bytes() == b"older"
    assert os.listdir(out.parent) == ["x.pqmodel"]


@pytest.mark.parametrize("method", ["gram", "pqf"])
def test_transposed_convolutions_are_compressed_and_tuned(method: str, inputs: np.ndarray, out: Path) -> None:
    up = nn.ConvTranspose2d(16, 12, 2, stride=2)
    module = nn.Sequential(nn.Conv2d(3, 16, 3, stride=2), nn.ReLU(), up, nn.BatchNorm2d(12), nn.Conv2d(12, 4, 1))
    recipe = Recipe(rules=(parse_rule("2=block:4,1,1;centroids:8"),))
    report = compress(module, inputs, out=out, recipe=recipe, method=method, finetune_steps=2, threads=1)
    assert {layer.name for layer in report.layers if layer.status == "compressed"} >= {"2"}
    assert report.self_check["max_relative_error"] < 1e-3
    network = read_model(out).network
    weight = network.module_weight(network.graph.node("2"))
    assert weight.shape == up.weight.shape
    assert report.dense_bytes == 4 * sum(parameter.numel() for parameter in module.parameters())
