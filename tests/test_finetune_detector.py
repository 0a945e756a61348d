"""Fine-tuning of detectors: a student sees the dense network's boxes, and comes closer to what that makes of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import smooth_picture, tiny_detector
from PIL import Image

import pyquant
from pyquant.checkpoint import Nowhere, Record
from pyquant.choose import Recipe, parse_rule
from pyquant.codecs import ProductConfig
from pyquant.detector import for_learning
from pyquant.file import read_model
from pyquant.graph import Network
from pyquant.learn.calibration import Calibration, from_arrays

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")
pytest.importorskip("torchvision")
pytest.importorskip("faiss", reason="compressing needs faiss")

from pyquant.capture import capture_detector  # noqa: E402
from pyquant.learn.effort import Effort  # noqa: E402
from pyquant.learn.finetune import finetune  # noqa: E402
from pyquant.learn.lesson import Lesson  # noqa: E402
from pyquant.learn.subject import subject_of  # noqa: E402
from pyquant.learn.targets import as_tuple  # noqa: E402
from pyquant.learn.trainable import Trainable  # noqa: E402
from pyquant.torch_network import TorchNetwork  # noqa: E402

RULES = ("*=block:4,1,1;centroids:16", "backbone.stem*=dense", "backbone.fpn.layer_blocks*=block:1,3,3;centroids:16")
RECIPE = Recipe(rules=tuple(parse_rule(rule) for rule in RULES))
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    """Pictures of one size, without padding, as a detector's inputs."""
    _, preprocessing = capture_detector(tiny_detector())
    normalise = preprocessing.for_learning
    images = [normalise(smooth_picture(100, 120, seed)) for seed in range(24)]
    return from_arrays(np.stack(images), samples=24, seed=0)


@pytest.fixture(scope="module")
def dense() -> Network:
    return for_learning(capture_detector(tiny_detector())[0])


@pytest.fixture(scope="module")
def coded(tmp_path_factory: pytest.TempPathFactory) -> Network:
    """The network compressed on its weights alone, which leaves much to gain."""
    out = tmp_path_factory.mktemp("coded") / "x.pqmodel"
    pyquant.compress(tiny_detector(), None, out=out, recipe=RECIPE, threads=1)
    return read_model(out).network


class Stopped(Exception):
    """The job was stopped."""


class Memory(Nowhere):
    """Records in memory; the job is stopped when `stop` of them were saved."""

    def __init__(self, stop: int = 99) -> None:
        self.stop = stop
        self.record: Record | None = None

    def load(self, name: str) -> Record | None:
        return self.record

    def save(self, name: str, values: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
        self.record = Record(values=values, arrays=dict(arrays))
        self.stop -= 1
        if not self.stop:
            raise Stopped

    def is_due(self) -> bool:
        return True


def tuned(dense: Network, coded: Network, calibration: Calibration, steps: int, records: Any = None) -> Any:
    return finetune(
        dense,
        coded,
        calibration,
        effort=Effort(steps=steps),
        seed=0,
        threads=1,
        progress=lambda *_: None,
        records=records or Nowhere(),
    )


def test_training_brings_a_student_closer(dense: Network, coded: Network, calibration: Calibration) -> None:
    result = tuned(dense, coded, calibration, 40)
    assert result.kept < 0.7 * result.losses[0]
    assert result.network.graph == coded.graph
    changed = {name for name in coded.tensors if not np.array_equal(coded.tensors[name], result.network.tensors[name])}
    codebooks = {
        node.weight.tensor("codebook")
        for node in coded.graph.nodes
        if node.weight is not None and isinstance(node.weight.codec, ProductConfig)
    }
    assert codebooks <= changed
    assert not any(name.endswith("codes") for name in changed)
    lesson = Lesson(dense, calibration, device=CPU, seed=0, mixed=True)
    assert lesson.judge(Trainable(lesson.part(result.network))) == pytest.approx(result.kept, rel=1e-4)


def test_training_that_was_stopped_goes_on_bit_for_bit(
    dense: Network, coded: Network, calibration: Calibration
) -> None:
    whole = tuned(dense, coded, calibration, 5)
    records = Memory(stop=4)
    with pytest.raises(Stopped):
        tuned(dense, coded, calibration, 5, records)
    resumed = tuned(dense, coded, calibration, 5, records)
    assert resumed.losses == whole.losses
    for name, tensor in whole.network.tensors.items():
        np.testing.assert_array_equal(tensor, resumed.network.tensors[name], err_msg=name)


@pytest.mark.parametrize("masks", [True, False])
def test_the_dense_network_is_its_own_best_student(calibration: Calibration, masks: bool) -> None:
    dense = for_learning(capture_detector(tiny_detector(masks=masks))[0])
    subject = subject_of(dense, CPU)
    images = torch.from_numpy(calibration.read(slice(0, 3)))
    shown = as_tuple(subject(images))
    assert all(len(value) == 3 for value in shown)
    student = TorchNetwork(subject.part(dense))
    assert float(subject.loss(student, images, shown)) < 1e-8
    assert float(subject.loss(student, images.flip(0), shown)) > 0.01  # the boxes are those of other pictures


def test_pictures_may_stand_anywhere_in_a_batch(dense: Network, coded: Network, calibration: Calibration) -> None:
    subject = subject_of(dense, CPU)
    images = torch.from_numpy(calibration.read(slice(0, 4)))
    shown = as_tuple(subject(images))
    order = [3, 1, 0]
    student = TorchNetwork(subject.part(coded))
    losses = [
        float(subject.loss(student, images[chosen], [value[chosen] for value in shown]))
        for chosen in (order, sorted(order))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_rows_that_are_not_used_do_not_count(coded: Network, calibration: Calibration) -> None:
    # Of a detector that finds no box in pictures, what its head makes of nothing is no lesson.
    network = capture_detector(tiny_detector(box_score_thresh=0.999))[0]
    subject = subject_of(network, CPU)
    images = torch.from_numpy(calibration.read(slice(0, 2)))
    shown = dict(zip(subject.graph.outputs, as_tuple(subject(images)), strict=True))
    assert (shown["detections"][:, :, 0] < 0).all()
    student = TorchNetwork(subject.part(coded))
    loss = float(subject.loss(student, images, list(shown.values())))
    assert 0 < loss < 100
    shown["mask_logits"] = shown["mask_logits"] + 1e6
    assert float(subject.loss(student, images, list(shown.values()))) == loss


def test_frozen_norms_are_scales_and_biases_like_others(tmp_path: Path) -> None:
    from torchvision.ops.misc import FrozenBatchNorm2d

    modules = [tiny_detector(masks=False, norm=norm) for norm in (None, FrozenBatchNorm2d)]
    modules[1].load_state_dict(modules[0].state_dict(), strict=False)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(16):
        Image.fromarray(smooth_picture(100, 120, seed)).save(folder / f"{seed}.png")
    files = []
    for index, module in enumerate(modules):
        files.append(tmp_path / f"{index}.pqmodel")
        pyquant.compress(module, folder, out=files[-1], recipe=RECIPE, threads=1, finetune_steps=3)
    plain, frozen = (read_model(file).network for file in files)
    scale = plain.graph.node("backbone.stages.0.0").tensor("scale")
    assert not np.array_equal(plain.tensors[scale], capture_detector(modules[0])[0].tensors[scale])
    for name, tensor in plain.tensors.items():
        np.testing.assert_array_equal(frozen.tensors[name], tensor, err_msg=name)


@pytest.mark.parametrize("method", ["gram", "pqf", "abgd"])
def test_compress(calibration: Calibration, tmp_path: Path, method: str) -> None:
    out = tmp_path / "x.pqmodel"
    images = calibration.read(slice(0, 16))
    settings = {"recipe": RECIPE, "method": method, "finetune_steps": 6, "threads": 1}
    pyquant.compress(tiny_detector(masks=False), images, out=out, checkpoint=tmp_path / "job", **settings)
    file = read_model(out)
    assert file.provenance["finetune"]["steps"] >= 6
    assert file.network.graph.node("rpn").attributes["keep"] == 50
    assert file.network.activation_ranges is not None
    first = out.read_bytes()
    pyquant.compress(tiny_detector(masks=False), images, out=out, checkpoint=tmp_path / "job", **settings)
    assert out.read_bytes() == first


def test_sizes_leave_room_for_what_fine_tuning_says_of_itself(calibration: Calibration, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    images = calibration.read(slice(0, 16))
    pyquant.compress(tiny_detector(), images, out=out, target_bytes=45_000, finetune_steps=2, threads=1)
    assert 0.99 * 45_000 <= out.stat().st_size <= 45_000
    assert "finetune" in read_model(out).provenance
