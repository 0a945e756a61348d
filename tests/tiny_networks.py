"""Small networks that several tests use; the command line names them as `tiny_networks:residual`."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x))))) + x)


class Residual(nn.Module):
    """A stem, one residual block, a 1x1 convolution and a classifier; inputs `[N, 3, H, W]`."""

    def __init__(self, num_classes: int, channels: int = 16) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        self.block = Block(channels)
        self.wide = nn.Conv2d(channels, 4 * channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(4 * channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(torch.relu(self.bn(self.conv(x))))
        return self.fc(torch.flatten(self.pool(torch.relu(self.wide(x))), 1))


def residual(num_classes: int = 3) -> nn.Module:
    """Return a `Residual` with the same weights each time, its batch norms away from their initial state."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Residual(num_classes)
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 1.5)
    return network.eval()


def talkative() -> nn.Module:
    """Return a network that prints while it is built and while it runs."""
    print("building")
    network = residual()
    network.register_forward_pre_hook(lambda module, inputs: print("running"))
    return network


def not_a_network() -> int:
    """Return what is no network."""
    return 3
