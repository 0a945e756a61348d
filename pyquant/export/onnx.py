"""A network as ONNX: dense, decoded, batch norms folded into the weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import InputError
from pyquant.export.folded import folded
from pyquant.extras import missing_dependency
from pyquant.graph import Graph, GraphInput, Network, Node
from pyquant.shapes import Shape
from pyquant.storage import AnyPath, write_whole

if TYPE_CHECKING:
    import onnx

    from pyquant.file import ModelFile

OPSET = 18  # the first whose Resize takes `axes`
IR_VERSION = 8  # the one that came with it: the widest choice of readers
MAX_BYTES = 2**31 - 1  # what one protobuf message can hold


def export_onnx(model: ModelFile, path: AnyPath) -> int:
    """Write `model` as ONNX and return its size in bytes; see `onnx_model`.

    Raises:
        MissingDependencyError: the onnx package is not installed.
        InputError: the weights are too many for one ONNX file, or `path` cannot be written.
    """
    data: bytes = onnx_model(model.network).SerializeToString(deterministic=True)
    write_whole(path, data)
    return len(data)


def onnx_model(network: Network) -> onnx.ModelProto:
    """Return `network` as an ONNX model, checked; the batch is dynamic, and height and width where they are free.

    Raises:
        MissingDependencyError: the onnx package is not installed.
        InputError: the weights are too many for one ONNX file, or layers have no form in ONNX.
    """
    if missing := [f"'{node.name}' ({node.op})" for node in network.graph.nodes if node.op not in EXPORTERS]:
        raise InputError(f"ONNX has no operation for {', '.join(missing)}; export to .safetensors instead")
    try:
        import onnx
        from onnx import helper
    except ImportError as error:
        raise missing_dependency(error) or error from error
    dense = folded(network)
    if (size := sum(tensor.nbytes for tensor in dense.tensors.values())) > MAX_BYTES:
        raise InputError(f"the decoded weights take {size:,} bytes; an ONNX file holds at most {MAX_BYTES:,}")
    writer = _Writer(dense)
    for node in dense.graph.nodes:
        EXPORTERS[node.op](writer, node)
    graph = helper.make_graph(
        writer.nodes,
        "network",
        [_declare(i.name, _input_sizes(i, batch=dense.graph.inputs[0])) for i in dense.graph.inputs],
        [_declare(name, _output_sizes(dense.graph, name, writer.shapes[name])) for name in dense.graph.outputs],
        writer.initializers,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="pyquant",
    )
    onnx.checker.check_model(model, full_check=True)
    return model


def _declare(name: str, sizes: list[int | str]) -> onnx.ValueInfoProto:
    from onnx import TensorProto, helper

    return helper.make_tensor_value_info(name, TensorProto.FLOAT, sizes)


def _input_sizes(declared: GraphInput, batch: GraphInput) -> list[int | str]:
    """Return the sizes of an input, free ones by a name: `batch` is common to all inputs, the others are its own."""
    of = "" if declared is batch else f"{declared.name}_"
    names = ["batch", *(f"{of}{axis}" for axis in ("channels", "height", "width"))]
    return [name if size is None else size for name, size in zip(names, declared.shape, strict=False)]


def _output_sizes(graph: Graph, name: str, shape: Shape) -> list[int | str]:
    """Return the sizes of an output: of a plane, height and width are free where an input's are."""
    sizes: list[int | str] = [
        f"{name}_{axis}" if axis > 1 and not _is_static(graph) else s for axis, s in enumerate(shape)
    ]
    sizes[0] = "batch" if graph.inputs[0].shape[0] is None else shape[0]
    return sizes


def _is_static(graph: Graph) -> bool:
    """Return whether every size but the batch is fixed."""
    return all(size is not None for declared in graph.inputs for size in declared.shape[1:])


class _Writer:
    """Collects ONNX nodes and initializers; inner names hold a "/", which no layer's name does."""

    def __init__(self, network: Network) -> None:
        self.network = network
        self.static = _is_static(network.graph)
        self.shapes = network.graph.infer_shapes([(i.shape[0] or 1, *i.default) for i in network.graph.inputs])
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self._known: set[str] = set()

    def tensor(self, name: str, value: NDArray[Any]) -> str:
        """Add an initializer (once) and return its name."""
        from onnx import numpy_helper

        if name not in self._known:
            self._known.add(name)
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def integers(self, node: Node, role: str, *values: int) -> str:
        """Add an int64 vector and return its name."""
        return self.tensor(f"{node.name}/{role}", np.array(values, np.int64))

    def numbers(self, node: Node, role: str, value: Any) -> str:
        """Add a float32 array and return its name."""
        return self.tensor(f"{node.name}/{role}", np.array(value, np.float32))

    def add(self, op: str, node: Node, *inputs: str, **attributes: Any) -> None:
        """Add the ONNX node that writes the output of `node`."""
        from onnx import helper

        self.nodes.append(helper.make_node(op, list(inputs), [node.output], name=node.name, **attributes))

    def inner(self, op: str, node: Node, role: str, *inputs: str, **attributes: Any) -> str:
        """Add an ONNX node on the way to the output of `node`, and return the name of its own output."""
        from onnx import helper

        name = f"{node.name}/{role}"
        self.nodes.append(helper.make_node(op, list(inputs), [name], name=name, **attributes))
        return name


def _weight_and_bias(writer: _Writer, node: Node) -> list[str]:
    assert node.weight is not None
    name = node.weight.tensor("weight")
    names = [writer.tensor(name, writer.network.tensors[name])]
    if (bias := writer.network.own(node, "bias")) is not None:
        names.append(writer.tensor(node.tensor("bias"), bias))
    return names


def _conv2d(writer: _Writer, node: Node) -> None:
    assert node.weight is not None
    top, bottom, left, right = node.attributes["padding"]
    writer.add(
        "Conv",
        node,
        *node.inputs,
        *_weight_and_bias(writer, node),
        kernel_shape=list(node.weight.shape[2:]),
        strides=list(node.attributes["stride"]),
        pads=[top, left, bottom, right],
        dilations=list(node.attributes["dilation"]),
        group=node.attributes["groups"],
    )


def _linear(writer: _Writer, node: Node) -> None:
    writer.add("Gemm", node, *node.inputs, *_weight_and_bias(writer, node), transB=1)


def _affine(writer: _Writer, node: Node) -> None:
    ones = (1,) * (len(writer.shapes[node.output]) - 2)
    scale, bias = (writer.network.tensors[node.tensor(role)] for role in ("scale", "bias"))
    scaled = writer.inner("Mul", node, "scaled", *node.inputs, writer.numbers(node, "scale", scale.reshape(-1, *ones)))
    writer.add("Add", node, scaled, writer.numbers(node, "bias", bias.reshape(-1, *ones)))


def _relu6(writer: _Writer, node: Node) -> None:
    writer.add("Clip", node, *node.inputs, writer.numbers(node, "low", 0.0), writer.numbers(node, "high", 6.0))


def _silu(writer: _Writer, node: Node) -> None:
    writer.add("Mul", node, *node.inputs, writer.inner("Sigmoid", node, "sigmoid", *node.inputs))


def _concat(writer: _Writer, node: Node) -> None:
    writer.add("Concat", node, *node.inputs, axis=node.attributes["axis"])


def _window(node: Node) -> dict[str, Any]:
    a = node.attributes
    return {
        "kernel_shape": list(a["kernel"]),
        "strides": list(a["stride"]),
        "pads": list(a["padding"]) * 2,
        "ceil_mode": int(a["ceil_mode"]),
    }


def _max_pool2d(writer: _Writer, node: Node) -> None:
    writer.add("MaxPool", node, *node.inputs, dilations=list(node.attributes["dilation"]), **_window(node))


def _avg_pool2d(writer: _Writer, node: Node) -> None:
    a = node.attributes
    if not a["divisor"]:
        writer.add("AveragePool", node, *node.inputs, count_include_pad=int(a["count_include_pad"]), **_window(node))
        return
    # ONNX has no divisor of one's own, but a sum is a convolution of each channel by itself. Where ceil_mode would clip
    # a window, zeros are appended, and the result is cut to the size that ceil_mode gives.
    (value,) = node.inputs
    channels = writer.shapes[value][1]
    weight = np.full((channels, 1, *a["kernel"]), 1.0 / a["divisor"], np.float32)
    after = [pad + (stride - 1) * a["ceil_mode"] for pad, stride in zip(a["padding"], a["stride"], strict=True)]
    sums = [value, writer.tensor(f"{node.name}/weight", weight)]
    how = {"kernel_shape": list(a["kernel"]), "strides": list(a["stride"]), "group": channels}
    how["pads"] = [*a["padding"], *after]
    if not a["ceil_mode"]:
        writer.add("Conv", node, *sums, **how)
        return
    size = writer.inner("Shape", node, "size", writer.inner("AveragePool", node, "clipped", value, **_window(node)))
    writer.add(
        "Slice",
        node,
        writer.inner("Conv", node, "sums", *sums, **how),
        writer.integers(node, "start", 0, 0, 0, 0),
        size,
    )


def _adaptive_avg_pool2d(writer: _Writer, node: Node) -> None:
    (value,) = node.inputs
    output = node.attributes["output_size"]
    if tuple(output) == (1, 1):
        writer.add("GlobalAveragePool", node, value)
        return
    sizes = writer.shapes[value][2:]
    if writer.static and tuple(output) == sizes:
        writer.add("Identity", node, value)
        return
    # Output pixel i of n is the mean of input pixels floor(i H / n) to ceil((i + 1) H / n): a matrix for each axis.
    if writer.static:
        rows, columns = (
            writer.numbers(node, role, _pooling_matrix(n, size))
            for role, n, size in zip(("rows", "columns"), output, sizes, strict=True)
        )
    else:
        rows, columns = (
            _pooling_matrix_of_free_size(writer, node, role, n, axis)
            for role, n, axis in zip(("rows", "columns"), output, (2, 3), strict=True)
        )
    pooled = writer.inner("MatMul", node, "pooled_rows", rows, value)
    transposed = writer.inner("Transpose", node, "columns_transposed", columns, perm=[1, 0])
    writer.add("MatMul", node, pooled, transposed)


def _pooling_matrix(n: int, size: int) -> NDArray[np.float32]:
    """Return the matrix `[n, size]` that averages `size` pixels into `n`."""
    first = np.arange(n)[:, None]
    start, stop = first * size // n, -(-(first + 1) * size // n)
    at = np.arange(size)
    return (((at >= start) & (at < stop)) / (stop - start)).astype(np.float32)


def _pooling_matrix_of_free_size(writer: _Writer, node: Node, role: str, n: int, axis: int) -> str:
    """Add the nodes that compute `_pooling_matrix` for the size an input's `axis` has at run time."""
    (value,) = node.inputs

    def inner(op: str, part: str, *inputs: str, **attributes: Any) -> str:
        return writer.inner(op, node, f"{role}/{part}", *inputs, **attributes)

    first = np.arange(n, dtype=np.int64)[:, None]
    count = writer.integers(node, f"{role}/count", n)
    one, zero = writer.integers(node, "one", 1), writer.tensor(f"{node.name}/zero", np.array(0, np.int64))
    size = inner("Shape", "size", value, start=axis, end=axis + 1)  # [1]
    start = inner("Div", "start", inner("Mul", "first", writer.tensor(f"{node.name}/{role}/i", first), size), count)
    after = inner("Mul", "after", writer.tensor(f"{node.name}/{role}/i_1", first + 1), size)
    rounded = inner("Add", "rounded", after, writer.integers(node, f"{role}/count_1", n - 1))
    stop = inner("Div", "stop", rounded, count)  # [n, 1], as start
    scalar = inner("Squeeze", "scalar", size, writer.integers(node, "axis", 0))
    at = inner("Range", "at", zero, scalar, inner("Squeeze", "step", one))
    inside = inner("And", "inside", inner("GreaterOrEqual", "from", at, start), inner("Less", "below", at, stop))
    width = inner("Cast", "width", inner("Sub", "span", stop, start), to=1)
    return inner("Div", "matrix", inner("Cast", "mask", inside, to=1), width)


def _flatten(writer: _Writer, node: Node) -> None:
    start = node.attributes["start_axis"]
    if start == 1:
        writer.add("Flatten", node, *node.inputs, axis=1)
    else:  # 0 keeps a size as it is
        writer.add("Reshape", node, *node.inputs, writer.integers(node, "shape", *(0,) * start, -1))


def _upsample(writer: _Writer, node: Node) -> None:
    (x,) = node.inputs
    if any(node.attributes["size"]):
        _resize(writer, node, x, writer.integers(node, "size", *node.attributes["size"]))
    else:
        factor = writer.numbers(node, "factor", (1.0, 1.0, *node.attributes["factor"]))
        writer.add("Resize", node, x, "", factor, **_interpolation(node))


def _upsample_like(writer: _Writer, node: Node) -> None:
    x, like = node.inputs
    _resize(writer, node, x, writer.inner("Shape", node, "size", like, start=2, end=4))


def _resize(writer: _Writer, node: Node, x: str, size: str) -> None:
    """Resize to a height and a width; where all sizes are fixed, without `axes`, with which int8 networks fail."""
    if writer.static and writer.network.graph.inputs[0].shape[0] is not None:
        whole = writer.integers(node, "whole_size", *writer.shapes[node.output])
        writer.add("Resize", node, x, "", "", whole, **_interpolation(node))
    else:
        writer.add("Resize", node, x, "", "", size, axes=[2, 3], **_interpolation(node))


def _interpolation(node: Node) -> dict[str, str]:
    if node.attributes["mode"] == "nearest":
        return {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
    centres = "align_corners" if node.attributes["align_corners"] else "half_pixel"
    return {"mode": "linear", "coordinate_transformation_mode": centres}


def _pixel_shuffle(writer: _Writer, node: Node) -> None:
    fy, fx = node.attributes["factor"]
    if fy == fx:
        writer.add("DepthToSpace", node, *node.inputs, blocksize=fy, mode="CRD")
        return
    (value,) = node.inputs
    channels = writer.shapes[node.output][1]
    plane = writer.inner("Shape", node, "plane", value, start=2, end=4)
    batch = writer.inner("Shape", node, "batch", value, start=0, end=1)
    split = writer.inner(
        "Concat", node, "split", batch, writer.integers(node, "factors", channels, fy, fx), plane, axis=0
    )
    blocks = writer.inner("Reshape", node, "blocks", value, split)
    pixels = writer.inner("Transpose", node, "pixels", blocks, perm=[0, 1, 4, 2, 5, 3])
    larger = writer.inner("Mul", node, "larger", plane, writer.integers(node, "factor", fy, fx))
    joined = writer.inner("Concat", node, "joined", batch, writer.integers(node, "channels", channels), larger, axis=0)
    writer.add("Reshape", node, pixels, joined)


def _hardsigmoid(writer: _Writer, node: Node) -> None:
    writer.add("HardSigmoid", node, *node.inputs, alpha=1 / 6, beta=0.5)


def _same_name(op: str) -> Callable[[_Writer, Node], None]:
    def export(writer: _Writer, node: Node) -> None:
        writer.add(op, node, *node.inputs)

    return export


EXPORTERS: dict[str, Callable[[_Writer, Node], None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "affine": _affine,
    "relu": _same_name("Relu"),
    "relu6": _relu6,
    "silu": _silu,
    "hardswish": _same_name("HardSwish"),
    "hardsigmoid": _hardsigmoid,
    "sigmoid": _same_name("Sigmoid"),
    "add": _same_name("Add"),
    "mul": _same_name("Mul"),
    "concat": _concat,
    "max_pool2d": _max_pool2d,
    "avg_pool2d": _avg_pool2d,
    "adaptive_avg_pool2d": _adaptive_avg_pool2d,
    "flatten": _flatten,
    "upsample": _upsample,
    "upsample_like": _upsample_like,
    "pixel_shuffle": _pixel_shuffle,
}
