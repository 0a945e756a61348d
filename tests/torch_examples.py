"""Small PyTorch networks for the tests, and how a captured one is compared with them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from pyquant import reference
from pyquant.capture import flat_outputs
from pyquant.graph import Network
from pyquant.torch_network import TorchNetwork

Forward = Callable[[Any, Any], Any]


class Written(nn.Module):
    """A module whose forward is a function of itself and its input."""

    def __init__(self, forward: Forward, **parts: Any) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, x: Any) -> Any:
        return self._forward(self, x)


def with_statistics(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give every batch norm statistics and parameters that a wrong folding would not survive."""
    generator = torch.Generator().manual_seed(seed)
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            if part.running_mean is not None:
                part.running_mean.normal_(0, 0.2, generator=generator)
                part.running_var.uniform_(0.5, 2, generator=generator)
            if part.affine:
                part.weight.data.uniform_(0.5, 1.5, generator=generator)
                part.bias.data.normal_(0, 0.2, generator=generator)
    return module


def images(*shape: int) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def assert_same_function(module: nn.Module, network: Network, x: Any, oracle: bool = True) -> None:
    """Compare with the module, by PyTorch and by the reference operations."""
    with torch.no_grad():
        expected = flat_outputs(copy.deepcopy(module).eval()(x))
        result = TorchNetwork(network)(x)
    got = list(result.values()) if isinstance(result, dict) else [result]
    assert len(got) == len(expected)
    for have, want in zip(got, expected, strict=True):
        assert have.shape == want.shape
        # Folding rounds each layer differently: some 60 layers at 2**-24 each.
        torch.testing.assert_close(have, want, rtol=0, atol=5e-6 * float(want.abs().max()))
    if oracle:
        for array, want in zip(reference.run(network, x.numpy()).values(), expected, strict=True):
            np.testing.assert_allclose(array, want.numpy(), rtol=0, atol=5e-6 * float(want.abs().max()))


def residual(self: Any, x: Any) -> Any:
    x = self.relu(self.norm1(self.conv1(x)))
    y = self.relu(self.norm2(self.conv2(x)))
    y = self.norm3(self.conv3(y))
    y += self.shortcut(x)
    x = self.relu(y)
    x = self.dropout(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
    return self.fc(x)


def residual_module() -> nn.Module:
    module = Written(
        residual,
        conv1=nn.Conv2d(3, 8, 5, stride=2, padding=2),
        norm1=nn.BatchNorm2d(8, eps=1e-3),
        conv2=nn.Conv2d(8, 8, 3, padding="same", groups=8, bias=False),
        norm2=nn.BatchNorm2d(8, affine=False),
        conv3=nn.Conv2d(8, 12, 1, padding="valid", bias=False),
        norm3=nn.BatchNorm2d(12),
        shortcut=nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)),
        relu=nn.ReLU(inplace=True),
        dropout=nn.Dropout(),
        fc=nn.Linear(12, 5),
    )
    return with_statistics(module)
