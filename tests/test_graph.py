"""Graphs survive JSON, refuse what makes no sense by name, and know the shapes of their values."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
from small_models import conv2d, golden_model, layer, linear

from pyquant.codecs import DenseConfig, ProductConfig
from pyquant.errors import FormatError, InputError
from pyquant.export.folded import folded
from pyquant.graph import Graph, GraphInput, Node, StateNames
from pyquant.layers import OPS
from pyquant.shapes import SHAPE_RULES

GRAPH = golden_model().network.graph
JSON = GRAPH.to_json()


def image(channels: int, height: int, width: int) -> GraphInput:
    return GraphInput(name="x", shape=(None, channels, None, None), default=(channels, height, width))


def test_json_round_trip() -> None:
    assert Graph.from_json(JSON) == GRAPH
    assert Graph.from_json(copy.deepcopy(JSON)).to_json() == JSON


def test_what_is_usual_is_left_out() -> None:
    relu, total = JSON["nodes"][1], JSON["nodes"][5]
    assert relu == {"op": "relu", "name": "relu"}
    assert total == {"op": "add", "name": "sum", "in": ["grouped", "pool"]}


def test_every_operation_has_a_shape_rule() -> None:
    assert SHAPE_RULES.keys() == OPS.keys()


def node(index: int) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda graph: graph["nodes"][index]


def whole(graph: dict[str, Any]) -> dict[str, Any]:
    return graph


def first_input(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["inputs"][0]


def weight(graph: dict[str, Any]) -> dict[str, Any]:
    return graph["nodes"][3]["weight"]


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (whole, {"odd": 1}, "the graph has unknown entries: odd"),
        (whole, {"nodes": None}, "the graph is not as declared: TypeError"),
        (whole, {"nodes": [7]}, "the graph is not as declared: TypeError"),
        (whole, {"nodes": []}, "a graph needs layers"),
        (whole, {"inputs": []}, "a graph needs inputs with unique names"),
        (whole, {"inputs": JSON["inputs"] * 2}, "a graph needs inputs with unique names"),
        (whole, {"outputs": []}, "and outputs with unique names"),
        (whole, {"outputs": ["fc", "fc"]}, "and outputs with unique names"),
        (whole, {"outputs": ["nowhere"]}, "output 'nowhere' is written by no layer"),
        (whole, {"outputs": "fc"}, "outputs: expected printable names, got 'fc'"),
        (whole, {"outputs": [1]}, "outputs: expected printable names"),
        (first_input, {"odd": 1}, "an input has unknown entries: odd"),
        (first_input, {"name": ""}, "an input's name: a name is empty"),
        (first_input, {"shape": [None, 3, 8.0, 8]}, "input 'x' has an impossible shape"),
        (first_input, {"shape": [None, 3, True, 8]}, "input 'x' has an impossible shape"),
        (first_input, {"shape": [None, 3, 2**31, 8]}, "input 'x' has an impossible shape"),
        (first_input, {"default": [3, 8, 0]}, "input 'x' has an impossible shape"),
        (first_input, {"default": [3, 8]}, "input 'x': its default shape does not fit its shape"),
        (node(1), {"op": "softplus"}, "layer 'relu': unknown operation 'softplus'; known: adaptive_avg_pool2d, add"),
        (node(1), {"op": None}, "a layer's operation and name: expected printable names"),
        (node(1), {"name": "stem"}, "two layers are called 'stem'; .*writes 'stem' again"),
        (node(1), {"name": "a\nb"}, "a layer's operation and name: expected printable names"),
        (node(1), {"out": ["a", "b"]}, r"layer 'relu' \(relu\) has 2 outputs"),
        (node(1), {"out": ["x"]}, r"layer 'relu' \(relu\) writes 'x' again"),
        (node(1), {"in": ["stem", "x"]}, r"layer 'relu' \(relu\) has 2 inputs"),
        (node(1), {"in": ["fc"]}, r"layer 'relu' \(relu\) reads 'fc', which nothing before it writes"),
        (node(1), {"in": "stem"}, "layer 'relu': in: expected printable names, got 'stem'"),
        (node(1), {"slope": 1}, r"layer 'relu' \(relu\): unknown attribute 'slope'"),
        (node(1), {"weight": JSON["nodes"][3]["weight"]}, r"layer 'relu' \(relu\) needs a weight of 0 dimensions"),
        (node(1), {"tensors": ["scale"]}, r"layer 'relu': expected tensors among \[\], each once, got \['scale'\]"),
        (node(0), {"tensors": ["bias", "bias"]}, "layer 'stem': expected tensors among"),
        (node(0), {"weight": None}, r"layer 'stem' \(conv2d\) needs a weight of 4 dimensions, got one of 0"),
        (node(0), {"stride": [1, 0]}, "layer 'stem' .*: attribute 'stride': expected a number of at least 1"),
        (node(0), {"stride": [1]}, "attribute 'stride': expected 2 values"),
        (node(0), {"stride": [1, True]}, "attribute 'stride': expected int, got True"),
        (node(0), {"groups": 10**400}, "attribute 'groups': expected a number of at least 1 and below"),
        (node(0), {"padding": [0, 0, 0, -1], "dilation": 2}, "attribute 'padding'.*; attribute 'dilation'"),
        (node(0), {"state": {"norm": 1}}, "layer 'stem': state: unknown entry, or unusable value: norm: 1"),
        (node(0), {"state": {"eps": 2.0}}, "state: unknown entry, or unusable value: eps: 2.0"),
        (node(0), {"state": {"odd": ""}}, "state: unknown entry, or unusable value: odd"),
        (node(0), {"state": [1]}, "the graph is not as declared"),
        (node(2), {"kernel": None}, "missing attribute 'kernel'"),
        (node(2), {"ceil_mode": 1}, "attribute 'ceil_mode': expected bool, got 1"),
        (weight, {"codec": "zip"}, "layer 'spatial': unknown codec 'zip'; known: dense, product"),
        (weight, {"codec": ["product"]}, "a weight's codec and name: expected printable names"),
        (weight, {"shape": [4, 4]}, r"needs a weight of 4 dimensions, got one of 2"),
        (weight, {"shape": [4, 4, 3, 0]}, "layer 'spatial': a weight cannot have shape"),
        (weight, {"shape": [4, 4, 3, 2**31]}, "layer 'spatial': a weight cannot have shape"),
        (weight, {"shape": 4}, "layer 'spatial': a weight cannot have shape 4"),
        (weight, {"centroids": 65537}, "layer 'spatial': centroids must be 2 to 65536, got 65537"),
        (weight, {"centroids": 1}, "attribute 'centroids': expected a number of at least 2"),
        (weight, {"block": [1, 3]}, "attribute 'block': expected 3 values"),
        (weight, {"codebook_dtype": "int4"}, "attribute 'codebook_dtype': expected one of float, int8, got 'int4'"),
        (weight, {"odd": 1}, r"layer 'spatial' \(product weight\): unknown attribute 'odd'"),
    ],
)
def test_faults_are_named(
    part: Callable[[dict[str, Any]], dict[str, Any]], change: dict[str, Any], message: str
) -> None:
    damaged = copy.deepcopy(JSON)
    part(damaged).update(change)
    with pytest.raises(FormatError, match=message):
        Graph.from_json(damaged)


@pytest.mark.parametrize("value", [None, 1, "graph", [], {}])
def test_what_is_no_graph(value: object) -> None:
    with pytest.raises(FormatError, match="the graph is not as declared"):
        Graph.from_json(value)


def test_whole_number_will_do_for_a_factor() -> None:
    graph = Graph(
        inputs=(image(1, 4, 4),), nodes=(layer("upsample", "a", "x", mode="nearest", factor=(2, 3)),), outputs=("a",)
    )
    assert graph.infer_shapes()["a"] == (1, 1, 8, 12)
    assert graph.nodes[0].attributes["factor"] == (2.0, 3.0)


def test_shapes_of_the_golden_graph() -> None:
    shapes = GRAPH.infer_shapes([(5, 3, 9, 12)])
    assert shapes == {
        "x": (5, 3, 9, 12),
        "stem": (5, 4, 9, 12),
        "relu": (5, 4, 9, 12),
        "pool": (5, 4, 4, 6),
        "spatial": (5, 4, 4, 6),
        "grouped": (5, 4, 4, 6),
        "sum": (5, 4, 4, 6),
        "norm": (5, 4, 4, 6),
        "both": (5, 8, 4, 6),
        "mean": (5, 8, 1, 1),
        "flat": (5, 8),
        "fc": (5, 3),
    }


def pool(op: str, **attributes: Any) -> Node:
    return layer(op, "p", "x", **attributes)


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        # By hand: floor((size + padding on both sides - dilation * (kernel - 1) - 1) / stride) + 1.
        (layer("relu6", "p", "x"), (2, 3, 11, 14)),
        (pool("max_pool2d", kernel=(3, 3), stride=(2, 2), padding=(1, 1)), (2, 3, 6, 7)),
        (pool("max_pool2d", kernel=(3, 2), stride=(2, 3), dilation=(2, 1)), (2, 3, 4, 5)),
        (pool("max_pool2d", kernel=(2, 2), stride=(2, 2), ceil_mode=True), (2, 3, 6, 7)),
        # A last window that would begin in the far padding is left out.
        (pool("max_pool2d", kernel=(1, 2), stride=(11, 7), padding=(0, 1), ceil_mode=True), (2, 3, 1, 3)),
        (pool("avg_pool2d", kernel=(2, 3), stride=(3, 3)), (2, 3, 4, 4)),
        (pool("adaptive_avg_pool2d", output_size=(7, 20)), (2, 3, 7, 20)),
        (pool("flatten", start_axis=2), (2, 3, 154)),
        (pool("upsample", mode="bilinear", factor=(1.5, 0.5)), (2, 3, 16, 7)),
        (pool("upsample", mode="bilinear", size=(5, 6)), (2, 3, 5, 6)),
        (pool("pixel_shuffle", factor=(3, 1)), (2, 1, 33, 14)),
    ],
)
def test_shape_rules(node: Node, expected: tuple[int, ...]) -> None:
    graph = Graph(inputs=(image(3, 11, 14),), nodes=(node,), outputs=("p",))
    assert graph.infer_shapes([(2, 3, 11, 14)])["p"] == expected


@pytest.mark.parametrize(
    ("attributes", "expected"),
    [
        ({}, (9, 10)),
        ({"stride": (2, 3)}, (5, 4)),
        ({"dilation": (2, 3)}, (7, 6)),
        ({"padding": (1, 2, 0, 3)}, (12, 13)),
    ],
)
def test_shape_of_a_convolution(attributes: dict[str, Any], expected: tuple[int, int]) -> None:
    plain = conv2d("c", "x", (4, 3, 3, 3), DenseConfig())
    node = Node(op="conv2d", name="c", inputs=("x",), outputs=("c",), attributes=attributes, weight=plain.weight)
    graph = Graph(inputs=(image(3, 11, 12),), nodes=(node,), outputs=("c",))
    assert graph.infer_shapes([(2, 3, 11, 12)])["c"] == (2, 4, *expected)


@pytest.mark.parametrize(
    ("nodes", "message"),
    [
        (
            (conv2d("a", "x", (4, 2, 1, 1), DenseConfig()),),
            r"'a' \(conv2d\): expected \[N, 2, H, W\], got .*\[1, 3, 8, 8\]",
        ),
        ((conv2d("a", "x", (4, 1, 1, 1), DenseConfig(), groups=3),), r"'a' \(conv2d\): expected \[N, 3, H, W\]"),
        ((linear("a", "x", (4, 192), DenseConfig()),), r"'a' \(linear\): expected \[N, 192\]"),
        ((layer("flatten", "f", "x"), linear("a", "f", (4, 191), DenseConfig())), r"expected \[N, 191\]"),
        ((layer("flatten", "f", "x", start_axis=4),), "expected more than 4 dimensions"),
        ((layer("flatten", "f", "x"), layer("max_pool2d", "p", "f", kernel=(1, 1))), r"expected \[N, C, H, W\]"),
        (
            (layer("max_pool2d", "p", "x", kernel=(2, 2), padding=(2, 0)),),
            "padding 2 is more than half of a window of 2",
        ),
        ((layer("flatten", "f", "x"), layer("concat", "c", "x", "f", axis=1)), "expected the shape of"),
        ((layer("adaptive_avg_pool2d", "p", "x", output_size=(3, 3)), layer("add", "s", "x", "p")), "that broadcasts"),
    ],
)
def test_inputs_that_do_not_fit_a_layer(nodes: tuple[Node, ...], message: str) -> None:
    graph = Graph(inputs=(image(3, 8, 8),), nodes=nodes, outputs=(nodes[-1].output,))
    with pytest.raises(InputError, match=message):
        graph.infer_shapes()


def test_inputs_that_do_not_fit_the_network() -> None:
    with pytest.raises(InputError, match=r"input 'x': expected shape \[any, 3, any, any\], got \[1, 4, 8, 8\]"):
        GRAPH.infer_shapes([(1, 4, 8, 8)])
    with pytest.raises(InputError, match=r"got \[0, 3, 8, 8\]"):
        GRAPH.infer_shapes([(0, 3, 8, 8)])
    with pytest.raises(InputError, match="the network takes 1 inputs, got 2"):
        GRAPH.infer_shapes([(1, 3, 8, 8)] * 2)
    with pytest.raises(InputError, match=r"layer 'pool' .* leaves it an output of \[1, 4, 0, 4\]; give a larger input"):
        GRAPH.infer_shapes([(1, 3, 1, 8)])


def test_multiply_accumulates() -> None:
    assert GRAPH.macs() == {
        "stem": 4 * 27 * 64,
        "spatial": 4 * 36 * 16,
        "grouped": 4 * 2 * 16,
        "fc": 3 * 8,
    }
    assert GRAPH.macs([(2, 3, 16, 8)])["stem"] == 2 * 4 * 27 * 128


def test_batch_that_the_network_fixes() -> None:
    fixed = GraphInput(name="x", shape=(4, 3, None, None), default=(3, 8, 8))
    assert fixed.default_shape == (4, 3, 8, 8)
    graph = Graph(inputs=(fixed,), nodes=(layer("relu", "a", "x"),), outputs=("a",))
    assert graph.infer_shapes()["a"] == (4, 3, 8, 8)


def test_decoded_network_has_dense_weights_and_the_same_layers() -> None:
    network = golden_model().network
    decoded = network.decoded()
    assert {w.codec_name for _, w in decoded.graph.weighted()} == {"dense"}
    assert [node.name for node in decoded.graph.nodes] == [node.name for node in GRAPH.nodes]
    assert decoded.tensors["spatial.weight"].tolist() == network.weight(GRAPH.node("spatial").weight).tolist()
    assert decoded.graph.node("spatial").state == StateNames(norm="spatial_norm")


def test_ranges_stay_with_a_network_that_is_decoded_or_folded() -> None:
    network = golden_model().network
    assert len(network.graph.values()) == 12
    assert network.graph.values()[:2] == ("x", "stem")
    ranges = network.activation_ranges
    for dense in (network.decoded(), folded(network)):
        assert dense.graph.values() == network.graph.values()
        assert dense.activation_ranges is ranges
    without = network.with_activation_ranges(None)
    assert without.activation_ranges is None
    assert without.decoded().activation_ranges is None
    assert without.with_activation_ranges(ranges).tensors.keys() == network.tensors.keys()


def test_weights_may_be_shared() -> None:
    first = linear("a", "f", (192, 192), ProductConfig(block=(4, 1, 1), centroids=4))
    second = Node(op="linear", name="b", inputs=("a",), outputs=("b",), weight=first.weight)
    graph = Graph(inputs=(image(3, 8, 8),), nodes=(layer("flatten", "f", "x"), first, second), outputs=("b",))
    assert Graph.from_json(graph.to_json()) == graph
    assert graph.to_json()["nodes"][2]["weight"]["name"] == "a"


def test_inputs_left_out_have_their_default_shape_and_the_batch_of_the_first() -> None:
    sizes = GraphInput(name="sizes", shape=(None, 2), default=(2,))
    graph = Graph(inputs=(image(3, 4, 5), sizes), nodes=(layer("relu", "a", "sizes"),), outputs=("a",))
    assert graph.infer_shapes([(7, 3, 4, 5)])["a"] == (7, 2)
    for given in ([], [(7, 3, 4, 5), (7, 2), (7, 2)]):
        with pytest.raises(InputError, match=f"takes 2 inputs, got {len(given)}"):
            graph.infer_shapes(given)


@pytest.mark.parametrize("anchors", [[], [1.0, "2"], 3.0, [float("nan")], [True]])
def test_a_list_of_any_length_holds_numbers(anchors: Any) -> None:
    boxes = {"keep": 1, "max_overlap": 0.5, "min_score": 0.0, "min_side": 0.0, "box_weights": [1.0] * 4}
    with pytest.raises(FormatError, match="attribute 'anchors'"):
        Node(
            op="proposals",
            name="rpn",
            inputs=("x",) * 4,
            outputs=("y",),
            attributes={**boxes, "max_log_scale": 4.0, "best": 1, "anchors": anchors},
        )


def test_numbers_that_memory_grows_with_are_bounded() -> None:
    sizes = {"output_size": (2, 4096), "samples": 256}
    with pytest.raises(
        FormatError, match=r"'output_size': .* below 4096, got 4096; .*'samples': .* below 256, got 256"
    ):
        Node(op="roi_align", name="align", inputs=("x", "boxes", "y"), outputs=("z",), attributes=sizes)
