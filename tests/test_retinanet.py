"""RetinaNet from the module to the drawing: compressed for a size, fine-tuned, calibrated, run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import CLASSES, smooth_picture, tiny_retinanet
from PIL import Image

import pyquant
from pyquant.choose import Recipe, parse_rule
from pyquant.classes import ClassName
from pyquant.cli import main
from pyquant.detector import compared_outputs, for_learning, label_count, tensor_parts
from pyquant.errors import CaptureError
from pyquant.file import read_model

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("faiss", reason="compressing needs faiss")

from pyquant.capture import capture_detector  # noqa: E402
from pyquant.compression import plan  # noqa: E402
from pyquant.learn.subject import subject_of  # noqa: E402
from pyquant.learn.targets import as_tuple  # noqa: E402
from pyquant.torch_network import TorchNetwork, found_boxes  # noqa: E402


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    for seed in range(16):
        Image.fromarray(smooth_picture(100, 120, seed)).save(folder / f"{seed}.png")
    return folder


def test_its_parts() -> None:
    network, preprocessing = capture_detector(tiny_retinanet())
    assert (preprocessing.short, preprocessing.long) == (96, 160)
    levels = [tuple(f"{kind}.{level}" for level in range(4)) for kind in ("logits", "moves")]
    assert compared_outputs(network.graph) == tuple(levels)
    assert label_count(network.graph) == CLASSES
    parts = tensor_parts(network)
    assert [declared.name for declared in parts.graph.inputs] == ["images"]  # nothing reads the boxes
    assert found_boxes(network, torch.zeros(1, 3, 96, 96)) == []
    assert for_learning(network) == network


def test_fine_tuning_compares_what_the_heads_give() -> None:
    network, _ = capture_detector(tiny_retinanet())
    subject = subject_of(network, torch.device("cpu"))
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    shown = as_tuple(subject(images))
    student = TorchNetwork(subject.part(network))
    assert float(subject.loss(student, images, shown)) < 1e-8
    assert float(subject.loss(student, images, [value + 1 for value in shown])) > 0.1


def test_compressed_for_a_size_and_fine_tuned(pictures: Path, tmp_path: Path) -> None:
    out = tmp_path / "x.pqmodel"
    report = pyquant.compress(tiny_retinanet(), pictures, out=out, target_bytes=42_000, finetune_steps=3, threads=1)
    assert 0.99 * 42_000 <= report.bytes <= 42_000
    file = read_model(out)
    assert file.network.activation_ranges is not None
    assert file.provenance["finetune"]["steps"] == 3
    unseen = [smooth_picture(90, 110, 100)]
    exact, fast = (pyquant.load(out, precision=precision).predict(unseen)[0] for precision in ("exact", "fast"))
    assert "masks" not in exact
    assert len(exact["labels"])
    np.testing.assert_allclose(exact["scores"][:5], fast["scores"][:5], atol=0.1)


def test_heads_are_coded_by_default(pictures: Path) -> None:
    # Their last layers are 3x3 and hold much: unlike those of a region proposal network, they do not stay dense.
    layers = {layer.name: layer for layer in plan(tiny_retinanet(), None).layers}
    assert layers["head.classification_head.cls_logits"].status == "compressed"
    assert layers["head.regression_head.bbox_reg"].status == "compressed"


def test_commands(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, drawn = tmp_path / "x.pqmodel", tmp_path / "drawn.png"
    names = tmp_path / "classes.txt"
    names.write_text("".join(f"{i} thing {i}\n" for i in range(CLASSES)))

    def run(*arguments: Any) -> str:
        capsys.readouterr()
        assert main([str(argument) for argument in arguments]) == 0
        return capsys.readouterr().out

    run("compress", "detectors:tiny_retinanet", "--out", out, "--rule", "*=dense", "--classes", names)
    assert read_model(out).classes[1] == ClassName(folder="1", name="thing 1")
    done = json.loads(run("calibrate", out, pictures, "--out", out, "--samples", "2", "--json"))
    assert done["pictures"] == 2
    steps = {step["name"]: step for step in json.loads(run("profile", out, "--tune", "0", "--json"))["steps"]}
    assert steps["detections"]["op"] == "anchor_detections"
    (found,) = json.loads(run("run", out, pictures / "0.png", "--draw", drawn, "--json", "--min-score", "0"))
    assert len(found["detections"]) == 50
    assert found["detections"][0]["class"].startswith("thing ")
    assert "mask" not in found["detections"][0]
    with Image.open(drawn) as image:
        assert image.size == (120, 100)
        assert not np.array_equal(np.asarray(image.convert("RGB")), smooth_picture(100, 120, 0))


def test_exported_weights_go_back_into_the_module(tmp_path: Path) -> None:
    from pyquant.export.state import state_dict

    out = tmp_path / "x.pqmodel"
    pyquant.compress(tiny_retinanet(), None, out=out, recipe=Recipe(rules=(parse_rule("*=dense"),)))
    state = state_dict(read_model(out).network)
    expected = tiny_retinanet().state_dict()
    assert state.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_allclose(state[name], tensor.numpy(), atol=1e-6, err_msg=name)


def test_unknown_parts_are_named() -> None:
    module = tiny_retinanet()
    module.head.classification_head = torch.nn.Identity()
    module.anchor_generator = None
    with pytest.raises(CaptureError, match=r"'anchor_generator' is NoneType.*'head.classification_head' is Identity"):
        capture_detector(module)
