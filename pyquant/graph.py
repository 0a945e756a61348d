"""The framework-free description of a network: a graph of operations and the tensors they use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import CODEC_CONFIGS, CodecConfig, DenseConfig, ProductConfig
from pyquant.codecs.product import as_conv_shape, decode, unpack_codes
from pyquant.errors import FormatError, InputError
from pyquant.layers import CODECS, OPS, canonical_attributes

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How the weight of a layer is stored: its tensors are `{name}.{role}`. Layers that share a weight name the same."""

    name: str
    shape: Shape  # [O, C / groups, kh, kw] of a convolution, [O, C] of a linear layer
    codec: CodecConfig = DenseConfig()

    @property
    def codec_name(self) -> str:
        """The codec's name in the file."""
        return next(name for name, config in CODEC_CONFIGS.items() if isinstance(self.codec, config))

    def tensor(self, role: str) -> str:
        """Return the name of the tensor that plays `role` (`weight`, `codes`, `codebook`)."""
        return f"{self.name}.{role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateNames:
    """Which entries of the original module's state dict a layer came from, so that it can be exported again."""

    weight: str = ""  # "" : `{node name}.weight`
    bias: str = ""  # "" : the module had none
    norm: str = ""  # the batch norm's module path; "" : none was folded
    norm_affine: bool = True  # the batch norm had a weight and a bias
    eps: float = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One layer: an operation of `layers.OPS` with all its attributes. Its own tensors are `{name}.{role}`."""

    op: str
    name: str  # the dotted module path where there is one; unique in the graph
    inputs: tuple[str, ...]  # value names
    outputs: tuple[str, ...]  # value names; one for every operation that exists today
    attributes: Mapping[str, Any] = field(default_factory=dict)
    weight: Weight | None = None
    tensors: tuple[str, ...] = ()  # the roles present among those that layers.OPS allows: "scale", "bias", ..
    state: StateNames = StateNames()

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise FormatError(f"layer '{self.name}': unknown operation '{self.op}'; known: {', '.join(sorted(OPS))}")
        attributes = canonical_attributes(OPS[self.op].attributes, self.attributes, f"layer '{self.name}' ({self.op})")
        object.__setattr__(self, "attributes", attributes)

    @property
    def output(self) -> str:
        """The one output of an operation that has a single one."""
        (output,) = self.outputs
        return output

    def tensor(self, role: str) -> str:
        """Return the name of this layer's own tensor that plays `role` (`scale`, `bias`)."""
        return f"{self.name}.{role}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphInput:
    """An input of the network: a float32 array whose dimensions are fixed (an int) or free (None)."""

    name: str
    shape: tuple[int | None, ...]  # batch included
    default: Shape  # a whole shape without the batch, for example (3, 224, 224)

    def check(self, shape: Sequence[int]) -> None:
        """Raise InputError unless an array of `shape` fits."""
        fits = len(shape) == len(self.shape) and all(
            size > 0 and want in (None, size) for size, want in zip(shape, self.shape, strict=True)
        )
        if not fits:
            want = ", ".join("any" if size is None else str(size) for size in self.shape)
            raise InputError(f"input '{self.name}': expected shape [{want}], got {list(shape)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Graph:
    """Layers in an order in which they can run, each value written once before it is read."""

    inputs: tuple[GraphInput, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    def node(self, name: str) -> Node:
        """Return the layer called `name`."""
        return next(node for node in self.nodes if node.name == name)

    def weighted(self) -> Iterator[tuple[Node, Weight]]:
        """Yield each layer that has a weight, in order; layers that share one are all yielded."""
        for node in self.nodes:
            if node.weight is not None:
                yield node, node.weight

    def infer_shapes(self, inputs: Sequence[Shape]) -> dict[str, Shape]:
        """Return the shape of every value for input arrays of these shapes.

        Raises:
            InputError: an input does not fit, or a layer would have no output pixels.
        """
        shapes: dict[str, Shape] = {}
        for declared, shape in zip(self.inputs, inputs, strict=True):
            declared.check(shape)
            shapes[declared.name] = tuple(shape)
        for node in self.nodes:
            shape = SHAPE_RULES[node.op](node, [shapes[name] for name in node.inputs])
            if min(shape) < 1:
                raise InputError(
                    f"layer '{node.name}' ({node.op}): an input of {list(shapes[node.inputs[0]])} leaves it an output "
                    f"of {list(shape)}; give a larger input"
                )
            shapes[node.output] = shape
        return shapes

    def macs(self, inputs: Sequence[Shape] | None = None) -> dict[str, int]:
        """Return the multiply-accumulates of each layer that has a weight (default: the default shape, batch 1)."""
        shapes = self.infer_shapes(inputs or [(1, *i.default) for i in self.inputs])
        return {
            node.name: prod(weight.shape[1:]) * prod(shapes[node.output]) for node, weight in self.weighted()
        }

    def to_json(self) -> dict[str, Any]:
        """Return the graph as plain JSON values, attributes at their defaults left out."""
        return {
            "inputs": [{"name": i.name, "shape": list(i.shape), "default": list(i.default)} for i in self.inputs],
            "nodes": [_node_to_json(node) for node in self.nodes],
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, value: Any) -> Graph:
        """Return the graph that `to_json` described, checked: operations, attributes, edges and names.

        Raises:
            FormatError: naming the layer and what is wrong with it.
        """
        try:
            graph = cls(
                inputs=tuple(
                    GraphInput(name=i["name"], shape=tuple(i["shape"]), default=tuple(i["default"]))
                    for i in value["inputs"]
                ),
                nodes=tuple(_node_from_json(node) for node in value["nodes"]),
                outputs=tuple(value["outputs"]),
            )
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"the graph is not as declared: {type(error).__name__}: {error}") from error
        graph.check_edges()
        return graph

    def check_edges(self) -> None:
        """Raise FormatError unless every value is written once, before it is read, and names are unique."""
        faults = []
        known = set()
        for declared in self.inputs:
            sizes = [s for s in declared.shape if s is not None] + list(declared.default)
            if any(not isinstance(s, int) or isinstance(s, bool) or not 0 < s < 2**31 for s in sizes):
                faults.append(f"input '{declared.name}' has an impossible shape {list(declared.shape)}")
            elif len(declared.default) + 1 != len(declared.shape):
                faults.append(f"input '{declared.name}': its default shape does not fit its shape")
            known.add(declared.name)
        if not self.inputs or len(known) != len(self.inputs):
            faults.append("a graph needs inputs with unique names")
        names = set()
        for node in self.nodes:
            if node.name in names:
                faults.append(f"two layers are called '{node.name}'")
            names.add(node.name)
            spec = OPS[node.op]
            if len(node.inputs) != spec.inputs and not (spec.inputs is None and node.inputs):
                faults.append(f"layer '{node.name}' ({node.op}) has {len(node.inputs)} inputs")
            if len(node.outputs) != 1:
                faults.append(f"layer '{node.name}' ({node.op}) has {len(node.outputs)} outputs")
            if spec.has_weight != (node.weight is not None):
                faults.append(f"layer '{node.name}' ({node.op}) {'lacks' if spec.has_weight else 'has'} a weight")
            faults += [f"layer '{node.name}' reads '{v}', which nothing before it writes" for v in node.inputs if v not in known]
            faults += [f"layer '{node.name}' writes '{v}' again" for v in node.outputs if v in known]
            known.update(node.outputs)
        faults += [f"output '{v}' is written by no layer" for v in self.outputs if v not in known]
        if not self.outputs:
            faults.append("a graph needs outputs")
        if faults:
            raise FormatError("; ".join(faults))


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A graph with its tensors, by name, in the dtypes of the file."""

    graph: Graph
    tensors: Mapping[str, NDArray[Any]]

    def weight(self, weight: Weight) -> NDArray[np.float32]:
        """Return a weight, decoded, as float32 of `weight.shape`."""
        if isinstance(weight.codec, ProductConfig):
            return decode(self.codes(weight), self.tensors[weight.tensor("codebook")], weight.shape, weight.codec)
        return self.tensors[weight.tensor("weight")].astype(np.float32).reshape(weight.shape)

    def codes(self, weight: Weight) -> NDArray[np.uint16]:
        """Return the codes `[M, O, J]` of a weight in the product codec."""
        config = weight.codec
        assert isinstance(config, ProductConfig)
        shape = (config.codebooks, weight.shape[0], config.blocks_per_row(weight.shape))
        return unpack_codes(self.tensors[weight.tensor("codes")], config.code_bits, prod(shape)).reshape(shape)

    def own(self, node: Node, role: str) -> NDArray[Any] | None:
        """Return a layer's own tensor (`scale`, `bias`), or None where it has none."""
        return self.tensors[node.tensor(role)] if role in node.tensors else None

    def decoded(self) -> Network:
        """Return the same network with every weight dense, in float32."""
        tensors = {node.tensor(role): self.tensors[node.tensor(role)] for node in self.graph.nodes for role in node.tensors}
        nodes = []
        for node in self.graph.nodes:
            if node.weight is not None:
                tensors[node.weight.tensor("weight")] = self.weight(node.weight)
                node = replace(node, weight=replace(node.weight, codec=DenseConfig()))
            nodes.append(node)
        return Network(graph=replace(self.graph, nodes=tuple(nodes)), tensors=tensors)


def _node_to_json(node: Node) -> dict[str, Any]:
    result: dict[str, Any] = {"op": node.op, "name": node.name, "in": list(node.inputs), "out": list(node.outputs)}
    for key, attribute in OPS[node.op].attributes.items():
        if node.attributes[key] != attribute.default:
            result[key] = node.attributes[key]
    if node.weight is not None:
        weight = {"shape": list(node.weight.shape), "codec": node.weight.codec_name}
        if node.weight.name != node.name:
            weight["name"] = node.weight.name
        for key, attribute in CODECS[node.weight.codec_name].attributes.items():
            value = getattr(node.weight.codec, key, attribute.default)
            if value != attribute.default:
                weight[key] = value
        result["weight"] = weight
    if node.tensors:
        result["tensors"] = list(node.tensors)
    state = {key: getattr(node.state, key) for key in StateNames.__slots__ if getattr(node.state, key) != getattr(StateNames(), key)}
    if state:
        result["state"] = state
    return result


def _node_from_json(value: dict[str, Any]) -> Node:
    what = f"layer '{value['name']}'"
    rest = dict(value)
    op, name, inputs, outputs = (rest.pop(key) for key in ("op", "name", "in", "out"))
    weight, tensors, state = rest.pop("weight", None), rest.pop("tensors", []), rest.pop("state", {})
    if unknown := [role for role in tensors if role not in getattr(OPS.get(op), "tensors", {})]:
        raise FormatError(f"{what}: unknown tensors {unknown}")
    return Node(
        op=op,
        name=name,
        inputs=tuple(inputs),
        outputs=tuple(outputs),
        attributes=rest,
        weight=None if weight is None else _weight_from_json(weight, name, what),
        tensors=tuple(tensors),
        state=StateNames(**state),
    )


def _weight_from_json(value: dict[str, Any], node_name: str, what: str) -> Weight:
    rest = dict(value)
    shape, codec, name = rest.pop("shape"), rest.pop("codec"), rest.pop("name", node_name)
    if codec not in CODECS:
        raise FormatError(f"{what}: unknown codec '{codec}'; known: {', '.join(CODECS)}")
    if len(shape) not in (2, 4) or any(type(size) is not int or not 0 < size < 2**31 for size in shape):
        raise FormatError(f"{what}: a weight cannot have shape {shape}")
    attributes = canonical_attributes(CODECS[codec].attributes, rest, f"{what} ({codec} weight)")
    attributes.pop("coding", None)
    return Weight(name=name, shape=tuple(shape), codec=CODEC_CONFIGS[codec](**attributes))


# How each operation's output shape follows from its input shapes.


def _fail(node: Node, shape: Shape, expected: str) -> InputError:
    return InputError(f"layer '{node.name}' ({node.op}): expected {expected}, got an input of {list(shape)}")


def _conv2d(node: Node, inputs: list[Shape]) -> Shape:
    assert node.weight is not None
    o, c, kh, kw = as_conv_shape(node.weight.shape)
    groups = node.attributes["groups"]
    if len(inputs[0]) != 4 or inputs[0][1] != c * groups or o % groups:
        raise _fail(node, inputs[0], f"[N, {c * groups}, H, W]")
    n, _, h, w = inputs[0]
    (sy, sx), (dy, dx) = node.attributes["stride"], node.attributes["dilation"]
    top, bottom, left, right = node.attributes["padding"]
    return n, o, (h + top + bottom - dy * (kh - 1) - 1) // sy + 1, (w + left + right - dx * (kw - 1) - 1) // sx + 1


def _linear(node: Node, inputs: list[Shape]) -> Shape:
    assert node.weight is not None
    o, c = node.weight.shape[:2]
    if len(inputs[0]) != 2 or inputs[0][1] != c:
        raise _fail(node, inputs[0], f"[N, {c}]")
    return inputs[0][0], o


def _same(node: Node, inputs: list[Shape]) -> Shape:
    return inputs[0]


def _broadcast(node: Node, inputs: list[Shape]) -> Shape:
    try:
        return tuple(int(size) for size in np.broadcast_shapes(*inputs))
    except ValueError:
        raise _fail(node, inputs[1], f"a shape that broadcasts with {list(inputs[0])}") from None


def _concat(node: Node, inputs: list[Shape]) -> Shape:
    axis = node.attributes["axis"]
    first = inputs[0]
    for shape in inputs:
        if len(shape) <= axis or shape[:axis] + shape[axis + 1 :] != first[:axis] + first[axis + 1 :]:
            raise _fail(node, shape, f"the shape of {list(first)} in all dimensions but {axis}")
    return *first[:axis], sum(shape[axis] for shape in inputs), *first[axis + 1 :]


def _pool2d(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    a = node.attributes
    result = list(inputs[0][:2])
    for axis in (0, 1):
        size, pad, stride = inputs[0][2 + axis], a["padding"][axis], a["stride"][axis]
        span = size + 2 * pad - a.get("dilation", (1, 1))[axis] * (a["kernel"][axis] - 1) - 1
        pixels = (-(-span // stride) if a["ceil_mode"] else span // stride) + 1
        if a["ceil_mode"] and (pixels - 1) * stride >= size + pad:
            pixels -= 1  # PyTorch: the last window must start inside the input or its left padding
        result.append(pixels)
    return tuple(result)


def _adaptive_avg_pool2d(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    return *inputs[0][:2], *node.attributes["output_size"]


def _flatten(node: Node, inputs: list[Shape]) -> Shape:
    start = node.attributes["start_axis"]
    if len(inputs[0]) <= start:
        raise _fail(node, inputs[0], f"more than {start} dimensions")
    return *inputs[0][:start], prod(inputs[0][start:])


def _upsample(node: Node, inputs: list[Shape]) -> Shape:
    if len(inputs[0]) != 4:
        raise _fail(node, inputs[0], "[N, C, H, W]")
    n, c, h, w = inputs[0]
    if any(node.attributes["size"]):
        return n, c, *node.attributes["size"]
    fy, fx = node.attributes["factor"]
    return n, c, floor(h * fy), floor(w * fx)


SHAPE_RULES: dict[str, Callable[[Node, list[Shape]], Shape]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _same,
    "relu": _same,
    "relu6": _same,
    "silu": _same,
    "hardswish": _same,
    "sigmoid": _same,
    "add": _broadcast,
    "mul": _broadcast,
    "concat": _concat,
    "max_pool2d": _pool2d,
    "avg_pool2d": _pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "upsample": _upsample,
}
