"""Detectors through the commands that serve all networks: compressed on their weights, inspected, run, exported."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectors import smooth_picture, tiny_detector
from PIL import Image

import pyquant
from pyquant import reference
from pyquant.capture import capture_detector
from pyquant.choose import Recipe, dense_reasons, parse_rule
from pyquant.cli import main
from pyquant.codecs import DenseConfig
from pyquant.detector import DetectorPreprocessing, tensor_parts
from pyquant.errors import ConfigError, InputError, SelfCheckError
from pyquant.file import read_model
from pyquant.preprocessing import Preprocessing
from pyquant.runtime import Model

torch = pytest.importorskip("torch")
pytest.importorskip("torchvision")
pytest.importorskip("faiss", reason="compressing needs faiss")

from pyquant import selfcheck  # noqa: E402
from pyquant.models import build_network  # noqa: E402

RULES = ("*=block:4,1,1;centroids:16", "backbone.stem*=dense", "backbone.fpn.layer_blocks*=block:1,3,3;centroids:16")
Cli = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Cli:
    """Run the command line in this process, in a folder with a picture."""
    monkeypatch.chdir(tmp_path)
    Image.fromarray(smooth_picture(90, 120)).save(tmp_path / "street.png")

    def run(*arguments: Any) -> tuple[int, str, str]:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_commands_from_module_to_drawing(cli: Cli) -> None:
    rules = [word for rule in RULES for word in ("--rule", rule)]
    code, out, err = cli(
        "compress", "detectors:tiny_detector", "--out", "x.pqmodel", *rules, "--threads", "1", "--json"
    )
    assert code == 0, err
    report = json.loads(out)
    coded = {layer["name"] for layer in report["layers"] if layer["status"] == "compressed"}
    assert {"roi_heads.box_head.fc6", "roi_heads.mask_predictor.conv5_mask", "backbone.fpn.layer_blocks.0.0"} <= coded
    assert report["self_check"]["max_relative_error"] < 1e-4
    code, out, err = cli("inspect", "x.pqmodel", "--json")
    assert code == 0, err
    assert json.loads(out)["input"] == {"name": "images", "shape": [None, 3, None, None], "default": [3, 96, 160]}
    code, out, err = cli("profile", "x.pqmodel", "--tune", "0", "--json")
    assert code == 0, err
    steps = {step["name"]: step["ms"] for step in json.loads(out)["steps"]}
    assert steps["rpn"] > 0
    assert steps["roi_heads.box_head.fc6"] > 0  # boxes were found in noise, so that the heads have run
    code, out, err = cli("run", "x.pqmodel", "street.png", "--min-score", "0", "--draw", "drawn.png", "--json")
    assert code == 0, err
    assert json.loads(out)[0]["detections"]
    assert Path("drawn.png").exists()
    for name, message in [("x.safetensors", ""), ("x.onnx", "ONNX has no operation for 'rpn' (proposals)")]:
        code, _, err = cli("export", "x.pqmodel", "--out", name)
        assert code == (2 if message else 0), err
        assert message in err.replace("\n", " ")


def relative_errors(path: Path, module: Any, pictures: list[Any]) -> dict[str, float]:
    """Return how far what a file's boxes are chosen from is from the module's, on pictures and boxes of the module."""
    dense, preprocessing = capture_detector(module)
    parts = [tensor_parts(network) for network in (dense, read_model(path).network)]
    signal: dict[str, float] = {}
    error: dict[str, float] = {}
    for picture in pictures:
        image, size = preprocessing(picture)
        values = reference.all_values(dense, image[None], size[None])
        inputs = [image[None], values["rpn"], values["detections"]]
        expected, got = (reference.run(network, *inputs) for network in parts)
        for name, value in expected.items():
            signal[name] = signal.get(name, 0.0) + float(np.square(value).sum())
            error[name] = error.get(name, 0.0) + float(np.square(got[name] - value).sum())
    return {name: error[name] / signal[name] for name in signal}


def test_calibration_lowers_the_error_of_the_heads(tmp_path: Path) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(24):
        Image.fromarray(smooth_picture(100, 120, seed)).save(folder / f"{seed}.png")
    module, recipe = tiny_detector(), Recipe(rules=tuple(parse_rule(rule) for rule in RULES))
    unseen = [smooth_picture(96, 110, 100 + seed) for seed in range(2)]
    errors = {}
    for name, calibration in (("weights", None), ("pictures", folder)):
        path = tmp_path / f"{name}.pqmodel"
        report = pyquant.compress(module, calibration, out=path, recipe=recipe)
        assert report.self_check["max_relative_error"] < 1e-4
        errors[name] = relative_errors(path, module, unseen)
    for output in ("box_logits", "box_moves", "mask_logits"):
        assert errors["pictures"][output] < 0.1 * errors["weights"][output], output
    network = read_model(path).network
    assert network.graph.node("rpn").attributes["keep"] == 50
    assert network.graph.node("detections").attributes["min_score"] == pytest.approx(0.02)
    assert pyquant.load(path).predict(unseen)


def test_layers_by_which_boxes_are_chosen_stay_dense() -> None:
    graph = capture_detector(tiny_detector())[0].graph
    logits = ["rpn.head.cls_logits", "rpn.head.bbox_pred", "roi_heads.mask_predictor.mask_fcn_logits"]
    choices = Recipe().choose(graph)
    dense = {name: choice.reason for name, choice in choices.items() if choice.reason}
    why = "boxes or masks are chosen by its outputs"
    assert dense == {"backbone.stem.0.0": "the first convolution"} | dict.fromkeys(logits, why)
    assert dense_reasons(graph, choices)["rpn.head.cls_logits_2"] == why  # the same weight, at the next level
    rule = parse_rule("rpn.head.*=block:2,1,1;centroids:2")
    ruled = Recipe(rules=(rule,)).choose(graph)
    assert [ruled[name].codec for name in logits[:2]] == [rule.codec] * 2
    assert isinstance(ruled[logits[2]].codec, DenseConfig)


def test_exported_weights_go_back_into_the_module(tmp_path: Path) -> None:
    from pyquant.export.state import state_dict

    pyquant.compress(tiny_detector(), None, out=tmp_path / "x.pqmodel", recipe=Recipe(rules=(parse_rule("*=dense"),)))
    network = read_model(tmp_path / "x.pqmodel").network
    module, other = tiny_detector(), tiny_detector(box_score_thresh=0.5)
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict({name: torch.from_numpy(np.array(value)) for name, value in state_dict(network).items()})
    assert torch.equal(
        other.roi_heads.mask_predictor.conv5_mask.weight, module.roi_heads.mask_predictor.conv5_mask.weight
    )
    assert torch.equal(other.rpn.head.cls_logits.weight, module.rpn.head.cls_logits.weight)


def test_self_check_sees_a_wrong_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Halved(Model):
        def __call__(self, *inputs: Any) -> Any:
            outputs = super().__call__(*inputs)
            assert isinstance(outputs, dict)
            return {name: value / 2 for name, value in outputs.items()}

    monkeypatch.setattr(selfcheck, "Model", Halved)
    with pytest.raises(SelfCheckError, match="differs from PyTorch on the decoded network"):
        pyquant.compress(tiny_detector(), None, out=tmp_path / "x.pqmodel")
    assert not (tmp_path / "x.pqmodel").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"calibration": np.zeros((2, 1, 96, 96), np.float32)}, r"expected shape \[any, 3, any, any\]"),
        ({"preprocessing": Preprocessing(resize=96, crop=(96, 96))}, "a preprocessing of its own"),
        ({"input_shape": (3, 96, 96)}, "sizes of its own"),
        ({"target_bytes": 500}, "a file of 500 bytes is not possible"),
        ({"finetune_steps": 3}, "fine-tuning needs calibration inputs"),
    ],
)
def test_what_detectors_cannot_have_is_refused(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    calibration = arguments.pop("calibration", None)
    with pytest.raises((ConfigError, InputError), match=message):
        pyquant.compress(tiny_detector(), calibration, out=tmp_path / "x.pqmodel", **arguments)
    assert not (tmp_path / "x.pqmodel").exists()


def test_a_detectors_preprocessing_is_for_detectors(tmp_path: Path) -> None:
    import tiny_networks

    preprocessing = DetectorPreprocessing(short=96, long=160)
    with pytest.raises(ConfigError, match="preprocessing is a detector's, but the network is none"):
        pyquant.compress(tiny_networks.residual(), None, out=tmp_path / "x", preprocessing=preprocessing)  # type: ignore[arg-type]


def test_options_that_detectors_need_and_have_not(cli: Cli) -> None:
    assert cli("compress", "detectors:tiny_detector", "--out", "x.pqmodel")[0] == 0
    Path("pictures").mkdir()
    Path("street.png").rename("pictures/street.png")
    code, _, err = cli("eval", "x.pqmodel", "pictures")
    assert code == 2
    assert "holds a detector: give --annotations" in err.replace("\n", " ")
    code, _, err = cli("compress", "detectors:tiny_detector", "--out", "x.pqmodel", "--resize", "300")
    assert code == 2
    assert "a preprocessing of its own" in err.replace("\n", " ")
    code, _, err = cli("compress", "detectors:tiny_detector", "--out", "x.pqmodel", "--input-shape", "3,96,96")
    assert code == 2
    assert "sizes of its own" in err.replace("\n", " ")


def test_detectors_are_built_by_name() -> None:
    module = build_network("fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=3)
    assert type(module).__name__ == "FasterRCNN"
