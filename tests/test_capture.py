"""Captured networks against the modules they came from."""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import pytest

from pyquant import reference
from pyquant.graph import Network

torch = pytest.importorskip("torch", reason="capturing needs PyTorch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_examples import Written, assert_same_function, images, residual_module, with_statistics  # noqa: E402

from pyquant.capture import capture  # noqa: E402


def ops(network: Network) -> list[str]:
    return [node.op for node in network.graph.nodes]


# The networks of torchvision.


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("resnet18", 21),
        ("resnext50_32x4d", 54),
        ("wide_resnet50_2", 18),
        ("vgg11", 11),
        ("vgg11_bn", 11),
        ("mobilenet_v2", 53),
        ("mobilenet_v3_small", 54),
        ("efficientnet_b0", 82),
    ],
)
def test_torchvision(name: str, layers: int) -> None:
    models = pytest.importorskip("torchvision.models", reason="torchvision is not installed")
    if name == "wide_resnet50_2":  # its own 16 blocks take too long here, 4 are of the same form
        module = models.ResNet(models.resnet.Bottleneck, [1, 1, 1, 1], num_classes=10, width_per_group=128)
    else:
        module = models.get_model(name, num_classes=10, weights=None)
    if name.startswith("vgg"):  # a narrow classifier instead of 120 million weights
        module.classifier[0] = nn.Linear(512 * 7 * 7, 100)
        module.classifier[3] = nn.Linear(100, 100)
        module.classifier[6] = nn.Linear(100, 10)
    with_statistics(module)
    network = capture(module, (3, 64, 64))
    assert network.graph.inputs[0].shape == (None, 3, None, None)
    assert network.graph.inputs[0].default == (3, 64, 64)
    assert len(list(network.graph.weighted())) == layers
    assert "affine" not in ops(network)
    names = {node.name for node, _ in network.graph.weighted()}
    assert names == {path for path, part in module.named_modules() if isinstance(part, (nn.Conv2d, nn.Linear))}
    assert_same_function(module, network, images(2, 3, 75, 70))


# Networks that people write.


WRITTEN: dict[str, tuple[nn.Module, list[str]]] = {
    "residual": (
        residual_module(),
        ["conv2d"] * 4 + ["relu"] * 3 + ["add", "adaptive_avg_pool2d", "flatten", "linear"],
    ),
    "same padding of an even kernel": (nn.Conv2d(3, 4, (4, 2), padding="same", dilation=(1, 3)), ["conv2d"]),
    "dilated": (nn.Conv2d(3, 4, 3, padding=(2, 1), dilation=2, stride=(1, 2)), ["conv2d"]),
    "activations": (
        nn.Sequential(
            nn.Conv2d(3, 4, 1),
            nn.ReLU6(),
            nn.Conv2d(4, 4, 1),
            nn.SiLU(inplace=True),
            nn.Hardswish(),
            nn.Sigmoid(),
            nn.Hardsigmoid(inplace=True),
        ),
        ["conv2d", "relu6", "conv2d", "silu", "hardswish", "sigmoid", "hardsigmoid"],
    ),
    "functional activations": (
        Written(lambda self, x: torch.sigmoid(F.hardsigmoid(F.hardswish(F.silu(F.relu6(F.relu(x, inplace=False))))))),
        ["relu", "relu6", "silu", "hardswish", "hardsigmoid", "sigmoid"],
    ),
    "pools": (
        nn.Sequential(
            nn.MaxPool2d(3, 2, 1, ceil_mode=True),
            nn.AvgPool2d(3, 1, 1, count_include_pad=False),
            nn.AvgPool2d((2, 1), divisor_override=3),
            nn.MaxPool2d(2, 1, dilation=2),
            nn.AdaptiveAvgPool2d((2, 3)),
        ),
        ["max_pool2d", "avg_pool2d", "avg_pool2d", "max_pool2d", "adaptive_avg_pool2d"],
    ),
    "batch norm first": (with_statistics(nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1))), ["affine", "conv2d"]),
    "batch norm of a value with two readers": (
        with_statistics(
            Written(lambda m, x: (y := m.conv(x)) + m.norm(y), conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4))
        ),
        ["conv2d", "affine", "add"],
    ),
    "two batch norms": (
        with_statistics(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4))),
        ["conv2d", "affine"],
    ),
    "linear with batch norm": (
        with_statistics(
            nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 6), nn.BatchNorm1d(6), nn.ReLU())
        ),
        ["adaptive_avg_pool2d", "flatten", "linear", "relu"],
    ),
    "scalars": (
        Written(lambda self, x: 3 - (2 * x + 1) / 4 - x * 0.5),
        ["affine", "affine", "affine", "affine", "affine", "affine", "add"],
    ),
    "preprocessing inside": (
        Written(lambda m, x: (x - torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1)) / m.std, std=torch.ones(3, 1, 1) * 2),
        ["affine", "affine"],
    ),
    "concat and upsample": (
        Written(
            lambda m, x: torch.cat(
                [F.interpolate(y := m.down(x), scale_factor=2), F.interpolate(y, scale_factor=(2, 2), mode="bilinear")],
                dim=-3,
            ),
            down=nn.AvgPool2d(2),
        ),
        ["avg_pool2d", "upsample", "upsample", "concat"],
    ),
    "upsample to a size": (
        nn.Sequential(nn.Upsample((9, 7), mode="bilinear", align_corners=True), nn.UpsamplingNearest2d((5, 6))),
        ["upsample", "upsample"],
    ),
    "upsample to the size of another value": (
        Written(lambda m, x: x + F.interpolate(m.down(x), size=x.shape[2:]), down=nn.MaxPool2d(3, 3)),
        ["max_pool2d", "upsample_like", "add"],
    ),
    "transposed convolution": (
        nn.Sequential(nn.ConvTranspose2d(3, 5, (2, 3), (2, 3)), nn.ReLU(), nn.ConvTranspose2d(5, 4, 1, bias=False)),
        ["conv2d", "pixel_shuffle", "relu", "conv2d", "pixel_shuffle"],
    ),
    "pixel shuffle": (
        nn.Sequential(nn.Conv2d(3, 12, 1), nn.PixelShuffle(2)),
        ["conv2d", "pixel_shuffle"],
    ),
    "gate": (
        Written(
            lambda m, x: x * torch.sigmoid(m.expand(F.relu(m.squeeze(x.mean((2, 3), keepdim=True))))),
            squeeze=nn.Conv2d(3, 2, 1),
            expand=nn.Conv2d(2, 3, 1),
        ),
        ["adaptive_avg_pool2d", "conv2d", "relu", "conv2d", "sigmoid", "mul"],
    ),
    "mean and view": (
        Written(lambda m, x: m.fc(x.mean([-1, -2]).view(x.size(0), -1)), fc=nn.Linear(3, 2, bias=False)),
        ["adaptive_avg_pool2d", "flatten", "linear"],
    ),
    "reshape": (
        Written(lambda m, x: m.fc(F.adaptive_avg_pool2d(x, (2, 2)).reshape(-1, 12)), fc=nn.Linear(12, 2)),
        ["adaptive_avg_pool2d", "flatten", "linear"],
    ),
    "in place after a view": (
        Written(lambda m, x: (y := m.conv(x)).view(y.shape) + F.relu_(y), conv=nn.Conv2d(3, 4, 1)),
        ["conv2d", "relu", "add"],
    ),
    "identity": (
        nn.Sequential(nn.Identity(), nn.Conv2d(3, 2, 1), nn.Dropout2d(), nn.Dropout(inplace=True), nn.Identity()),
        ["conv2d"],
    ),
    "pool that rounds up": (nn.Sequential(*[nn.MaxPool2d(3, 2, ceil_mode=True)] * 3), ["max_pool2d"] * 3),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_written_network(name: str) -> None:
    module, expected_ops = WRITTEN[name]
    network = capture(module, (3, 16, 20))
    assert sorted(ops(network)) == sorted(expected_ops)
    assert network.graph.inputs[0].shape == (None, 3, None, None)
    assert_same_function(module, network, images(3, 3, 22, 18))


def test_names_and_origins() -> None:
    network = capture(residual_module(), (3, 16, 16))
    states = {node.name: node.state for node, _ in network.graph.weighted()}
    assert list(states) == ["conv1", "conv2", "conv3", "shortcut.0", "fc"]
    assert (states["conv1"].bias, states["conv1"].norm, states["conv1"].eps) == ("conv1.bias", "norm1", 1e-3)
    assert (states["conv2"].bias, states["conv2"].norm, states["conv2"].norm_affine) == ("", "norm2", False)
    assert (states["shortcut.0"].bias, states["shortcut.0"].norm) == ("shortcut.0.bias", "shortcut.1")
    assert (states["fc"].weight, states["fc"].bias, states["fc"].norm) == ("", "fc.bias", "")
    names = [node.name for node in network.graph.nodes]
    assert [name for name in names if "relu" in name] == ["relu", "relu_2", "relu_3"]
    assert "add" in names


def test_weights_are_not_multiplied_by_the_batch_norm() -> None:
    module = residual_module()
    network = capture(module, (3, 16, 16))
    for node, weight in network.graph.weighted():
        original = module.get_parameter(f"{node.name}.weight").detach().numpy()
        np.testing.assert_array_equal(network.weight(weight), original)


# Shared parts, several outputs.


def test_module_called_twice_has_one_weight() -> None:
    module = Written(lambda m, x: m.conv(F.relu(m.conv(x))), conv=nn.Conv2d(3, 3, 3, padding=1))
    network = capture(module, (3, 8, 8))
    assert [(node.name, weight.name, node.state.weight) for node, weight in network.graph.weighted()] == [
        ("conv", "conv", ""),
        ("conv_2", "conv", "conv.weight"),
    ]
    assert [name for name in network.tensors if name.endswith(".weight")] == ["conv.weight"]
    assert_same_function(module, network, images(2, 3, 9, 8))


def test_tied_parameters_keep_both_names() -> None:
    module = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU(), nn.Conv2d(3, 3, 3))
    module[2].weight = module[0].weight
    network = capture(module, (3, 8, 8))
    assert [(n.name, w.name, n.state.weight, n.state.bias) for n, w in network.graph.weighted()] == [
        ("0", "0", "", "0.bias"),
        ("2", "0", "", "2.bias"),
    ]
    assert_same_function(module, network, images(2, 3, 9, 8))


@pytest.mark.parametrize("bias", [False, True])
def test_shared_convolution_with_its_own_batch_norms(bias: bool) -> None:
    module = with_statistics(
        Written(
            lambda m, x: m.norm2(m.conv(m.norm1(m.conv(x)))),
            conv=nn.Conv2d(3, 3, 1, bias=bias),
            norm1=nn.BatchNorm2d(3),
            norm2=nn.BatchNorm2d(3),
        )
    )
    network = capture(module, (3, 8, 8))
    # A shared bias cannot be exported from two different folded ones, so the batch norms stay.
    assert ops(network) == (["conv2d", "affine"] * 2 if bias else ["conv2d"] * 2)
    assert_same_function(module, network, images(2, 3, 9, 8))


def test_outputs_of_a_dict_keep_its_names() -> None:
    module = Written(
        lambda m, x: OrderedDict(out=m.head(y := m.stem(x)), stem=y, again=y, image=x),
        stem=nn.Conv2d(3, 4, 1),
        head=nn.Conv2d(4, 2, 1),
    )
    network = capture(module, (3, 8, 8))
    assert network.graph.outputs == ("out", "stem", "again", "image")
    assert list(reference.run(network, images(1, 3, 8, 8).numpy())) == ["out", "stem", "again", "image"]
    assert_same_function(module, network, images(2, 3, 9, 8))


def test_outputs_of_a_tuple_are_called_after_their_layers() -> None:
    module = Written(lambda m, x: (m.a(x), [m.b(x), None]), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 2, 1))
    network = capture(module, (3, 8, 8))
    assert network.graph.outputs == ("a", "b")
    assert_same_function(module, network, images(2, 3, 9, 8))
