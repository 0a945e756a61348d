"""The framework-free description of a network: a graph of operations and the tensors they use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs import CODEC_CONFIGS, CodecConfig, DenseConfig, ProductConfig, codec_name
from pyquant.codecs.product import codebook_values
from pyquant.errors import ConfigError, FormatError, InputError
from pyquant.layers import ACTIVATION_RANGES, CODECS, OPS, canonical_attributes
from pyquant.shapes import SHAPE_RULES, Shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """How the weight of a layer is stored, in tensors called `{name}.{role}`; a shared weight has one name."""

    name: str
    shape: Shape  # [O, C / groups, kh, kw] of a convolution, [O, C] of a linear layer
    codec: CodecConfig = field(default_factory=DenseConfig)

    @property
    def codec_name(self) -> str:
        """The codec's name in the file."""
        return codec_name(type(self.codec))

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
    transposed: bool = False  # the weight was a transposed convolution's [C, O, kh, kw]; its rows here are O * kh * kw

    @property
    def has_bias_of_its_own(self) -> bool:
        """Whether the module has a bias for each output of the layer, which no norm takes away.

        A transposed convolution has one for all pixels of an output, which are outputs here.
        """
        return bool(self.bias) and not self.norm and not self.transposed


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
    state: StateNames = field(default_factory=StateNames)

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

    @property
    def default_shape(self) -> Shape:
        """The default shape with its batch: 1 unless the network fixes another."""
        return (self.shape[0] or 1, *self.default)

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

    def of_kind(self, op: str) -> list[Node]:
        """Return the layers of one operation, in order."""
        return [node for node in self.nodes if node.op == op]

    def values(self) -> tuple[str, ...]:
        """Return the names of all values in order: the inputs, then what each layer writes."""
        return (*(declared.name for declared in self.inputs), *(name for node in self.nodes for name in node.outputs))

    def weighted(self) -> Iterator[tuple[Node, Weight]]:
        """Yield each layer that has a weight, in order; layers that share one are all yielded."""
        for node in self.nodes:
            if node.weight is not None:
                yield node, node.weight

    def infer_shapes(self, inputs: Sequence[Shape] | None = None) -> dict[str, Shape]:
        """Return the shape of every value for input arrays of these shapes (default: the default shapes, batch 1).

        Inputs behind those given have their default shapes and the batch of the first.

        Raises:
            InputError: an input does not fit, or a layer would have no output pixels.
        """
        shapes: dict[str, Shape] = {}
        if inputs is None:
            inputs = [declared.default_shape for declared in self.inputs]
        if not 0 < len(inputs) <= len(self.inputs):
            raise InputError(f"the network takes {len(self.inputs)} inputs, got {len(inputs)}")
        batch = inputs[0][0] if len(inputs[0]) else 0
        inputs = [*inputs, *((batch, *declared.default) for declared in self.inputs[len(inputs) :])]
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
        shapes = self.infer_shapes(inputs)
        return {node.name: prod(weight.shape[1:]) * prod(shapes[node.output]) for node, weight in self.weighted()}

    def to_json(self) -> dict[str, Any]:
        """Return the graph as plain JSON values, all that is usual left out to keep files small.

        That is: attributes at their defaults, the output of a layer that is named like it, and its input where that is
        the output of the layer before it.
        """
        return {
            "inputs": [{"name": i.name, "shape": list(i.shape), "default": list(i.default)} for i in self.inputs],
            "nodes": [_node_to_json(node, before) for node, before in zip(self.nodes, self._befores(), strict=False)],
            "outputs": list(self.outputs),
        }

    @classmethod
    def from_json(cls, value: Any) -> Graph:
        """Return the graph that `to_json` described, checked: operations, attributes, edges and names.

        Raises:
            FormatError: naming the layer and what is wrong with it.
        """
        try:
            if unknown := value.keys() - {"inputs", "nodes", "outputs"}:
                raise FormatError(f"the graph has unknown entries: {', '.join(sorted(unknown))}")
            inputs = tuple(_input_from_json(entry) for entry in value["inputs"])
            nodes: list[Node] = []
            for entry in value["nodes"]:
                before = nodes[-1].outputs if nodes else tuple(i.name for i in inputs[:1])
                nodes.append(_node_from_json(entry, before))
            graph = cls(inputs=inputs, nodes=tuple(nodes), outputs=_names(value["outputs"], "outputs"))
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise FormatError(f"the graph is not as declared: {type(error).__name__}: {error}") from error
        graph.check_edges()
        return graph

    def check_edges(self) -> None:
        """Raise FormatError unless every value is written once, before it is read, and names are unique."""
        faults = []
        known = set()
        for declared in self.inputs:
            sizes = [size for size in declared.shape if size is not None] + list(declared.default)
            if any(type(size) is not int or not 0 < size < 2**31 for size in sizes):
                faults.append(f"input '{declared.name}' has an impossible shape {list(declared.shape)}")
            elif len(declared.default) + 1 != len(declared.shape):
                faults.append(f"input '{declared.name}': its default shape does not fit its shape")
            known.add(declared.name)
        if not self.inputs or len(known) != len(self.inputs):
            faults.append("a graph needs inputs with unique names")
        names = set()
        for node in self.nodes:
            what = f"layer '{node.name}' ({node.op})"
            if node.name in names:
                faults.append(f"two layers are called '{node.name}'")
            names.add(node.name)
            spec = OPS[node.op]
            if len(node.inputs) != spec.inputs and not (spec.inputs is None and node.inputs):
                faults.append(f"{what} has {len(node.inputs)} inputs")
            if len(node.outputs) != 1:
                faults.append(f"{what} has {len(node.outputs)} outputs")
            rank = len(node.weight.shape) if node.weight else 0
            if rank != spec.weight_rank:
                faults.append(f"{what} needs a weight of {spec.weight_rank} dimensions, got one of {rank}")
            faults += [f"{what} reads '{v}', which nothing before it writes" for v in node.inputs if v not in known]
            faults += [f"{what} writes '{v}' again" for v in node.outputs if v in known]
            known.update(node.outputs)
        faults += [f"output '{v}' is written by no layer" for v in self.outputs if v not in known]
        if not self.nodes or not self.outputs or len(set(self.outputs)) != len(self.outputs):
            faults.append("a graph needs layers, and outputs with unique names")
        if faults:
            raise FormatError("; ".join(faults))

    def _befores(self) -> Iterator[tuple[str, ...]]:
        """Yield, for each layer, what it reads where nothing else is said: the output of the one before it."""
        yield tuple(declared.name for declared in self.inputs[:1])
        yield from (node.outputs for node in self.nodes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A graph with its tensors, by name, in the dtypes of the file."""

    graph: Graph
    tensors: Mapping[str, NDArray[Any]]

    def weight(self, weight: Weight) -> NDArray[np.float32]:
        """Return a weight, decoded, as float32 of `weight.shape`."""
        return weight.codec.decoded(self.tensors_of(weight), weight.shape)

    def tensors_of(self, weight: Weight) -> dict[str, NDArray[Any]]:
        """Return the tensors in which a weight is stored, by role."""
        roles = CODECS[weight.codec_name].tensors_of(weight.codec)
        return {role: self.tensors[weight.tensor(role)] for role in roles}

    def module_weight(self, node: Node) -> NDArray[np.float32]:
        """Return the weight of a layer as its PyTorch module holds it: of a transposed convolution `[C, O, kh, kw]`."""
        assert node.weight is not None
        value = self.weight(node.weight)
        if not node.state.transposed:
            return value
        shuffle = next(reader for reader in self.graph.nodes if reader.inputs == node.outputs)
        pixels = value.reshape(-1, *shuffle.attributes["factor"], value.shape[1])
        return np.ascontiguousarray(pixels.transpose(3, 0, 1, 2))

    def codes(self, weight: Weight) -> NDArray[np.uint16]:
        """Return the codes `[M, O, J]` of a weight in the product codec."""
        assert isinstance(weight.codec, ProductConfig)
        return weight.codec.codes(self.tensors_of(weight), weight.shape)

    def codebook(self, weight: Weight) -> NDArray[np.float32]:
        """Return the codebooks `[M, K, d]` of a weight in the product codec, as float32."""
        return codebook_values(self.tensors_of(weight))

    def own(self, node: Node, role: str) -> NDArray[Any] | None:
        """Return a layer's own tensor (`scale`, `bias`), or None where it has none."""
        return self.tensors[node.tensor(role)] if role in node.tensors else None

    @property
    def activation_ranges(self) -> NDArray[np.float32] | None:
        """The lowest and highest number of each value's 8-bit form, `[V, 2]` as `graph.values()`, or None."""
        return self.tensors.get(ACTIVATION_RANGES)

    def with_activation_ranges(self, ranges: NDArray[np.float32] | None) -> Network:
        """Return the same network with these ranges, float32 `[V, 2]`, or with none."""
        tensors = {name: tensor for name, tensor in self.tensors.items() if name != ACTIVATION_RANGES}
        return replace(self, tensors=tensors if ranges is None else {**tensors, ACTIVATION_RANGES: ranges})

    def decoded(self) -> Network:
        """Return the same network with every weight dense, in float32."""
        own = [node.tensor(role) for node in self.graph.nodes for role in node.tensors]
        tensors = {name: self.tensors[name] for name in own}
        nodes = []
        for node in self.graph.nodes:
            if node.weight is not None:
                tensors[node.weight.tensor("weight")] = self.weight(node.weight)
                node = replace(node, weight=replace(node.weight, codec=DenseConfig()))
            nodes.append(node)
        network = Network(graph=replace(self.graph, nodes=tuple(nodes)), tensors=tensors)
        return network.with_activation_ranges(self.activation_ranges)


def _node_to_json(node: Node, before: tuple[str, ...]) -> dict[str, Any]:
    result: dict[str, Any] = {"op": node.op, "name": node.name}
    if node.inputs != before:
        result["in"] = list(node.inputs)
    if node.outputs != (node.name,):
        result["out"] = list(node.outputs)
    for key, attribute in OPS[node.op].attributes.items():
        if node.attributes[key] != attribute.default:
            result[key] = node.attributes[key]
    if node.weight is not None:
        weight: dict[str, Any] = {"shape": list(node.weight.shape), "codec": node.weight.codec_name}
        if node.weight.name != node.name:
            weight["name"] = node.weight.name
        for key, attribute in CODECS[node.weight.codec_name].attributes.items():
            value = getattr(node.weight.codec, key, attribute.default)
            if value != attribute.default:
                weight[key] = value
        result["weight"] = weight
    if node.tensors:
        result["tensors"] = list(node.tensors)
    usual = StateNames()
    state = {key: getattr(node.state, key) for key in StateNames.__slots__}
    if state := {key: value for key, value in state.items() if value != getattr(usual, key)}:
        result["state"] = state
    return result


def _input_from_json(value: dict[str, Any]) -> GraphInput:
    if unknown := value.keys() - {"name", "shape", "default"}:
        raise FormatError(f"an input has unknown entries: {', '.join(sorted(unknown))}")
    (name,) = _names([value["name"]], "an input's name")
    return GraphInput(name=name, shape=tuple(value["shape"]), default=tuple(value["default"]))


def _node_from_json(value: dict[str, Any], before: tuple[str, ...]) -> Node:
    rest = dict(value)
    (op, name) = _names([rest.pop("op"), rest.pop("name")], "a layer's operation and name")
    what = f"layer '{name}'"
    inputs = _names(rest.pop("in", before), f"{what}: in")
    outputs = _names(rest.pop("out", [name]), f"{what}: out")
    tensors = _names(rest.pop("tensors", []), f"{what}: tensors")
    weight, state = rest.pop("weight", None), rest.pop("state", {})
    known = OPS[op].tensors if op in OPS else {}
    if len(set(tensors)) != len(tensors) or any(role not in known for role in tensors):
        raise FormatError(f"{what}: expected tensors among {list(known)}, each once, got {list(tensors)}")
    return Node(
        op=op,
        name=name,
        inputs=inputs,
        outputs=outputs,
        attributes=rest,
        weight=None if weight is None else _weight_from_json(weight, name, what),
        tensors=tensors,
        state=_state_from_json(state, what),
    )


def _weight_from_json(value: dict[str, Any], node_name: str, what: str) -> Weight:
    rest = dict(value)
    shape = rest.pop("shape")
    codec, name = _names([rest.pop("codec"), rest.pop("name", node_name)], f"{what}: a weight's codec and name")
    if codec not in CODECS:
        raise FormatError(f"{what}: unknown codec '{codec}'; known: {', '.join(CODECS)}")
    if not isinstance(shape, list) or any(type(size) is not int or not 0 < size < 2**31 for size in shape):
        raise FormatError(f"{what}: a weight cannot have shape {shape}")
    attributes = canonical_attributes(CODECS[codec].attributes, rest, f"{what} ({codec} weight)")
    try:
        return Weight(name=name, shape=tuple(shape), codec=CODEC_CONFIGS[codec](**attributes))
    except ConfigError as error:
        raise FormatError(f"{what}: {error}") from error


def _state_from_json(value: dict[str, Any], what: str) -> StateNames:
    usual = StateNames()
    for key, entry in value.items():
        same_type = type(entry) is type(getattr(usual, key, None))
        if not same_type or (isinstance(entry, float) and not 0 <= entry < 1):
            raise FormatError(f"{what}: state: unknown entry, or unusable value: {key}: {entry!r}")
    return StateNames(**value)


def _names(value: Any, what: str) -> tuple[str, ...]:
    """Return a list of names as a tuple; they are printed in messages, so they must be printable."""
    if not isinstance(value, (list, tuple)) or not all(isinstance(name, str) and name.isprintable() for name in value):
        raise FormatError(f"{what}: expected printable names, got {value!r}")
    if "" in value:
        raise FormatError(f"{what}: a name is empty")
    return tuple(value)
