"""Our own description of torchvision's classification ResNets, so that importing one needs no torchvision."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pyquant.errors import ConfigError
from pyquant.graph import Graph, GraphInput, Node, StateNames, Weight


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetConfig:
    """One member of the family (He et al., 2016; Xie et al., 2017; Zagoruyko and Komodakis, 2016).

    A basic block is two 3x3 convolutions; a bottleneck is 1x1, 3x3 (grouped in ResNeXt), 1x1 with four times the
    channels. The stride of a bottleneck is at its 3x3 convolution, as in torchvision.
    """

    bottleneck: bool
    blocks: tuple[int, ...]  # of each stage
    groups: int = 1
    width_per_group: int = 64
    stem: int = 64  # output channels of the first convolution
    channels: tuple[int, ...] = (64, 128, 256, 512)  # of each stage, before a bottleneck's factor of four


RESNETS: dict[str, ResNetConfig] = {
    "resnet18": ResNetConfig(bottleneck=False, blocks=(2, 2, 2, 2)),
    "resnet34": ResNetConfig(bottleneck=False, blocks=(3, 4, 6, 3)),
    "resnet50": ResNetConfig(bottleneck=True, blocks=(3, 4, 6, 3)),
    "resnet101": ResNetConfig(bottleneck=True, blocks=(3, 4, 23, 3)),
    "resnet152": ResNetConfig(bottleneck=True, blocks=(3, 8, 36, 3)),
    "resnext50_32x4d": ResNetConfig(bottleneck=True, blocks=(3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": ResNetConfig(bottleneck=True, blocks=(3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": ResNetConfig(bottleneck=True, blocks=(3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": ResNetConfig(bottleneck=True, blocks=(3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": ResNetConfig(bottleneck=True, blocks=(3, 4, 23, 3), width_per_group=128),
}


def resnet_config(arch: str) -> ResNetConfig:
    """Return the configuration called `arch`; raise ConfigError listing the known ones."""
    if arch not in RESNETS:
        raise ConfigError(f"unknown architecture '{arch}'; known: {', '.join(RESNETS)}")
    return RESNETS[arch]


def resnet_graph(config: ResNetConfig, classes: int, size: tuple[int, int] = (224, 224)) -> Graph:
    """Return the graph, all weights dense, every convolution with the scale and bias of its batch norm.

    Layers carry torchvision's module names (`conv1`, `layer1.0.conv1`, `layer1.0.downsample.0`, `fc`, ..). Batch,
    height and width are free; `size` is the default height and width.
    """
    build = _Builder()
    value = build.conv("conv1", "bn1", "input", inputs=3, outputs=config.stem, kernel=7, stride=2)
    value = build.add("relu", "relu", value)
    value = build.add("max_pool2d", "maxpool", value, kernel=(3, 3), stride=(2, 2), padding=(1, 1))
    add_block = _add_bottleneck if config.bottleneck else _add_basic_block
    width = config.stem
    for stage, (blocks, channels) in enumerate(zip(config.blocks, config.channels, strict=True)):
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            value, width = add_block(build, f"layer{stage + 1}.{index}", value, width, channels, stride, config)
    value = build.add("adaptive_avg_pool2d", "avgpool", value, output_size=(1, 1))
    value = build.add("flatten", "flatten", value)
    build.nodes.append(
        Node(
            op="linear",
            name="fc",
            inputs=(value,),
            outputs=("fc",),
            weight=Weight(name="fc", shape=(classes, width)),
            tensors=("bias",),
            state=StateNames(weight="fc.weight", bias="fc.bias"),
        )
    )
    declared = GraphInput(name="input", shape=(None, 3, None, None), default=(3, *size))
    return Graph(inputs=(declared,), nodes=tuple(build.nodes), outputs=("fc",))


@dataclass(slots=True)
class _Builder:
    """Collects layers; each is named after its module, and its output after the layer."""

    nodes: list[Node] = field(default_factory=list)

    def add(self, op: str, name: str, *inputs: str, **attributes: Any) -> str:
        self.nodes.append(Node(op=op, name=name, inputs=inputs, outputs=(name,), attributes=attributes))
        return name

    def conv(
        self, name: str, norm: str, value: str, *, inputs: int, outputs: int, kernel: int, stride: int, groups: int = 1
    ) -> str:
        """Add a square convolution that keeps the size (but for its stride), followed by a batch norm."""
        node = Node(
            op="conv2d",
            name=name,
            inputs=(value,),
            outputs=(name,),
            attributes={"stride": (stride, stride), "padding": (kernel // 2,) * 4, "groups": groups},
            weight=Weight(name=name, shape=(outputs, inputs // groups, kernel, kernel)),
            tensors=("scale", "bias"),
            state=StateNames(weight=f"{name}.weight", norm=norm),
        )
        self.nodes.append(node)
        return name


def _add_basic_block(
    build: _Builder, at: str, value: str, width: int, channels: int, stride: int, config: ResNetConfig
) -> tuple[str, int]:
    first = build.conv(f"{at}.conv1", f"{at}.bn1", value, inputs=width, outputs=channels, kernel=3, stride=stride)
    first = build.add("relu", f"{at}.relu1", first)
    second = build.conv(f"{at}.conv2", f"{at}.bn2", first, inputs=channels, outputs=channels, kernel=3, stride=1)
    shortcut = _add_shortcut(build, at, value, width, channels, stride)
    total = build.add("add", f"{at}.add", second, shortcut)
    return build.add("relu", f"{at}.relu2", total), channels


def _add_bottleneck(
    build: _Builder, at: str, value: str, width: int, channels: int, stride: int, config: ResNetConfig
) -> tuple[str, int]:
    inner = channels * config.width_per_group // 64 * config.groups
    outputs = 4 * channels
    first = build.conv(f"{at}.conv1", f"{at}.bn1", value, inputs=width, outputs=inner, kernel=1, stride=1)
    first = build.add("relu", f"{at}.relu1", first)
    second = build.conv(
        f"{at}.conv2", f"{at}.bn2", first, inputs=inner, outputs=inner, kernel=3, stride=stride, groups=config.groups
    )
    second = build.add("relu", f"{at}.relu2", second)
    third = build.conv(f"{at}.conv3", f"{at}.bn3", second, inputs=inner, outputs=outputs, kernel=1, stride=1)
    shortcut = _add_shortcut(build, at, value, width, outputs, stride)
    total = build.add("add", f"{at}.add", third, shortcut)
    return build.add("relu", f"{at}.relu3", total), outputs


def _add_shortcut(build: _Builder, at: str, value: str, width: int, outputs: int, stride: int) -> str:
    """Add the projection of a block's input where its shape changes; else return the input itself."""
    if stride == 1 and width == outputs:
        return value
    name, norm = f"{at}.downsample.0", f"{at}.downsample.1"
    return build.conv(name, norm, value, inputs=width, outputs=outputs, kernel=1, stride=stride)
