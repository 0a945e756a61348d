"""Whether there are enough calibration inputs: how many each layer needs, and a warning that names the number.

Two things are learnt from a layer's inputs and outputs, and each needs values that are independent of each other:

    statistics  the mean and variance of every channel, for batch norms; a bias takes up a mean error, which is smaller
    weighing    which inputs count how much, for codes and codebooks: a Gram of inputs

The pixels of one picture resemble each other, so that a picture gives fewer values than it has pixels. The heads of a
detector see the boxes that it finds in a picture, each by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod

from pyquant import console
from pyquant.choose import Choice
from pyquant.codecs import DenseConfig
from pyquant.graph import Graph
from pyquant.learn.calibration import Calibration
from pyquant.learn.methods import coder_of
from pyquant.learn.methods.base import Method
from pyquant.learn.moments import independent_values

# Measured on a ResNet-18 for 64x64 pictures, 200 classes, whose last layers have 4 pixels and 4608 inputs, without
# training: pictures and top-1.
#   `abgd`, small blocks        16: 35.2 %    64: 41.7 %    256: 43.4 %    1024: 43.6 %
#   `gram`, 956,040 bytes                                   256: 45.9 %    1024: 46.6 %    4096: 47.6 %
# The first is enough to come within half a point of what four times as many give, the second within a point.
VALUES = 512  # of a channel
VALUES_OF_AN_INPUT = 0.5  # of those that are weighed together


@dataclass(frozen=True, slots=True, kw_only=True)
class Need:
    """How many calibration inputs would do, and for what."""

    count: int
    layer: str
    what: str


def warn_if_few(graph: Graph, choices: Mapping[str, Choice], inputs: Calibration, method: Method) -> None:
    """Warn once, before long work, where the layers to be coded need more calibration inputs than there are."""
    need = greatest_need(graph, choices, inputs.shape, method)
    if need is not None and inputs.count < need.count:
        console.warn(
            f"{inputs.count:,} calibration inputs are too few to code this network well: {need.count:,} would do; "
            f"layer '{need.layer}' needs most, for {need.what}"
        )


def greatest_need(graph: Graph, choices: Mapping[str, Choice], shape: tuple[int, ...], method: Method) -> Need | None:
    """Return what needs most calibration inputs of this shape `(C, H, W)`, None where no layer is coded."""
    shapes = graph.infer_shapes([(1, *shape)])
    # A weight that layers share is learnt at the first of them.
    layers = {weight.name: (node, weight) for node, weight in reversed(list(graph.weighted()))}
    needs = []
    for node, weight in reversed(layers.values()):
        config = choices[weight.name].codec
        if isinstance(config, DenseConfig):
            continue
        rows, _, *plane = shapes[node.output]
        pixels = prod(plane)
        independent = rows * independent_values(pixels)
        where = f"each gives it {_seen(rows, pixels)}"
        if node.state.norm:
            what = f"the mean and variance of its channels ({where})"
            needs.append(Need(count=ceil(VALUES / independent), layer=node.name, what=what))
        weighed = coder_of(config, method).weighed_together(node, config)
        count = ceil(VALUES_OF_AN_INPUT * weighed / independent)
        needs.append(Need(count=count, layer=node.name, what=f"weighing its {weighed:,} inputs ({where})"))
    return max(needs, key=lambda need: need.count, default=None)


def _seen(rows: int, pixels: int) -> str:
    """Return in words what a layer sees of one calibration input: its pixels, or those of boxes found in it."""
    shown = f"{pixels} pixel{'s' if pixels > 1 else ''}"
    if rows == 1:
        return shown
    return f"{rows} boxes" if pixels == 1 else f"{rows} boxes of {shown}"
