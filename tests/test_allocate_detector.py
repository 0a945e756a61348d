"""Size targets of detectors: sensitivities come from the boxes that are found, and the files have their sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import smooth_picture, tiny_detector
from PIL import Image

from pyquant.choose import Recipe, parse_rule
from pyquant.cli import main
from pyquant.codecs import DenseConfig
from pyquant.detector import compared_outputs, for_learning, tensor_parts
from pyquant.errors import ConfigError
from pyquant.file import read_model
from pyquant.graph import Network
from pyquant.settings import Settings

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402

from pyquant.capture import capture, capture_detector  # noqa: E402
from pyquant.compression import compress, compress_sizes, plan, plan_sizes  # noqa: E402
from pyquant.torch_network import TorchNetwork, found_boxes  # noqa: E402


def detector(**settings: Any) -> Any:
    """Return a detector whose weights outweigh its header, most of them in the head of its boxes."""
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead

    return tiny_detector(box_head=TwoMLPHead(8 * 25, 160), box_predictor=FastRCNNPredictor(160, 5), **settings)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streets")
    for seed in range(12):
        Image.fromarray(smooth_picture(100, 130, seed)).save(folder / f"{seed}.png")
    return folder


def lesson(**settings: Any) -> Network:
    return for_learning(capture_detector(detector(**settings))[0])


def test_what_detectors_are_compared_by() -> None:
    groups = compared_outputs(lesson().graph)
    levels = [tuple(f"{kind}.{level}" for level in range(4)) for kind in ("objectness", "moves")]
    assert groups == (*levels, ("box_logits",), ("box_moves",), ("mask_logits",))
    assert {name for group in groups for name in group} == set(tensor_parts(lesson()).graph.outputs)
    assert compared_outputs(lesson(masks=False).graph) == groups[:4]
    plain = capture(tiny_networks.residual(), (3, 32, 32)).graph
    assert compared_outputs(plain) == (plain.outputs,)


def test_found_boxes_are_those_of_the_whole_detector(rng: np.random.Generator) -> None:
    network = lesson()
    images = torch.from_numpy(rng.standard_normal((2, 3, 96, 96), dtype=np.float32))
    proposals, detections = found_boxes(network, images)
    assert proposals.shape == (64, 5)
    assert detections.shape == (16, 7)
    assert (proposals[:, 0] >= 0).any()
    whole = TorchNetwork(network)(images, torch.full((2, 2), 96.0))
    assert isinstance(whole, dict)
    assert torch.equal(detections, whole["detections"])


@pytest.mark.parametrize("ratio", [4.0, 9.0])
def test_the_file_has_the_size_that_was_asked_for(pictures: Path, tmp_path: Path, ratio: float) -> None:
    out = tmp_path / "x.pqmodel"
    report = compress(detector(), pictures, out=out, target_ratio=ratio, threads=1)
    assert ratio <= report.ratio <= 1.0102 * ratio
    assert report.bytes == out.stat().st_size
    file = read_model(out)
    assert file.network.activation_ranges is not None
    assert file.network.graph.node("rpn").attributes["keep"] == 50  # as it was: codebooks were learnt on fewer boxes


def test_without_pictures(tmp_path: Path) -> None:
    report = compress(detector(masks=False), None, out=tmp_path / "x.pqmodel", target_bytes=90_000, threads=1)
    assert 0.99 * 90_000 <= report.bytes <= 90_000


def test_several_sizes_and_their_errors(pictures: Path, tmp_path: Path) -> None:
    settings = Settings(threads=1, method="pqf")
    out = tmp_path / "x-{ratio}.pqmodel"
    small, large = compress_sizes(detector(), pictures, out=out, target_ratios=[9, 4], settings=settings).files
    assert small.output_error is not None
    assert large.output_error is not None
    assert large.output_error < small.output_error
    for made in (small, large):
        assert made.output_error is not None
        assert made.predicted_error is not None
        assert made.output_error / 5 < made.predicted_error < made.output_error * 5


def test_rules_win_and_threads_change_nothing(pictures: Path) -> None:
    recipe = Recipe(rules=(parse_rule("rpn.head.*=dense"),))
    plans = [plan(detector(), pictures, recipe=recipe, target_ratio=4, threads=threads) for threads in (1, 3)]
    assert plans[0] == plans[1]
    assert isinstance(plans[0].choices["rpn.head.cls_logits"].codec, DenseConfig)
    errors = plans[0].errors
    # What heads make of boxes that were found counts.
    coded = {name for name, choice in plans[0].choices.items() if not isinstance(choice.codec, DenseConfig)}
    assert {"roi_heads.box_head.fc6", "roi_heads.box_head.fc7"} <= coded
    assert all(errors[name] > 0 for name in coded)


def test_plans_of_several_sizes(pictures: Path) -> None:
    plans = plan_sizes(detector(), pictures, target_ratios=[4, 9], settings=Settings(threads=1))
    assert [round(made.ratio) for made in plans] == [4, 9]
    assert plans[0].output_error < plans[1].output_error


def test_dry_run_writes_nothing(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "x.pqmodel"
    arguments = ["compress", "detectors:tiny_detector", "--calibration", str(pictures), "--out", str(out)]
    assert main([*arguments, "--target-size", "40kB", "--dry-run", "--json"]) == 0
    assert 39_600 <= json.loads(capsys.readouterr().out)["bytes"] <= 40_000
    assert main([*arguments, "--dry-run"]) == 0
    assert "predicted: " in capsys.readouterr().out
    assert not any(tmp_path.iterdir())


def test_accuracy_in_class_folders_is_not_of_detectors(pictures: Path, tmp_path: Path) -> None:
    from pyquant.compression import compress_within

    with pytest.raises(ConfigError, match=r"of a detector give sizes with --target-size, and compare .* --annotations"):
        compress_within(detector(), pictures, out=tmp_path / "x.pqmodel", max_drop=1.0, labelled=pictures)
    assert not any(tmp_path.iterdir())
