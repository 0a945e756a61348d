"""The layers of shapes/*.txt as networks of one layer, compressed as in the published files."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from pyquant.choose import PRESETS
from pyquant.codecs import DenseConfig, ProductConfig, SparseConfig
from pyquant.codecs.packing import pack_codes
from pyquant.codecs.scalar import grid_levels
from pyquant.codecs.sparse import from_channels_last, tensors_of
from pyquant.file import ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node, Weight

SHAPES = Path(__file__).parent / "shapes"
PRESET_OF = {"resnet18": "small-blocks", "resnet50": "large-blocks"}  # as in ABGD's published files
BOTTLENECKS = {"resnet18": False, "resnet50": True}


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One distinct layer of a network: a row of its file of shapes."""

    network: str
    op: str  # "conv2d", padded so that it keeps the size but for its stride, or "linear"
    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: int
    plane: tuple[int, int]  # height and width of the input
    count: int  # how often the network has it

    def __str__(self) -> str:
        kind = "linear" if self.op == "linear" else f"{self.kernel[0]}x{self.kernel[1]}s{self.stride}"
        return f"{self.network}-{kind}-{self.inputs}-{self.outputs}-{self.plane[0]}x{self.plane[1]}"

    @property
    def macs(self) -> int:
        """The multiply-accumulates of one run of the layer, as a dense one needs them."""
        pixels = -(-self.plane[0] // self.stride) * -(-self.plane[1] // self.stride)
        return self.inputs * self.outputs * self.kernel[0] * self.kernel[1] * pixels

    @property
    def is_stem(self) -> bool:
        """Whether the layer reads the picture: it stays dense."""
        return self.inputs == 3

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the runtime that can compute the layer."""
        if self.is_stem:
            return ("direct",)
        if self.op == "linear":
            return ("direct", "table", "dot", "lookup")
        winograd = ("winograd2", "winograd4") if self.kernel == (3, 3) and self.stride == 1 else ()
        return ("direct", *winograd, "table")

    def input_shape(self) -> tuple[int, ...]:
        """Return the shape of the input array, batch 1."""
        return (1, self.inputs) if self.op == "linear" else (1, self.inputs, *self.plane)

    def model(self, codec: SparseConfig | None = None) -> ModelFile:
        """Return the network of this layer alone, with random weights, codes and batch norm, followed by a ReLU.

        Its codec is that of the published file, or the one given.
        """
        rng = np.random.default_rng(0)
        is_conv = self.op == "conv2d"
        weight = Weight(name="layer", shape=(self.outputs, self.inputs, *(self.kernel if is_conv else ())))
        rows, columns = (size // 2 for size in self.kernel)
        attributes = {"stride": (self.stride,) * 2, "padding": (rows, rows, columns, columns)} if is_conv else {}
        node = Node(
            op=self.op,
            name="layer",
            inputs=("x",),
            outputs=("y",),
            attributes=attributes,
            weight=weight,
            tensors=("scale", "bias"),
        )
        preset = PRESETS[PRESET_OF[self.network]]
        published = None if self.is_stem else preset.config(node, weight, BOTTLENECKS[self.network])
        used = codec or published or DenseConfig()
        weight = replace(weight, codec=used)
        tensors = {
            "layer.scale": rng.standard_normal(self.outputs, dtype=np.float32),
            "layer.bias": rng.standard_normal(self.outputs, dtype=np.float32),
        }
        if isinstance(used, DenseConfig):
            tensors["layer.weight"] = rng.standard_normal(weight.shape, dtype=np.float32)
        elif isinstance(used, SparseConfig):
            tensors |= {weight.tensor(role): tensor for role, tensor in _sparse_tensors(rng, used, weight).items()}
        elif isinstance(used, ProductConfig):
            count = self.outputs * used.blocks_per_row(weight.shape)
            tensors["layer.codes"] = pack_codes(rng.integers(used.centroids, size=count), used.code_bits)
            codebook = rng.standard_normal((1, used.centroids, used.dim), dtype=np.float32)
            tensors["layer.codebook"] = codebook.astype(np.float16)
        shape = self.input_shape()
        relu = Node(op="relu", name="relu", inputs=("y",), outputs=("z",))
        graph = Graph(
            inputs=(GraphInput(name="x", shape=shape, default=shape[1:]),),
            nodes=(replace(node, weight=weight), relu),
            outputs=("z",),
        )
        return ModelFile(network=Network(graph=graph, tensors=tensors))


def _sparse_tensors(rng: np.random.Generator, codec: SparseConfig, weight: Weight) -> dict[str, np.ndarray[Any, Any]]:
    """Return the tensors of a weight, by role, of which any runs are kept."""
    kept = np.zeros(prod(weight.shape) // codec.run, np.bool_)
    kept[: codec.kept_weights(weight.shape) // codec.run] = True
    mask = from_channels_last(np.repeat(rng.permutation(kept), codec.run).reshape(weight.shape[0], -1), weight.shape)
    codes = rng.integers(grid_levels(codec.grids), size=weight.shape)
    step = rng.uniform(0.01, 0.02, weight.shape[0]).astype(np.float32)
    zero = np.full(weight.shape[0], grid_levels(codec.grids) - 1)
    return tensors_of(mask, codes, step, zero, codec, weight.shape)


def read_layers(network: str) -> list[Layer]:
    """Return the layers of a network, one per line of its file of shapes."""
    layers = []
    for line in (SHAPES / f"{network}.txt").read_text().splitlines():
        if line and not line.startswith("#"):
            op, *numbers = line.split()
            inputs, outputs, kh, kw, stride, height, width, count = (int(number) for number in numbers)
            layers.append(
                Layer(
                    network=network,
                    op=op,
                    inputs=inputs,
                    outputs=outputs,
                    kernel=(kh, kw),
                    stride=stride,
                    plane=(height, width),
                    count=count,
                )
            )
    return layers
