"""Too few calibration inputs: one warning, before the work, that names the number that would do."""

from math import ceil, prod
from pathlib import Path

import numpy as np
import pytest

from pyquant.choose import Choice, Recipe, parse_rule
from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.detector import for_learning
from pyquant.graph import Graph
from pyquant.interop.resnet import resnet_config, resnet_graph

torch = pytest.importorskip("torch", reason="compressing needs PyTorch")
pytest.importorskip("faiss", reason="compressing needs faiss")

import tiny_networks  # noqa: E402
from detectors import tiny_detector  # noqa: E402

import pyquant  # noqa: E402
from pyquant import console, job  # noqa: E402
from pyquant.capture import capture_detector  # noqa: E402
from pyquant.learn.enough import greatest_need  # noqa: E402
from pyquant.learn.methods import METHODS  # noqa: E402


def need(graph: Graph, method: str, side: int) -> tuple[str, int]:
    found = greatest_need(graph, Recipe().choose(graph), (3, side, side), METHODS[method])
    assert found is not None
    return found.layer, found.count


def test_layers_that_see_few_pixels_need_most_pictures() -> None:
    graph = resnet_graph(resnet_config("resnet18"), 1000)
    assert need(graph, "abgd", 64) == ("layer4.0.conv1", 256)  # 2x2 pixels, each picture as good as 2
    assert need(graph, "abgd", 32) == ("layer4.0.conv1", 512)  # one pixel
    assert need(graph, "abgd", 224) == ("layer4.0.conv1", 74)  # 7x7 pixels
    assert need(graph, "pqf", 64) == need(graph, "abgd", 64)


def test_all_inputs_weighed_together_need_more_than_those_of_a_block() -> None:
    graph = resnet_graph(resnet_config("resnet50"), 1000)
    assert need(graph, "gram", 64) == ("layer4.0.conv2", 1152)  # 4608 inputs, 2x2 pixels
    assert need(graph, "gram", 224) == ("fc", 1024)  # 2048 inputs, and each picture is seen once


def test_heads_of_detectors_see_boxes_and_shared_weights_count_once() -> None:
    pytest.importorskip("torchvision")
    graph = for_learning(capture_detector(tiny_detector())[0]).graph
    shapes = graph.infer_shapes([(1, 3, 96, 96)])
    choices = {weight.name: Choice(codec=DenseConfig()) for _, weight in graph.weighted()}
    found = {}
    for name in ("roi_heads.box_head.fc6", "roi_heads.mask_predictor.conv5_mask", "rpn.head.conv.0.0"):
        only = {**choices, name: Choice(codec=ProductConfig(block=(1, 1, 1), centroids=16))}
        need = greatest_need(graph, only, (3, 96, 96), METHODS["gram"])
        assert need is not None
        assert need.layer == name
        found[name] = need
    box, mask, shared = found.values()
    depth = prod(graph.node(box.layer).weight.shape[1:])  # type: ignore[union-attr]
    assert box.count == ceil(0.5 * depth / 32)
    assert box.what == f"weighing its {depth:,} inputs (each gives it 32 boxes)"
    assert mask.what.endswith("(each gives it 8 boxes of 36 pixels)")
    pixels = prod(shapes[shared.layer][2:])
    assert shared.what.endswith(f"(each gives it {pixels} pixels)")  # those of the first level


def test_nothing_is_needed_where_nothing_is_coded() -> None:
    graph = resnet_graph(resnet_config("resnet18"), 1000)
    choices = {weight.name: Choice(codec=DenseConfig()) for _, weight in graph.weighted()}
    assert greatest_need(graph, choices, (3, 64, 64), METHODS["gram"]) is None


@pytest.mark.parametrize("count", [20, 200])
def test_one_warning_before_the_work(
    count: int, rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(console, "warn", warnings.append)

    def begin(*_: object, **__: object) -> None:
        warnings.append("the work begins")
        raise InterruptedError

    monkeypatch.setattr(job, "learn", begin)
    recipe = Recipe(rules=(parse_rule("fc=dense"),))
    inputs = rng.standard_normal((count, 3, 32, 32), dtype=np.float32)
    with pytest.raises(InterruptedError):
        pyquant.compress(tiny_networks.residual(), inputs, out=tmp_path / "x.pqmodel", recipe=recipe, threads=1)
    *before, last = warnings
    assert last == "the work begins"
    if count == 200:
        assert before == []
    else:
        (text,) = before
        assert text.startswith("20 calibration inputs are too few to code this network well")
        assert "would do" in text
        assert "'block." in text or "'wide'" in text
