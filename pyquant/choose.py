"""The choice of a codec for each layer: presets, rules and the reasons why a layer stays dense.

Dimensions: O outputs · C input channels (per group) · K centroids · d weights of a block · J blocks per output row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from math import prod

from pyquant.codecs import (
    CODEC_CONFIGS,
    CodecConfig,
    CodedConfig,
    DenseConfig,
    ProductConfig,
    ScalarConfig,
    SparseConfig,
)
from pyquant.codecs.product import CODEBOOK_DTYPES, as_conv_shape
from pyquant.detector import CHOICES
from pyquant.errors import ConfigError
from pyquant.graph import Graph, Node, Weight

RULE_FORM = (
    "expected 'PATTERN=block:c,kh,kw;centroids:K[;codebooks:M][;codebook:int8][;rate:R]', "
    "'PATTERN=scalar:B[;rate:R]', 'PATTERN=sparse:SHARE[;run:4][;bits:B]', 'PATTERN=sparse:N:M[;bits:B]' or "
    "'PATTERN=dense'"
)
CODED = tuple(name for name, config in CODEC_CONFIGS.items() if config is not DenseConfig)
DENSE_BYTES = 4  # of a dense fp32 weight, what coding is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Wide:
    """The blocks and codebooks of layers of so many outputs or more."""

    outputs: int
    channels: int  # of a block
    centroids: int
    codebooks: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Block sizes and centroids by kind of layer.

    `small-blocks` and `large-blocks` are those of ABGD ("And the Bit Goes Down", Stock et al., 2020), which publishes
    its sizes per architecture. Two rules give the same numbers for the published ones, and numbers for all others: a
    network is built of bottlenecks where it has more 1x1 convolutions than larger ones (ResNet-50: 36 and 17;
    ResNet-18: 3 and 17), and a linear layer is wide from 1024 inputs on (ResNet-50's has 2048, ResNet-18's 512): it has
    so many blocks that the bits of a code weigh more than the bytes of a codebook. One of 8192 inputs or more reads a
    whole map of features, as the first layer of a detector's box head does (12544), and holds a large part of all
    weights: its blocks are those that PQF ("Permute, Quantize, and Fine-tune", Martinez et al., 2021) gives that layer.

    `lut` is made for the table paths, which multiply for each centroid and then add once for each output. So layers of
    many outputs have few centroids, whose tables stay in the first-level cache; those of 3x3 have sums of two codebooks
    of 16, whose tables fit registers. Layers of few outputs are multiplied directly in less time, and are coded as in
    `small-blocks`; so are 1x1 convolutions where there are few, beside whole blocks, for they cost accuracy more than
    time.
    """

    spatial_channels: int  # of a 3x3 block
    pointwise_channels: int  # of a 1x1 block
    bottleneck_channels: int  # of a 1x1 block in a network of bottlenecks
    linear_channels: int = 4
    centroids: int = 256
    wide_spatial: tuple[Wide, ...] = ()  # of 3x3 convolutions, by rising outputs
    wide_pointwise: tuple[Wide, ...] = ()  # of 1x1 convolutions in a network of bottlenecks, likewise
    linear_centroids: int = 2048
    wide_linear_centroids: int = 1024
    wide_linear_inputs: int = 1024
    map_linear_inputs: int = 8192
    map_linear_channels: int = 16
    map_linear_centroids: int = 256

    def config(self, node: Node, weight: Weight, bottlenecks: bool) -> ProductConfig | None:
        """Return the codec for a layer, or None where it has too few blocks for two centroids."""
        o, c, kh, kw = as_conv_shape(weight.shape)
        centroids, codebooks = self.centroids, 1
        wide = {(1, 1): self.wide_pointwise if bottlenecks else (), (3, 3): self.wide_spatial}.get((kh, kw), ())
        if node.op == "linear":
            channels = self.linear_channels
            centroids = self.wide_linear_centroids if c >= self.wide_linear_inputs else self.linear_centroids
            if c >= self.map_linear_inputs:
                channels, centroids = self.map_linear_channels, self.map_linear_centroids
        elif node.attributes["groups"] == 1 and (widest := [choice for choice in wide if o >= choice.outputs]):
            channels, centroids, codebooks = widest[-1].channels, widest[-1].centroids, widest[-1].codebooks
        elif (kh, kw) == (1, 1):
            channels = self.bottleneck_channels if bottlenecks else self.pointwise_channels
        else:
            channels = self.spatial_channels if (kh, kw) == (3, 3) else 1
        block = (min(channels, c), kh, kw)
        centroids = min(centroids, clamped_centroids(block_count(weight.shape, block)))
        return ProductConfig(block=block, centroids=centroids, codebooks=codebooks) if centroids > 1 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class GridPreset:
    """Grids of so many bits for every layer."""

    bits: int

    def config(self, node: Node, weight: Weight, bottlenecks: bool) -> ScalarConfig:
        """Return the codec for a layer."""
        return ScalarConfig(bits=self.bits)


@dataclass(frozen=True, slots=True, kw_only=True)
class SparsePreset:
    """So large a share of every layer's weights, on grids of 8 bits."""

    kept: float

    def config(self, node: Node, weight: Weight, bottlenecks: bool) -> SparseConfig:
        """Return the codec for a layer."""
        return SparseConfig(kept=self.kept)


PRESETS: dict[str, Preset | GridPreset | SparsePreset] = {
    "small-blocks": Preset(spatial_channels=1, pointwise_channels=4, bottleneck_channels=4),
    "large-blocks": Preset(spatial_channels=2, pointwise_channels=4, bottleneck_channels=8),
    "lut": Preset(
        spatial_channels=1,
        pointwise_channels=4,
        bottleneck_channels=4,
        wide_spatial=(
            Wide(outputs=256, channels=2, centroids=16, codebooks=2),
            Wide(outputs=512, channels=1, centroids=16, codebooks=2),
        ),
        wide_pointwise=(Wide(outputs=256, channels=8, centroids=32),),
    ),
    "int8": GridPreset(bits=8),
    "int4": GridPreset(bits=4),
    "int3": GridPreset(bits=3),
    "int2": GridPreset(bits=2),
    "half": SparsePreset(kept=0.5),
}
DEFAULT_PRESET = "small-blocks"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """The codec of all layers whose dotted name matches a shell-style pattern, taken literally."""

    pattern: str
    codec: CodecConfig

    def __post_init__(self) -> None:
        if not self.pattern:
            raise ConfigError(f"rule '{self}': the pattern is empty; '*' matches every layer")

    def __str__(self) -> str:
        return f"{self.pattern}={self.codec.setting}"

    def matches(self, layer: str) -> bool:
        """Say whether the pattern matches the dotted name of a layer (case counts; `*` matches dots too)."""
        return fnmatchcase(layer, self.pattern)


def parse_rule(text: str) -> Rule:
    """Return the rule that a text stands for.

    It is `PATTERN=dense`, `PATTERN=block:c,kh,kw;centroids:K`, to which `;codebooks:M` and `;codebook:int8` can be
    added, or `PATTERN=scalar:B`; `;rate:R` can be added to the last two. `PATTERN=sparse:SHARE` keeps a share of the
    weights, to which `;run:4` and `;bits:B` can be added, and `PATTERN=sparse:N:M` keeps N of every M neighbours.

    Raises:
        ConfigError: the text is not of that form, or a number is out of range.
    """
    pattern, equals, setting = text.rpartition("=")
    if not equals or not pattern.strip():
        raise ConfigError(f"rule '{text}': {RULE_FORM}")
    if setting.strip() == "dense":
        return Rule(pattern=pattern.strip(), codec=DenseConfig())
    parts = [part.strip() for part in setting.split(";")]
    parsers: dict[str, Callable[[str, Sequence[str]], CodedConfig]] = {"scalar": _scalar, "sparse": _sparse}
    parse = parsers.get(parts[0].partition(":")[0].strip(), _product)
    return Rule(pattern=pattern.strip(), codec=parse(text, parts))


def _values(text: str, parts: Sequence[str], known: Sequence[str]) -> dict[str, str]:
    """Return the values of a rule's parts, each `key:value`, by key."""
    values: dict[str, str] = {}
    for part in parts:
        key, _, value = (piece.strip() for piece in part.partition(":"))
        if key not in known or key in values:
            raise ConfigError(f"rule '{text}': cannot read '{part}'; {RULE_FORM}")
        values[key] = value
    return values


def _scalar(text: str, parts: Sequence[str]) -> ScalarConfig:
    """Return the config of a rule's parts, each `key:value`."""
    values = _values(text, parts, ("scalar", "rate"))
    try:
        bits, rate = int(values["scalar"]), float(values.get("rate", 0))
    except ValueError:
        raise ConfigError(f"rule '{text}': 'scalar' needs a whole number, 'rate' a number; {RULE_FORM}") from None
    try:
        return ScalarConfig(bits=bits, rate=rate)
    except ConfigError as error:
        raise ConfigError(f"rule '{text}': {error}") from None


def _sparse(text: str, parts: Sequence[str]) -> SparseConfig:
    """Return the config of a rule's parts, each `key:value`."""
    values = _values(text, parts, ("sparse", "run", "bits"))
    share, colon, of = values.pop("sparse").partition(":")
    try:
        options = {key: int(number) for key, number in values.items()}
        kept = int(share) / int(of) if colon else float(share)
    except (ValueError, ZeroDivisionError):
        raise ConfigError(
            f"rule '{text}': 'sparse' needs a share, such as 0.25, or whole numbers N:M; 'run' and 'bits' need whole "
            f"numbers; {RULE_FORM}"
        ) from None
    try:
        return SparseConfig(kept=kept, of=int(of) if colon else 0, **options)
    except ConfigError as error:
        raise ConfigError(f"rule '{text}': {error}") from None


def _product(text: str, parts: Sequence[str]) -> ProductConfig:
    """Return the config of a rule's parts, each `key:value`."""
    values: dict[str, tuple[int, ...]] = {}
    dtype, rate = CODEBOOK_DTYPES[0], 0.0
    for part in parts:
        key, _, numbers = (piece.strip() for piece in part.partition(":"))
        if key == "codebook" and dtype == CODEBOOK_DTYPES[0]:
            dtype = numbers
            continue
        if key == "rate" and not rate:
            try:
                rate = float(numbers)
            except ValueError:
                raise ConfigError(f"rule '{text}': 'rate' needs a number, got '{numbers}'; {RULE_FORM}") from None
            continue
        if key not in ("block", "centroids", "codebooks") or key in values:
            raise ConfigError(f"rule '{text}': cannot read '{part}'; {RULE_FORM}")
        try:
            values[key] = tuple(int(number) for number in numbers.split(","))
        except ValueError:
            raise ConfigError(f"rule '{text}': '{key}' needs whole numbers, got '{numbers}'; {RULE_FORM}") from None
        if len(values[key]) != (3 if key == "block" else 1):
            raise ConfigError(f"rule '{text}': '{key}' has {len(values[key])} numbers; {RULE_FORM}")
    if missing := [key for key in ("block", "centroids") if key not in values]:
        raise ConfigError(f"rule '{text}': {' and '.join(missing)} missing; {RULE_FORM}")
    c, kh, kw = values["block"]
    try:
        return ProductConfig(
            block=(c, kh, kw),
            centroids=values["centroids"][0],
            codebooks=values.get("codebooks", (1,))[0],
            codebook_dtype=dtype,
            rate=rate,
        )
    except ConfigError as error:
        raise ConfigError(f"rule '{text}': {error}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The codec chosen for one weight; `reason` says why it stays dense, and is empty where it does not."""

    codec: CodecConfig
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """A preset, and rules that override it: the last rule that matches a layer counts.

    The preset leaves the first convolution dense, and in a detector the 1x1 convolutions by whose outputs boxes and
    masks are chosen (objectness and numbers of the proposals, the masks' logits), as PQF does: they are small, and an
    error there is another box. It clamps K to the number of blocks. A rule is taken literally. Neither codes a layer
    that coding would not make smaller, nor a pattern of names one whose inputs a sparse codec cannot take together.
    """

    preset: str = DEFAULT_PRESET
    rules: tuple[Rule, ...] = ()
    codecs: tuple[
        str, ...
    ] = ()  # that a size target chooses from; (): the usual ones, or the one that the method codes

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise ConfigError(f"unknown preset '{self.preset}'; known: {', '.join(PRESETS)}")
        if others := [rule for rule in self.rules if not isinstance(rule, Rule)]:
            raise ConfigError(f"a recipe's rules are Rule objects, which parse_rule() makes of text; got {others[0]!r}")
        if unknown := [codec for codec in self.codecs if codec not in CODED]:
            raise ConfigError(f"unknown codec '{unknown[0]}'; a size target chooses from: {', '.join(CODED)}")

    def choose(self, graph: Graph) -> dict[str, Choice]:
        """Return the choice for each weight of a graph, by the weight's name, in the order of the layers.

        Raises:
            ConfigError: listing every rule that matches no layer, and every layer whose rule has a block that does not
                fit, or names it and takes inputs together that it has not.
        """
        users: dict[str, list[Node]] = {}
        for node, weight in graph.weighted():
            users.setdefault(weight.name, []).append(node)
        faults = self._unmatched_rules([node.name for node, _ in graph.weighted()])
        left = _left_dense(graph)
        bottlenecks = has_bottlenecks(graph)
        choices = {}
        for name, nodes in users.items():
            try:
                choices[name] = self._choose(nodes, left, bottlenecks)
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("; ".join(faults))
        return choices

    def _unmatched_rules(self, layers: list[str]) -> list[str]:
        faults = []
        for rule in self.rules:
            if not any(rule.matches(layer) for layer in layers):
                near = get_close_matches(rule.pattern, layers, n=3, cutoff=0.3) or layers[:3]
                hint = f"near: {', '.join(near)}" if near else "the network has no layer with a weight"
                faults.append(f"rule '{rule}' matches no layer with a weight; {hint}")
        return faults

    def _choose(self, nodes: list[Node], left: Mapping[str, str], bottlenecks: bool) -> Choice:
        node = nodes[0]
        weight = node.weight
        assert weight is not None
        config: CodecConfig | None
        # A weight that several layers share has one codec: a rule that matches any of them counts.
        rule = next((r for r in reversed(self.rules) if any(r.matches(n.name) for n in nodes)), None)
        if rule is not None:
            config = rule.codec
            if isinstance(config, DenseConfig):
                return Choice(codec=config, reason=f"rule '{rule}'")
            if isinstance(config, ProductConfig):
                _check_kernel(node.name, weight, config, rule)
            if isinstance(config, SparseConfig) and (misfit := config.misfit(weight.shape)):
                if rule.pattern in {n.name for n in nodes}:
                    raise ConfigError(f"layer '{node.name}' (rule '{rule}'): {misfit}")
                return Choice(codec=DenseConfig(), reason=misfit)
        elif reasons := [left[n.name] for n in nodes if n.name in left]:
            return Choice(codec=DenseConfig(), reason=reasons[0])
        else:
            config = PRESETS[self.preset].config(node, weight, bottlenecks)
        if config is None:
            return Choice(codec=DenseConfig(), reason="too few blocks for a codebook")
        coded, dense = config.coded_bytes(weight.shape), DENSE_BYTES * prod(weight.shape)
        if coded >= dense:
            reason = f"coding would not make it smaller: {coded:,} bytes against {dense:,}"
            return Choice(codec=DenseConfig(), reason=reason)
        return Choice(codec=config)

    def to_json(self) -> dict[str, str | list[str]]:
        """Return the recipe as plain JSON values, the rules as `parse_rule` reads them."""
        codecs: dict[str, str | list[str]] = {"codecs": list(self.codecs)} if self.codecs else {}
        return {"preset": self.preset, "rules": [str(rule) for rule in self.rules], **codecs}


def _left_dense(graph: Graph) -> dict[str, str]:
    """Return the layers that no preset codes, and why, by name."""
    first = next((node.name for node in graph.nodes if node.op == "conv2d"), None)
    left = {} if first is None else {first: "the first convolution"}
    chosen_from = {name for node in graph.nodes if node.op in CHOICES for name in node.inputs}
    for node, weight in graph.weighted():
        if node.op == "conv2d" and weight.shape[2:] == (1, 1) and node.output in chosen_from:
            left.setdefault(node.name, "boxes or masks are chosen by its outputs")
    return left


def has_bottlenecks(graph: Graph) -> bool:
    """Say whether a network has more 1x1 convolutions than larger ones."""
    kernels = [weight.shape[2:] for node, weight in graph.weighted() if node.op == "conv2d"]
    return 2 * sum(kernel == (1, 1) for kernel in kernels) > len(kernels)


def block_count(weight_shape: tuple[int, ...], block: tuple[int, int, int]) -> int:
    """Return the number of blocks of a weight, O·J."""
    _, *inner = as_conv_shape(weight_shape)
    return weight_shape[0] * prod(-(-size // step) for size, step in zip(inner, block, strict=True))


def clamped_centroids(blocks: int) -> int:
    """Return the largest power of two below a quarter of the blocks (ABGD's clamp), at least 1."""
    return 1 << max(0, (-(-blocks // 4) - 1).bit_length() - 1)


def dense_reasons(graph: Graph, choices: Mapping[str, Choice]) -> dict[str, str]:
    """Return why layers stay dense, by the layer's name; layers that share a weight share its reason."""
    return {node.name: choices[w.name].reason for node, w in graph.weighted() if choices[w.name].reason}


def _check_kernel(layer: str, weight: Weight, config: ProductConfig, rule: Rule) -> None:
    _, _, kh, kw = as_conv_shape(weight.shape)
    _, bh, bw = config.block
    if bh > kh or bw > kw:
        raise ConfigError(
            f"layer '{layer}': a block of {bh}x{bw} (rule '{rule}') does not fit the {kh}x{kw} kernel of its weight "
            f"{list(weight.shape)}; give the layer a rule of its own"
        )
