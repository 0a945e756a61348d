"""Measuring detectors: whole beside PyTorch, and their tensor parts beside engines that know no boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import detectors
import numpy as np
import pytest
from click.testing import CliRunner
from hand_made import model_file, tiny_network
from PIL import Image

from pyquant import bench as bench_module
from pyquant.bench import bench, input_batches
from pyquant.cli import commands
from pyquant.compression import compress
from pyquant.engines.detector import NOT_TENSORS, with_regions
from pyquant.errors import ConfigError, InputError
from pyquant.file import read_model, write_model
from pyquant.runtime import Model

pytest.importorskip("torchvision", reason="torchvision is not installed")


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The .pqmodel of a small Mask R-CNN."""
    path = tmp_path_factory.mktemp("detector") / "detector.pqmodel"
    compress(detectors.tiny_detector(), None, out=path)
    return path


@pytest.fixture
def pictures(tmp_path: Path, rng: np.random.Generator) -> Path:
    """A folder of pictures of several sizes."""
    for i in range(3):
        pixels = rng.integers(0, 256, size=(60 + 30 * i, 90, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Turns of a few runs: enough to see that they work."""
    monkeypatch.setattr(bench_module, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(bench_module, "TURNS", (2, 2))


def test_a_network_of_one_stage(tmp_path: Path) -> None:
    path = tmp_path / "x.pqmodel"
    compress(detectors.tiny_retinanet(), None, out=path)
    for parts in (False, True):
        result = bench(path, against=["torch"], input_shape=(3, 96, 128), threads=1, tune=0, parts=parts)
        assert [row["engine"] for row in result["rows"]] == ["pyquant", "torch"]


@pytest.mark.parametrize("precision", ["exact", "fast"])
def test_whole_beside_pytorch(detector: Path, pictures: Path, precision: str) -> None:
    result = bench(
        detector,
        against=["torch"],
        input_shape=(3, 70, 90),
        threads=1,
        tune=0,
        precision=precision,
        calibration=pictures,
    )
    assert [row["engine"] for row in result["rows"]] == ["pyquant", "torch"]
    assert list(result["ratios"]) == ["torch"]


@pytest.mark.parametrize(("precision", "peer"), [("exact", "onnxruntime"), ("fast", "onnxruntime-int8")])
def test_parts_beside_engines_that_know_no_boxes(detector: Path, pictures: Path, precision: str, peer: str) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    result = bench(
        detector,
        against=[peer],
        input_shape=(3, 64, 96),
        threads=1,
        tune=0,
        precision=precision,
        calibration=pictures,
        parts=True,
    )
    assert [row["engine"] for row in result["rows"]] == ["pyquant", peer]


def test_inputs_are_padded_pictures_of_that_size(detector: Path, pictures: Path) -> None:
    file = read_model(detector)
    for data in (None, pictures):
        images, sizes = input_batches(file, 2, (3, 70, 90), data)[0]
        assert images.shape == (2, 3, 96, 96)
        np.testing.assert_array_equal(sizes, [[70, 90]] * 2)
        assert images[:, :, :70, :90].any()
        assert not images[:, :, 70:].any()
        assert not images[:, :, :, 90:].any()


def test_parts_compute_what_the_whole_does(detector: Path) -> None:
    file = read_model(detector)
    batches = input_batches(file, 1, (3, 64, 96))
    cut, (inputs, *_) = with_regions(file, batches, threads=1)
    parts = cut.network
    assert not {node.op for node in parts.graph.nodes} & NOT_TENSORS
    heads = {name for node in file.network.graph.of_kind("proposals") for name in node.inputs}
    compared = tuple(name for name in parts.graph.outputs if name in heads)
    assert len(compared) == 8  # objectness and numbers of four levels
    whole = replace(file.network, graph=replace(file.network.graph, outputs=compared))
    expected = Model(model_file(whole), threads=1)(*batches[0])
    got = Model(model_file(parts), threads=1)(*inputs)
    assert isinstance(got, dict)
    assert isinstance(expected, dict)
    for name in compared:
        np.testing.assert_array_equal(got[name], expected[name])


def test_pictures_of_a_size_that_the_network_refuses(detector: Path) -> None:
    with pytest.raises(InputError, match="expected"):
        bench(detector, input_shape=(4, 64, 64), threads=1, tune=0)


def test_engines_that_cannot_choose_boxes(detector: Path) -> None:
    with pytest.raises(ConfigError, match="onnxruntime: cannot choose boxes"):
        bench(detector, against=["onnxruntime"], tune=0)


def test_only_detectors_have_parts(tmp_path: Path, rng: np.random.Generator) -> None:
    write_model(tmp_path / "tiny.pqmodel", model_file(tiny_network(rng)))
    with pytest.raises(ConfigError, match="it is no detector"):
        bench(tmp_path / "tiny.pqmodel", parts=True, tune=0)


def test_profile_of_a_detector(detector: Path) -> None:
    arguments = ["profile", str(detector), "--input-shape", "3,64,96", "--threads", "1", "--json"]
    done = CliRunner().invoke(commands, arguments, catch_exceptions=False)
    assert "proposals" in {step["op"] for step in json.loads(done.stdout)["steps"]}
