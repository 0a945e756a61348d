"""The stages of learning: a layer to learn with those up to the next one, and the work and memory that they take."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from math import prod

from pyquant.codecs import CodedConfig, ProductConfig
from pyquant.graph import Graph, Node
from pyquant.learn.calibration import Calibration

# What a stage does, in multiply-accumulates of a large product of matrices that take as long.
FORWARD = 4  # each of a layer's, in both streams, and measuring what comes out
CENTROIDS = 500  # each weight with each centroid: k-means and what follows it look at all of them many times
CORRELATIONS = 125  # each weight with each input that it is weighed with: in the descent, again and again
LEAST = 1000  # for each input: layers without weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A layer to learn or to measure (None at the start of a network), and the layers up to the next one."""

    head: Node | None
    rest: tuple[Node, ...]
    kept: Set[str]  # the values that later stages read

    def work(self, graph: Graph, calibration: Calibration, config: CodedConfig | None, weighed: int) -> int:
        """Return about how many multiply-accumulates the stage takes: progress in layers would run unevenly.

        Args:
            graph: of the whole network.
            calibration: the inputs.
            config: the codec in which the layer is to be coded; None: it need not be.
            weighed: how many inputs are weighed together when it is coded.
        """
        shape = (1, *calibration.shape)
        macs, shapes = graph.macs([shape]), graph.infer_shapes([shape])
        names = [node.name for node in (self.head, *self.rest) if node is not None]
        work = calibration.count * (LEAST + FORWARD * sum(macs.get(name, 0) for name in names))
        if config is not None and self.head is not None and self.head.weight is not None:
            outputs, depth = self.head.weight.shape[0], prod(self.head.weight.shape[1:])
            pixels = prod(shapes[self.head.output][2:])
            work += 2 * calibration.count * pixels * depth * weighed
            tried = config.codebooks * config.centroids if isinstance(config, ProductConfig) else 0
            work += outputs * depth * (CENTROIDS * tried + CORRELATIONS * weighed)
        return work


def stages_of(graph: Graph, is_head: Callable[[Node], bool]) -> list[Stage]:
    """Return the stages of a network; `is_head` says of a layer whether it is to be learnt or measured."""
    nodes = graph.nodes
    starts = [index for index, node in enumerate(nodes) if is_head(node)]
    if not starts:
        return []
    # What follows the last layer that is learnt has nothing to teach.
    ends = [*starts[1:], starts[-1] + 1]
    parts: list[tuple[Node | None, tuple[Node, ...]]] = [(None, nodes[: starts[0]])]
    parts += [(nodes[start], nodes[start + 1 : end]) for start, end in zip(starts, ends, strict=True)]
    kept: Set[str] = frozenset()
    result = []
    for head, rest in reversed(parts):
        result.append(Stage(head=head, rest=rest, kept=kept))
        kept = kept | {name for node in (head, *rest) if node is not None for name in node.inputs}
    return result[::-1]


def peak_bytes(stages: Sequence[Stage], graph: Graph, calibration: Calibration, apart: Set[str]) -> int:
    """Return the most bytes of activations kept at any time; values in `apart` differ between the streams."""
    shapes = graph.infer_shapes([(1, *calibration.shape)])
    size = {name: 4 * prod(shape) * (2 if name in apart else 1) for name, shape in shapes.items()}
    before: Set[str] = {declared.name for declared in graph.inputs}
    peak = 0
    for stage in stages:
        held = before | stage.kept | ({stage.head.output} if stage.head is not None else set())
        peak = max(peak, sum(size[name] for name in held))
        before = stage.kept
    return peak * calibration.count
