"""Presets give ABGD's sizes, rules override them, and every layer left dense has a reason."""

import pytest

from pyquant.choose import (
    Choice,
    Recipe,
    Rule,
    block_count,
    clamped_centroids,
    dense_reasons,
    has_bottlenecks,
    parse_rule,
)
from pyquant.codecs import DenseConfig, ProductConfig, SparseConfig
from pyquant.errors import ConfigError
from pyquant.graph import Graph, GraphInput, Node, Weight
from pyquant.interop.resnet import resnet_config, resnet_graph

RESNET18 = resnet_graph(resnet_config("resnet18"), 1000)
RESNET50 = resnet_graph(resnet_config("resnet50"), 1000)


def chain(*shapes: tuple[int, ...], names: tuple[str, ...] = ()) -> Graph:
    """Return layers one after another, by the shapes of their weights; 2 dimensions make a linear layer."""
    nodes = []
    for index, shape in enumerate(shapes):
        name = names[index] if names else f"layer{index}"
        op = "conv2d" if len(shape) == 4 else "linear"
        weight = Weight(name=name, shape=shape)
        nodes.append(Node(op=op, name=name, inputs=(f"v{index}",), outputs=(f"v{index + 1}",), weight=weight))
    declared = GraphInput(name="v0", shape=(None, None, None, None), default=(3, 8, 8))
    return Graph(inputs=(declared,), nodes=tuple(nodes), outputs=(f"v{len(shapes)}",))


def product(*block: int, centroids: int, codebooks: int = 1) -> ProductConfig:
    c, kh, kw = block
    return ProductConfig(block=(c, kh, kw), centroids=centroids, codebooks=codebooks)


@pytest.mark.parametrize(
    ("graph", "preset", "layer", "expected"),
    [
        (RESNET18, "small-blocks", "layer1.0.conv1", product(1, 3, 3, centroids=256)),
        (RESNET18, "small-blocks", "layer2.0.downsample.0", product(4, 1, 1, centroids=256)),
        (RESNET18, "small-blocks", "fc", product(4, 1, 1, centroids=2048)),
        (RESNET18, "large-blocks", "layer1.0.conv1", product(2, 3, 3, centroids=256)),
        (RESNET18, "large-blocks", "layer2.0.downsample.0", product(4, 1, 1, centroids=256)),
        (RESNET18, "large-blocks", "fc", product(4, 1, 1, centroids=2048)),
        (RESNET50, "small-blocks", "layer1.0.conv1", product(4, 1, 1, centroids=128)),
        (RESNET50, "small-blocks", "layer1.0.conv2", product(1, 3, 3, centroids=256)),
        (RESNET50, "small-blocks", "fc", product(4, 1, 1, centroids=1024)),
        # Of the authors' file: 512 blocks, 64 centroids.
        (RESNET50, "large-blocks", "layer1.0.conv1", product(8, 1, 1, centroids=64)),
        (RESNET50, "large-blocks", "layer1.0.conv2", product(2, 3, 3, centroids=256)),
        (RESNET50, "large-blocks", "layer1.0.downsample.0", product(8, 1, 1, centroids=256)),
        (RESNET50, "large-blocks", "fc", product(4, 1, 1, centroids=1024)),
        # A box head's, of the authors of PQF.
        (chain((1024, 12544), names=("fc6",)), "small-blocks", "fc6", product(16, 1, 1, centroids=256)),
        (chain((1024, 12544), names=("fc6",)), "lut", "fc6", product(16, 1, 1, centroids=256)),
        (chain((1024, 4096), names=("fc",)), "large-blocks", "fc", product(4, 1, 1, centroids=1024)),
    ],
)
def test_presets_are_those_of_abgd(graph: Graph, preset: str, layer: str, expected: ProductConfig) -> None:
    assert Recipe(preset=preset).choose(graph)[layer] == Choice(codec=expected)


@pytest.mark.parametrize(
    ("graph", "layer", "expected"),
    [
        (RESNET18, "layer3.0.conv1", product(2, 3, 3, centroids=16, codebooks=2)),
        (RESNET18, "layer4.1.conv2", product(1, 3, 3, centroids=16, codebooks=2)),
        (RESNET18, "layer4.0.downsample.0", product(4, 1, 1, centroids=256)),
        (RESNET50, "layer1.0.conv3", product(8, 1, 1, centroids=32)),
        (RESNET50, "layer4.0.conv3", product(8, 1, 1, centroids=32)),
    ],
)
def test_lut_has_few_centroids_for_many_outputs(graph: Graph, layer: str, expected: ProductConfig) -> None:
    choices = Recipe(preset="lut").choose(graph)
    assert choices[layer] == Choice(codec=expected)
    narrow = [node.name for node, weight in graph.weighted() if weight.shape[0] < 256 or node.op == "linear"]
    assert all(choices[name] == Recipe().choose(graph)[name] for name in narrow)


@pytest.mark.parametrize(
    ("graph", "preset", "mebibytes"),
    [
        (RESNET18, "small-blocks", 1.541),
        (RESNET18, "large-blocks", 1.029),
        (RESNET50, "small-blocks", 5.091),
        (RESNET50, "large-blocks", 3.184),
    ],
)
def test_sizes_are_the_published_ones(graph: Graph, preset: str, mebibytes: float) -> None:
    choices = Recipe(preset=preset).choose(graph)
    total = 0
    for node, weight in graph.weighted():
        codec = choices[weight.name].codec
        total += codec.coded_bytes(weight.shape) if isinstance(codec, ProductConfig) else 4 * 64 * 3 * 7 * 7
        # Two vectors per batch norm, or the bias of the linear layer.
        total += 4 * len(node.tensors) * weight.shape[0]
    assert total / 2**20 == pytest.approx(mebibytes, abs=0.001)


def test_only_the_first_convolution_of_a_resnet_stays_dense() -> None:
    choices = Recipe().choose(RESNET50)
    assert dense_reasons(RESNET50, choices) == {"conv1": "the first convolution"}


@pytest.mark.parametrize(("graph", "expected"), [(RESNET18, False), (RESNET50, True)])
def test_bottlenecks_are_told_by_1x1_convolutions(graph: Graph, expected: bool) -> None:
    assert has_bottlenecks(graph) is expected


@pytest.mark.parametrize(
    ("blocks", "expected"), [(1, 1), (8, 1), (9, 2), (512, 64), (513, 128), (1024, 128), (2048, 256)]
)
def test_centroids_are_clamped_to_a_power_of_two_below_a_quarter_of_the_blocks(blocks: int, expected: int) -> None:
    assert clamped_centroids(blocks) == expected


@pytest.mark.parametrize(
    ("shape", "block"),
    [
        ((64, 32, 5, 5), (1, 5, 5)),
        ((64, 32, 7, 1), (1, 7, 1)),
        ((64, 3, 3, 3), (2, 3, 3)),
        ((64, 1, 3, 3), (1, 3, 3)),
        ((512, 3, 1, 1), (3, 1, 1)),
        ((512, 64), (4, 1, 1)),
    ],
)
def test_blocks_fit_the_kernel(shape: tuple[int, ...], block: tuple[int, int, int]) -> None:
    codec = Recipe(preset="large-blocks").choose(chain((8, 3, 3, 3), shape))["layer1"].codec
    assert isinstance(codec, ProductConfig)
    assert codec.block == block


def test_a_layer_that_coding_would_not_make_smaller_stays_dense_with_the_reason() -> None:
    choice = Recipe(rules=(parse_rule("tiny=block:1,3,3;centroids:64"),)).choose(
        chain((8, 3, 3, 3), (8, 4, 3, 3), names=("first", "tiny"))
    )["tiny"]
    # 32 codes of 6 bits and a codebook of 64 x 9 halves.
    assert choice.codec == DenseConfig()
    assert choice.reason == "coding would not make it smaller: 1,176 bytes against 1,152"


def test_a_layer_of_few_blocks_stays_dense() -> None:
    choice = Recipe().choose(chain((8, 3, 3, 3), (2, 4, 3, 3)))["layer1"]
    assert choice.reason == "too few blocks for a codebook"


def test_the_last_rule_that_matches_counts() -> None:
    texts = ("*=block:1,1,1;centroids:16", "layer1.*=dense", "layer1.1.*=block:4,1,1;centroids:8")
    rules = tuple(parse_rule(text) for text in texts)
    graph = chain((64, 8, 1, 1), (64, 64, 1, 1), (64, 64, 1, 1), names=("stem", "layer1.0.conv", "layer1.1.conv"))
    choices = Recipe(rules=rules).choose(graph)
    assert choices["stem"].codec == product(1, 1, 1, centroids=16)  # though it is the first convolution
    assert choices["layer1.0.conv"] == Choice(codec=DenseConfig(), reason="rule 'layer1.*=dense'")
    assert choices["layer1.1.conv"].codec == product(4, 1, 1, centroids=8)


def test_a_shared_weight_has_one_codec() -> None:
    shared = Weight(name="shared", shape=(64, 64, 1, 1))
    nodes = tuple(
        Node(op="conv2d", name=name, inputs=(f"v{i}",), outputs=(f"v{i + 1}",), weight=shared)
        for i, name in enumerate(["a", "b"])
    )
    declared = GraphInput(name="v0", shape=(None, 64, None, None), default=(64, 8, 8))
    graph = Graph(inputs=(declared,), nodes=nodes, outputs=("v2",))
    choices = Recipe(rules=(parse_rule("b=dense"),)).choose(graph)
    assert list(choices) == ["shared"]
    assert dense_reasons(graph, choices) == {"a": "rule 'b=dense'", "b": "rule 'b=dense'"}


def test_rules_that_match_nothing_are_all_listed_with_near_names() -> None:
    recipe = Recipe(rules=(parse_rule("layer1.0.conv9=dense"), parse_rule("zzz=dense")))
    with pytest.raises(ConfigError, match=r"'layer1.0.conv9=dense' matches no layer.*near: layer1.0.*'zzz=dense'"):
        recipe.choose(RESNET18)


def test_a_block_larger_than_the_kernel_is_an_error_that_names_layer_and_shapes() -> None:
    recipe = Recipe(rules=(parse_rule("*=block:1,3,3;centroids:16"),))
    with pytest.raises(ConfigError, match=r"layer 'fc': a block of 3x3 .* 1x1 kernel .* \[10, 64\]"):
        recipe.choose(chain((64, 64, 3, 3), (10, 64), names=("conv", "fc")))


def test_a_layer_whose_inputs_are_no_whole_units_stays_dense_unless_a_rule_names_it() -> None:
    graph = chain((8, 3, 3, 3), (64, 8, 3, 3), (64, 64, 1, 1), names=("stem", "conv", "last"))
    choices = Recipe(rules=(parse_rule("*=sparse:2:4"),)).choose(graph)
    reason = "its 3 input channels are no multiple of the 4 that 'sparse:2:4;bits:8' takes together"
    assert choices["stem"] == Choice(codec=DenseConfig(), reason=reason)
    assert choices["conv"] == choices["last"] == Choice(codec=SparseConfig(kept=0.5, of=4))
    with pytest.raises(ConfigError, match=r"layer 'stem' \(rule 'stem=sparse:2:4;bits:8'\): its 3 input channels"):
        Recipe(rules=(parse_rule("stem=sparse:2:4"),)).choose(graph)


@pytest.mark.parametrize(
    "text",
    [
        "*=dense",
        "layer[12].*=dense",
        "fc=block:4,1,1;centroids:2",
        "a=b=block:1,3,3;centroids:65536",
        "*=block:2,3,3;centroids:16;codebooks:2;codebook:int8",
        "*=block:1,3,3;centroids:64;rate:0.5",
        "*=block:1,1,1;centroids:64;codebooks:2;codebook:int8;rate:11.5",
        "*=scalar:4",
        "fc=scalar:6;rate:1.75",
        "*=sparse:0.25;bits:4",
        "fc=sparse:0.1;run:4;bits:8",
        "layer?.*=sparse:2:4;bits:8",
        "*=sparse:1:3;bits:2",
    ],
)
def test_rules_are_written_as_they_are_read(text: str) -> None:
    assert str(parse_rule(text)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dense", "expected 'PATTERN="),
        ("=dense", "expected 'PATTERN="),
        ("fc=arithmetic", "cannot read 'arithmetic'"),
        ("fc=block:4,1,1", "centroids missing"),
        ("fc=centroids:4", "block missing"),
        ("fc=block:4,1;centroids:4", "'block' has 2 numbers"),
        ("fc=block:4,1,x;centroids:4", "'block' needs whole numbers"),
        ("fc=block:4,1,1;centroids:4;centroids:8", "cannot read 'centroids:8'"),
        ("fc=block:0,1,1;centroids:4", "three positive integers"),
        ("fc=block:4,1,1;centroids:1", "centroids must be 2 to 65536, got 1"),
        ("fc=block:4,1,1;centroids:4;codebook:int4", "codebook dtype must be float or int8, got 'int4'"),
        ("fc=block:4,1,1;centroids:5;rate:0.8", "rate must be 0 .none. to 0.75, the bits per weight of packed codes"),
        ("fc=block:4,1,1;centroids:5;rate:much", "'rate' needs a number, got 'much'"),
        ("fc=block:4,1,1;centroids:5;rate:0.5;rate:0.5", "cannot read 'rate:0.5'"),
        ("fc=scalar:9", "bits must be 2 to 8, got 9"),
        ("fc=scalar:four", "'scalar' needs a whole number, 'rate' a number"),
        ("fc=scalar:4;rate:", "'scalar' needs a whole number, 'rate' a number"),
        ("fc=scalar:4;rate:5", "rate must be 0"),
        ("fc=scalar:4;centroids:8", "cannot read 'centroids:8'"),
        ("fc=scalar:4;scalar:4", "cannot read 'scalar:4'"),
        ("fc=sparse", "'sparse' needs a share, such as 0.25, or whole numbers N:M"),
        ("fc=sparse:much", "'sparse' needs a share"),
        ("fc=sparse:0.5:4", "'sparse' needs a share"),
        ("fc=sparse:2:0", "'sparse' needs a share"),
        ("fc=sparse:0.5;bits:4.5", "'run' and 'bits' need whole numbers; expected 'PATTERN=block"),
        ("fc=sparse:1.5", "the share that is kept must lie between 0 and 1, got 1.5"),
        ("fc=sparse:-0.5", "must lie between 0 and 1, got -0.5"),
        ("fc=sparse:4:4", "must lie between 0 and 1, got 1"),
        ("fc=sparse:0.5;run:3", "run must be 1 or 4, got 3"),
        ("fc=sparse:2:4;run:4", "run must be 1 where so many of 4 inputs are kept"),
        ("fc=sparse:8:16", "in 12,870 ways; expected at most 256"),
        ("fc=sparse:0.5;bits:9", "bits must be 2 to 8, got 9"),
        ("fc=sparse:0.5;rate:2", "cannot read 'rate:2'"),
        ("fc=sparse:0.5;sparse:0.5", "cannot read 'sparse:0.5'"),
        ("fc=block:4,1,1;centroids:65537", "centroids must be 2 to 65536, got 65537"),
    ],
)
def test_a_rule_that_cannot_be_read_is_an_error(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_rule(text)


def test_an_unknown_preset_lists_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="unknown preset 'tiny'; known: small-blocks, large-blocks, lut"):
        Recipe(preset="tiny")


def test_rules_as_text_must_be_parsed_first() -> None:
    with pytest.raises(ConfigError, match=r"parse_rule\(\) makes of text; got 'fc=dense'"):
        Recipe(rules=("fc=dense",))  # type: ignore[arg-type]


def test_patterns_tell_case() -> None:
    assert not Rule(pattern="FC", codec=DenseConfig()).matches("fc")


def test_blocks_are_counted_with_their_tails() -> None:
    assert block_count((2, 5, 3, 3), (2, 3, 3)) == 6
