"""The stages of learning: every layer up to the last one learnt is in one, and progress counts their work."""

import numpy as np
import pytest
from conftest import SIDE

torch = pytest.importorskip("torch", reason="capturing needs PyTorch")

import tiny_networks  # noqa: E402

from pyquant.capture import capture  # noqa: E402
from pyquant.codecs import ProductConfig  # noqa: E402
from pyquant.graph import Graph  # noqa: E402
from pyquant.learn.calibration import from_arrays  # noqa: E402
from pyquant.learn.stages import peak_bytes, stages_of  # noqa: E402

INPUTS = from_arrays(np.zeros((5, 3, SIDE, SIDE), np.float32), samples=5, seed=0)
CONFIG = ProductConfig(block=(1, 3, 3), centroids=16)


@pytest.fixture(scope="module")
def graph() -> Graph:
    return capture(tiny_networks.residual(), (3, SIDE, SIDE)).graph


def test_stages_cover_the_layers_in_order_and_keep_what_is_read_later(graph: Graph) -> None:
    stages = stages_of(graph, lambda node: node.name in ("block.conv1", "wide"))
    assert [stage.head.name if stage.head else None for stage in stages] == [None, "block.conv1", "wide"]
    nodes = [node for stage in stages for node in (stage.head, *stage.rest) if node is not None]
    assert nodes == list(graph.nodes[: len(nodes)])
    assert nodes[-1].name == "wide"  # what follows has nothing to teach
    for number, stage in enumerate(stages):
        later = [node for later in stages[number + 1 :] for node in (later.head, *later.rest) if node is not None]
        assert stage.kept == {name for node in later for name in node.inputs}
    assert stages_of(graph, lambda node: False) == []


def test_peak_is_the_most_that_is_kept_at_once(graph: Graph) -> None:
    stages = stages_of(graph, lambda node: node.name == "block.conv2")
    # What the stem makes of the inputs, at half their size: for the block, and for its shortcut.
    size = 5 * 4 * 16 * (SIDE // 2) ** 2
    assert peak_bytes(stages, graph, INPUTS, set()) >= 2 * size
    everything = {name for node in graph.nodes for name in node.outputs}
    assert peak_bytes(stages, graph, INPUTS, everything) > peak_bytes(stages, graph, INPUTS, set())


def test_work_grows_with_what_has_to_be_done(graph: Graph) -> None:
    stage = stages_of(graph, lambda node: node.name == "block.conv1")[1]
    depth = 16 * 9
    work = [
        stage.work(graph, INPUTS, None, 0),
        stage.work(graph, INPUTS, CONFIG, 0),
        stage.work(graph, INPUTS, CONFIG, 9),
        stage.work(graph, INPUTS, CONFIG, depth),
        stage.work(graph, INPUTS, ProductConfig(block=(1, 3, 3), centroids=16, codebooks=2), depth),
    ]
    assert work[0] > 0
    assert work == sorted(set(work))
