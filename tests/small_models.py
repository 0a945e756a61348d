"""Small models built by hand, without PyTorch and without random numbers, so that their bytes never change."""

from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import CodecConfig, DenseConfig, ProductConfig, ScalarConfig, SparseConfig, scalar, sparse
from pyquant.codecs.packing import pack_codes
from pyquant.declared import declared_tensors, weight_dimensions
from pyquant.file import ClassName, ModelFile
from pyquant.graph import Graph, GraphInput, Network, Node, StateNames, Weight
from pyquant.preprocessing import Preprocessing

IMAGES = GraphInput(name="x", shape=(None, 3, None, None), default=(3, 8, 8))


def conv2d(
    name: str, source: str, shape: tuple[int, int, int, int], codec: CodecConfig, *, groups: int = 1, bias: str = ""
) -> Node:
    """A convolution that keeps the picture's size, with a folded batch norm."""
    return Node(
        op="conv2d",
        name=name,
        inputs=(source,),
        outputs=(name,),
        attributes={"padding": (shape[2] // 2, shape[2] // 2, shape[3] // 2, shape[3] // 2), "groups": groups},
        weight=Weight(name=name, shape=shape, codec=codec),
        tensors=("scale", "bias"),
        state=StateNames(norm=f"{name}_norm", bias=bias),
    )


def linear(name: str, source: str, shape: tuple[int, int], codec: CodecConfig) -> Node:
    """A linear layer with a bias."""
    weight = Weight(name=name, shape=shape, codec=codec)
    return Node(
        op="linear",
        name=name,
        inputs=(source,),
        outputs=(name,),
        weight=weight,
        tensors=("bias",),
        state=StateNames(bias=f"{name}.bias"),
    )


def layer(op: str, name: str, *sources: str, tensors: tuple[str, ...] = (), **attributes: Any) -> Node:
    """A layer without a weight."""
    return Node(op=op, name=name, inputs=sources, outputs=(name,), attributes=attributes, tensors=tensors)


def fill(graph: Graph) -> Network:
    """Give a graph all tensors it declares, their numbers small multiples of 1/8, or of 1 in int8: exact everywhere."""
    tensors: dict[str, NDArray[Any]] = {}
    for name, declared in declared_tensors(graph).items():
        if not declared.required:
            continue
        smallest = "F16" if "F16" in declared.dtypes else declared.dtypes[0]
        dtype = {"F32": np.float32, "F16": np.float16, "U8": np.uint8, "I8": np.int8}[smallest]
        unit = 1 if smallest == "I8" else 8
        tensors[name] = (ramp(declared.shape) / unit + ("scale" in name)).astype(dtype)
    for weight in {weight.name: weight for _, weight in graph.weighted()}.values():
        if isinstance(weight.codec, ProductConfig):
            dims = weight_dimensions(weight)
            codes = np.arange(dims["M"] * dims["O"] * dims["J"]) * 7 % weight.codec.centroids
            tensors[weight.tensor("codes")] = pack_codes(codes, weight.codec.code_bits)
        elif isinstance(weight.codec, (ScalarConfig, SparseConfig)):
            tensors |= {weight.tensor(role): tensor for role, tensor in grids(weight.shape, weight.codec).items()}
    return Network(graph=graph, tensors=tensors)


def grids(shape: tuple[int, ...], codec: ScalarConfig | SparseConfig) -> dict[str, NDArray[Any]]:
    """Return the tensors of a weight on grids, by role; where it is sparse, what is kept is spread evenly."""
    outputs = np.arange(shape[0])
    codes = np.arange(prod(shape)) * 7 % codec.centroids
    step, zero = (outputs + 1) / 8, codec.centroids - 2 + outputs % 2
    if isinstance(codec, ScalarConfig):
        return scalar.tensors_of(codes, step, zero, codec)
    units = np.arange(prod(shape) // codec.unit)
    if codec.of:
        kept = codec.unit_patterns()[units * 5 % codec.patterns]
    else:
        count = codec.kept_weights(shape) // codec.run
        kept = np.repeat((units + 1) * count // len(units) > units * count // len(units), codec.run)
    return sparse.tensors_of(sparse.from_channels_last(kept, shape), codes, step, zero, codec, shape)


def ramp(shape: tuple[int, ...]) -> NDArray[np.int64]:
    """Whole numbers from -5 to 5 in an order that repeats late."""
    return (np.arange(prod(shape)) * 4 % 11 - 5).reshape(shape)


def golden_model() -> ModelFile:
    """The model of `data/golden.pqmodel`: each codec and dtype, tail blocks, groups, additive codebooks, spare bits."""
    additive = ProductConfig(block=(2, 1, 1), centroids=3, codebooks=2, codebook_dtype="int8")
    nodes = (
        conv2d("stem", "x", (4, 3, 3, 3), DenseConfig()),
        layer("relu", "relu", "stem"),
        layer("max_pool2d", "pool", "relu", kernel=(2, 2), stride=(2, 2)),
        conv2d("spatial", "pool", (4, 4, 3, 3), ProductConfig(block=(1, 3, 3), centroids=5)),
        conv2d("grouped", "spatial", (4, 2, 1, 1), additive, groups=2),
        layer("add", "sum", "grouped", "pool"),
        layer("affine", "norm", "sum", tensors=("scale", "bias")),
        layer("concat", "both", "norm", "spatial", axis=1),
        layer("adaptive_avg_pool2d", "mean", "both", output_size=(1, 1)),
        layer("flatten", "flat", "mean"),
        linear("fc", "flat", (3, 8), ProductConfig(block=(3, 1, 1), centroids=6)),
    )
    graph = Graph(inputs=(IMAGES,), nodes=nodes, outputs=("fc",))
    network = fill(graph)
    ranges = np.array([(-(v % 3) / 4, 1 + v / 2) for v in range(len(graph.values()))], np.float32)
    network = network.with_activation_ranges(ranges)
    single = {"fc.codebook": network.tensors["fc.codebook"].astype(np.float32)}
    return ModelFile(
        network=replace(network, tensors={**network.tensors, **single}),
        preprocessing=Preprocessing(resize=10, crop=(8, 8)),
        classes=(
            ClassName(folder="n01", name="ant"),
            ClassName(folder="n02", name="honey bee"),
            ClassName(folder="n03", name='crème "brûlée"'),
        ),
        provenance={
            "dense": {"stem": "the first convolution"},
            "errors": {"spatial": 0.125, "grouped": None, "fc": 0.5},
            "source": "tests",
        },
    )


def golden_grids() -> ModelFile:
    """The model of `data/golden_grids.pqmodel`: grids of all weights, of some, of runs and of so many in each few."""
    nodes = (
        conv2d("all", "x", (4, 3, 3, 3), ScalarConfig(bits=3)),
        conv2d("some", "all", (8, 4, 3, 3), SparseConfig(kept=0.3, bits=5)),
        conv2d("runs", "some", (8, 8, 1, 3), SparseConfig(kept=0.25, run=4, bits=4)),
        conv2d("grouped", "runs", (6, 4, 1, 1), SparseConfig(kept=0.5, of=4), groups=2),
        layer("adaptive_avg_pool2d", "mean", "grouped", output_size=(1, 1)),
        layer("flatten", "flat", "mean"),
        linear("fc", "flat", (3, 6), SparseConfig(kept=1 / 3, of=3, bits=2)),
    )
    return ModelFile(network=fill(Graph(inputs=(IMAGES,), nodes=nodes, outputs=("fc",))))
