"""What a job is: equal for equal jobs, and different where a file would be, in the entry that says why."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import SIDE
from PIL import Image

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")

import tiny_networks  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.choose import Recipe, parse_rule  # noqa: E402
from pyquant.classes import ClassName  # noqa: E402
from pyquant.graph import Network  # noqa: E402
from pyquant.identity import circumstances, finetuning_identity, identity  # noqa: E402
from pyquant.learn.calibration import from_arrays, from_pictures  # noqa: E402
from pyquant.learn.norms import Norm  # noqa: E402
from pyquant.module_state import norms_of  # noqa: E402
from pyquant.preprocessing import Preprocessing  # noqa: E402
from pyquant.settings import Settings  # noqa: E402

SHAPE = (3, SIDE, SIDE)
INPUTS = np.random.default_rng(0).standard_normal((20, *SHAPE), dtype=np.float32)


@cache
def captured() -> tuple[Network, dict[str, Norm]]:
    module = tiny_networks.residual()
    network = capture(module, SHAPE)
    return network, norms_of(network.graph, module.state_dict())


def job(*, inputs: np.ndarray | None = INPUTS, samples: int = 20, **settings: Any) -> dict[str, Any]:
    calibration = None if inputs is None else from_arrays(inputs, samples=samples, seed=0)
    return identity(*captured(), calibration, Settings(samples=samples, **settings), {"target size": None})


def differing(a: dict[str, Any], b: dict[str, Any]) -> set[str]:
    return {key for key in a | b if a.get(key) != b.get(key)}


def test_equal_jobs_are_equal() -> None:
    assert job() == job()
    assert job(threads=1) == job(threads=2)
    assert job(finetune_steps=5) == job(finetune_minutes=0.5, device="cuda") == job()


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        ({"seed": 1}, {"seed"}),
        ({"samples": 19}, {"samples", "calibration"}),
        ({"inputs": None}, {"calibration"}),
        ({"inputs": INPUTS[::-1].copy()}, {"calibration"}),
        ({"method": "abgd"}, {"method"}),
        ({"max_bit_operations": 0.1}, {"most bit operations"}),
        ({"recipe": Recipe(preset="large-blocks")}, {"preset"}),
        ({"recipe": Recipe(rules=(parse_rule("fc=dense"),))}, {"rules"}),
        ({"classes": (ClassName(folder="a", name="b"),)}, {"classes"}),
        ({"preprocessing": Preprocessing(resize=32, crop=(32, 32))}, {"preprocessing"}),
        ({"input_shape": SHAPE}, {"input shape"}),
    ],
)
def test_what_changes_the_file_changes_its_entry(change: dict[str, Any], entries: set[str]) -> None:
    assert differing(job(), job(**change)) == entries


@pytest.mark.parametrize(
    ("change", "entries"),
    [
        ({"finetune_steps": 5}, {"steps"}),
        ({"finetune_minutes": 0.5}, {"minutes"}),
        ({"threads": 2}, {"threads"}),
        ({"device": "cuda"}, {"device"}),
        ({"inputs": INPUTS[::-1].copy()}, {"calibration"}),
        ({"seed": 1, "method": "abgd"}, set()),
    ],
)
def test_what_changes_fine_tuning_changes_its_entry(change: dict[str, Any], entries: set[str]) -> None:
    def tuning(*, inputs: np.ndarray = INPUTS, **settings: Any) -> dict[str, Any]:
        calibration = from_arrays(inputs, samples=20, seed=0)
        return finetuning_identity(calibration, Settings(**{"finetune_steps": 4, "threads": 1, **settings}))

    steps = {"finetune_steps": None} if "finetune_minutes" in change else {}
    assert differing(tuning(**steps), tuning(**steps, **change)) == entries


def test_weights_and_batch_norms_are_told_apart_one_by_one() -> None:
    module = tiny_networks.residual()
    for tensor in ("fc.bias", "block.bn1.running_var"):
        module.state_dict()[tensor].view(-1)[0] += 1
    network = capture(module, SHAPE)
    after = identity(network, norms_of(network.graph, module.state_dict()), None, Settings(), {})
    before = identity(*captured(), None, Settings(), {})
    assert differing(before, after) == {"weights", "batch norms"}
    assert differing(before["weights"], after["weights"]) == {"fc.bias", "block.conv1.scale", "block.conv1.bias"}
    assert differing(before["batch norms"], after["batch norms"]) == {"block.bn1"}


def test_pictures_are_told_by_their_bytes(pictures: Path, tmp_path: Path) -> None:
    preprocessing = Preprocessing(resize=SIDE, crop=(SIDE, SIDE))
    folder = tmp_path / "copy"
    folder.mkdir()
    for index, path in enumerate(sorted(pictures.rglob("*.png"))):
        (folder / f"{index:02}.png").write_bytes(path.read_bytes())

    def contents(path: Path) -> list[bytes]:
        return [bytes(part) for part in from_pictures(path, preprocessing, samples=5, seed=0).contents()]

    assert contents(pictures) == contents(folder)
    assert len(contents(pictures)) == 5
    for path in folder.iterdir():  # the same pixels in other bytes
        Image.open(path).save(path, compress_level=1)
    assert contents(pictures) != contents(folder)


def test_circumstances_say_what_last_bits_depend_on() -> None:
    assert circumstances()["PyTorch"] == torch.__version__


def test_every_setting_is_thought_of() -> None:
    assert set(Settings.__dataclass_fields__) == {
        "recipe", "method", "input_shape", "preprocessing", "classes", "samples", "seed", "threads", "finetune_steps",
        "finetune_minutes", "device", "max_bit_operations",
    }  # fmt: skip
