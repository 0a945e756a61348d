"""What capturing refuses or fixes, and that it leaves the module as it was."""

from __future__ import annotations

import copy
import random
from collections import OrderedDict
from typing import Any

import numpy as np
import pytest

from pyquant import reference
from pyquant.errors import CaptureError, InputError

torch = pytest.importorskip("torch", reason="capturing needs PyTorch")

from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402
from torch_examples import Forward, Written, assert_same_function, images, residual_module  # noqa: E402

from pyquant.capture import capture  # noqa: E402

# Dimensions that a network fixes.


def flatten_all(self: Any, x: Any) -> Any:
    return self.fc(self.conv(x).flatten(1))


def only_for_squares(self: Any, x: Any) -> Any:
    if x.shape[2] != x.shape[3]:
        raise ValueError("squares only")
    return self.conv(x)


def only_for_even(self: Any, x: Any) -> Any:
    return self.conv(F.relu(x) if x.shape[2] % 2 else x)


def only_for_even_columns(self: Any, x: Any) -> Any:
    return self.conv(F.relu(x) if x.shape[3] % 2 else x)


def to_a_size_that_no_value_has(self: Any, x: Any) -> Any:
    return F.interpolate(F.max_pool2d(self.conv(x), 2), size=(x.shape[2] + 1, x.shape[3]))


def differs_above_10(self: Any, x: Any) -> Any:
    return self.conv(x if x.shape[2] > 10 else F.relu(x))


@pytest.mark.parametrize(
    "forward", [flatten_all, only_for_squares, only_for_even, only_for_even_columns, to_a_size_that_no_value_has]
)
def test_fixed_size_is_recorded_and_enforced(forward: Forward) -> None:
    module = Written(forward, conv=nn.Conv2d(3, 2, 3, padding=1), fc=nn.Linear(2 * 16 * 16, 4))
    network = capture(module, (3, 16, 16))
    assert network.graph.inputs[0].shape == (None, 3, 16, 16)
    assert_same_function(module, network, images(3, 3, 16, 16))
    with pytest.raises(InputError, match=r"expected shape \[any, 3, 16, 16\], got \[1, 3, 17, 16\]"):
        reference.run(network, np.zeros((1, 3, 17, 16), np.float32))


def test_one_fixed_dimension_leaves_the_other_free() -> None:
    network = capture(Written(differs_above_10, conv=nn.Conv2d(3, 2, 3)), (3, 16, 16))
    assert network.graph.inputs[0].shape == (None, 3, 16, None)


def test_batch_is_fixed_where_one_image_is_a_special_case() -> None:
    module = Written(lambda m, x: m.conv(F.relu(x) if x.shape[0] == 1 else x), conv=nn.Conv2d(3, 2, 1))
    network = capture(module, (3, 8, 8))
    assert network.graph.inputs[0].shape[0] == 1
    assert_same_function(module, network, images(1, 3, 8, 8))


def test_squeeze_keeps_the_batch() -> None:
    module = Written(lambda m, x: m.fc(F.adaptive_avg_pool2d(x, 1).squeeze()), fc=nn.Linear(3, 2))
    network = capture(module, (3, 8, 8))
    assert reference.run(network, np.zeros((1, 3, 8, 8), np.float32))["fc"].shape == (1, 2)
    assert_same_function(module, network, images(2, 3, 9, 8))


def test_size_that_suits_some_multiples_stays_free() -> None:
    module = Written(
        lambda m, x: torch.cat([x, F.interpolate(F.max_pool2d(x, 4), scale_factor=4)], 1) + m.bias,
        bias=nn.Parameter(torch.ones(6, 1, 1)),
    )
    network = capture(module, (3, 16, 16))
    assert network.graph.inputs[0].shape == (None, 3, None, None)
    assert_same_function(module, network, images(2, 3, 20, 8))
    with pytest.raises(InputError, match="expected the shape of"):
        reference.run(network, np.zeros((1, 3, 18, 16), np.float32))


# What cannot be captured.


def test_all_unsupported_operations_are_listed() -> None:
    module = nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 8, 3),
            norm=nn.GroupNorm(2, 8),
            block=nn.Sequential(nn.GELU(), nn.ReLU(), nn.ConvTranspose2d(8, 8, 2)),
            norm2=nn.BatchNorm2d(8, track_running_stats=False),
            softmax=nn.Softmax(1),
        )
    )
    with pytest.raises(CaptureError) as caught:
        capture(module, (3, 8, 8))
    message = str(caught.value)
    assert message.startswith("5 unsupported operations:\n")
    for line in [
        "'norm' (GroupNorm): group_norm",
        "'block.0' (GELU): gelu",
        "'block.2' (ConvTranspose2d): conv_transpose2d",
        "'norm2' (BatchNorm2d): batch_norm",
        "'softmax' (Softmax): softmax",
    ]:
        assert line in message
    assert "block.1" not in message


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda m, x: m.conv(x) if x.sum() > 0 else x, "must not decide by the values"),
        (lambda m, x: F.dropout(x, 0.5, True), "dropout that stays on in eval mode"),
        (lambda m, x: m.conv(x) + torch.rand(1), "the network itself .Written.: rand"),
        (lambda m, x: m.conv(x.double().float()), "to in torch.float64; expected float32"),
        (lambda m, x: x.transpose(2, 3), "transpose"),
        (lambda m, x: F.conv2d(x, m.conv.weight * 2), "conv2d with a weight computed from other tensors"),
        (lambda m, x: (m.conv.weight.detach().abs_(), m.conv(x))[1], "changes its own parameters .*conv.weight"),
        (lambda m, x: torch.zeros(3), "does not depend on its input"),
        (lambda m, x: None, "returns no tensor"),
        (lambda m, x: undefined(x), "NameError"),  # noqa: F821
        (lambda m, x: m.conv(x[:, :2]), r"cannot trace this network, RuntimeError"),
    ],
)
def test_what_cannot_be_captured_is_explained(forward: Forward, message: str) -> None:
    weight = torch.full((3, 3, 1, 1), 2.0)
    module = Written(forward, conv=nn.Conv2d(3, 3, 1, bias=False))
    module.conv.weight.data.copy_(weight)
    with pytest.raises(CaptureError, match=message):
        capture(module, (3, 8, 8))
    assert torch.equal(module.conv.weight, weight)


def test_all_faults_are_listed_where_sizes_are_free_too() -> None:
    def shuffle(m: Any, x: Any) -> Any:
        n, c, h, w = x.shape
        x = F.gelu(x).view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        return F.interpolate(x.chunk(2, 1)[0], size=(h, w))

    with pytest.raises(CaptureError) as caught:
        capture(Written(shuffle), (4, 8, 8))
    lines = str(caught.value).splitlines()[1:-1]
    assert [line.split(":")[1].split()[0] for line in lines] == ["gelu", "view", "transpose", "reshape", "chunk"]


def test_parametrized_weight_is_explained() -> None:
    module = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1))
    with pytest.raises(CaptureError, match="remove_parametrizations"):
        capture(module, (3, 8, 8))


def test_damaged_weights_are_named() -> None:
    module = residual_module()
    module.conv1.weight.data[0, 0, 0, 0] = float("nan")
    module.norm3.running_var[1] = float("inf")
    with pytest.raises(InputError, match=r"NaN or infinity in 'conv1.weight', 'norm3.running_var'"):
        capture(module, (3, 8, 8))


def test_wrong_input_shape_is_refused() -> None:
    with pytest.raises(InputError, match="expected three positive sizes"):
        capture(nn.ReLU(), (3, 0, 8))
    with pytest.raises(CaptureError, match="cannot trace"):
        capture(nn.Conv2d(3, 4, 1), (4, 8, 8))


def test_compiled_module_is_refused() -> None:
    with pytest.raises(CaptureError, match="a compiled module cannot be captured"):
        capture(torch.compile(nn.ReLU()), (3, 8, 8))


def test_uninitialised_module_is_refused() -> None:
    with pytest.raises(CaptureError, match="parameter 'weight' is not initialised"):
        capture(nn.LazyConv2d(3, 1), (3, 8, 8))
    with torch.device("meta"):
        module = nn.Conv2d(3, 3, 1)
    with pytest.raises(CaptureError, match="tensor 'weight' is on the meta device"):
        capture(module, (3, 8, 8))


def test_input_changed_in_place_is_seen() -> None:
    module = Written(lambda m, x: m.conv(F.relu_(x)) + x, conv=nn.Conv2d(3, 3, 1))
    network = capture(module, (3, 8, 8))
    assert [node.op for node in network.graph.nodes] == ["relu", "conv2d", "add"]
    x = images(2, 3, 8, 8)
    with torch.no_grad():
        expected = module(x.clone())
    np.testing.assert_allclose(reference.run(network, x.numpy())["add"], expected.numpy(), rtol=0, atol=1e-5)


# The module is left as it was.


@pytest.mark.parametrize("fails", [False, True])
def test_module_is_left_untouched(fails: bool) -> None:
    module = residual_module()
    if fails:
        module.relu = nn.GELU()
    module.conv2.eval()
    module.conv3.weight.requires_grad_(False)
    calls: list[str] = []
    module.register_forward_pre_hook(lambda m, x: calls.append("pre"))
    module.conv1.register_forward_hook(lambda m, x, y: calls.append("hook"))
    module.register_buffer("count", torch.zeros(()))
    module.note = {"hook": 1}
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    pointers = {name: parameter.data_ptr() for name, parameter in module.named_parameters()}
    modes = {name: part.training for name, part in module.named_modules()}
    gradients = {name: parameter.requires_grad for name, parameter in module.named_parameters()}
    torch.manual_seed(7)
    random.seed(7)
    np.random.seed(7)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    if fails:
        with pytest.raises(CaptureError, match="gelu"):
            capture(module, (3, 8, 8))
    else:
        capture(module, (3, 8, 8))
    assert calls == []
    assert module.training
    assert torch.is_grad_enabled()
    assert {name: part.training for name, part in module.named_modules()} == modes
    assert {name: p.requires_grad for name, p in module.named_parameters()} == gradients
    assert {name: p.data_ptr() for name, p in module.named_parameters()} == pointers
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert all(parameter.grad is None for parameter in module.parameters())
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    np.testing.assert_array_equal(np.random.get_state()[1], states[2])
    module(images(2, 3, 8, 8))
    assert calls == ["pre", "hook"]


def test_network_keeps_its_weights_when_the_module_changes() -> None:
    module = nn.Conv2d(3, 4, 1)
    weight = module.weight.detach().clone()
    network = capture(module, (3, 8, 8))
    module.weight.data.zero_()
    np.testing.assert_array_equal(network.tensors["conv2d.weight"], weight.numpy())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_dtypes_are_converted(dtype: Any) -> None:
    module = residual_module().to(dtype)
    network = capture(module, (3, 8, 8))
    assert module.conv1.weight.dtype == dtype
    assert all(array.dtype == np.float32 for array in network.tensors.values())
    assert_same_function(copy.deepcopy(module).float(), network, images(2, 3, 8, 8))
