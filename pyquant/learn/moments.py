"""What the learner measures on a layer's inputs and outputs: Grams, output errors, means and variances.

Dimensions: N images · C input channels (per group) · O outputs · P output pixels · J blocks per output row · d weights
of a block. Every function works on one batch; the sums of batches are taken in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from pyquant.codecs.product import as_conv_shape, blocks_from_weight
from pyquant.graph import Node

MOST_OF_A_PICTURE = 8  # independent values of a channel
GRAM_PICTURES = 4  # unfolded at a time: unfolding a 3x3 layer's inputs takes nine times their memory


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """Per channel: the number of values, their mean and the sum of their squared distances from it, float64 `[O]`."""

    count: int
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]

    @property
    def variance(self) -> NDArray[np.float64]:
        """The unbiased variance, as PyTorch keeps it in a batch norm; 0 where there is a single value."""
        return self.deviation / max(self.count - 1, 1)


def apply_weight(node: Node, weight: Tensor, x: Tensor) -> Tensor:
    """Return W x: the output `[N, O, H, W]` or `[N, O]` of a convolution or linear layer without scale and bias."""
    if node.op == "linear":
        return functional.linear(x, weight)
    return functional.conv2d(
        _padded(node, x),
        weight,
        stride=node.attributes["stride"],
        dilation=node.attributes["dilation"],
        groups=node.attributes["groups"],
    )


def apply_epilogue(scale: NDArray[np.float32] | None, bias: NDArray[np.float32] | None, x: Tensor) -> Tensor:
    """Return `x * scale + bias`, per channel (axis 1)."""
    shape = (1, -1) + (1,) * (x.ndim - 2)
    if scale is not None:
        x = x * torch.from_numpy(scale).view(shape)
    return x if bias is None else x + torch.from_numpy(bias).view(shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class InputMoments:
    """Sums over `count` images and pixels, v being the d inputs that meet a block; 0 where they meet its padding."""

    count: int
    squares: NDArray[np.float64]  # [d, d], of v vᵀ, over all blocks too
    sums: NDArray[np.float64]  # [groups * J, d], of v

    def plus(self, other: InputMoments) -> InputMoments:
        """Return the sums over both."""
        return InputMoments(
            count=self.count + other.count, squares=self.squares + other.squares, sums=self.sums + other.sums
        )

    def gram(self, *, centred: bool) -> NDArray[np.float64]:
        """Return the Gram `[d, d]`, up to scale; `centred` takes the mean of each input away first."""
        return self.squares - self.sums.T @ self.sums / self.count if centred else self.squares


def input_moments(node: Node, block: tuple[int, int, int], x: Tensor) -> InputMoments:
    """Return the moments of the inputs `x` of a layer, as its blocks meet them."""
    assert node.weight is not None
    _, c, kh, kw = as_conv_shape(node.weight.shape)
    result = None
    for start in range(0, len(x), GRAM_PICTURES):
        part = x[start : start + GRAM_PICTURES]
        unfolded = part[..., None] if node.op == "linear" else unfold(node, part)
        n, _, pixels = unfolded.shape
        v = _cut(unfolded.reshape(-1, c, kh, kw, pixels), block)  # [N * groups, J, d, P]
        # Short sums in float32, sums of those in float64.
        squares = (v @ v.transpose(2, 3)).sum(dim=(0, 1), dtype=torch.float64)
        sums = v.sum(dim=3).view(n, -1, v.shape[2]).sum(dim=0, dtype=torch.float64)
        moments = InputMoments(count=n * pixels, squares=squares.numpy(), sums=sums.numpy())
        result = moments if result is None else result.plus(moments)
    assert result is not None
    return result


def block_presence(weight_shape: tuple[int, ...], block: tuple[int, int, int]) -> NDArray[np.float64]:
    """Return `[d]`, at how many of the J block positions each weight of a block is there (not padding)."""
    ones = np.ones((1, *weight_shape[1:]), np.float32)
    return np.asarray(blocks_from_weight(ones, block)[0].sum(axis=0), np.float64)


def independent_values(pixels: int) -> float:
    """Return how many independent values of a channel one picture is worth that shows `pixels`, which are much alike.

    On a ResNet-18 for 64x64 pictures and a ResNet-50 for 224x224, the mean of a channel over one picture varied as that
    of so many independent values would (median over channels, by layer): 1.4 to 2.6 where there are 4 pixels, 2.7 to
    7.8 of 49, 5.6 to 17 of 196, 4.1 to 7 of 256 and 3 to 56 of 784. So it is the square root of the pixels, and 8 at
    most.
    """
    return min(sqrt(pixels), MOST_OF_A_PICTURE)


def channel_moments(y: Tensor) -> Moments:
    """Return the moments of each channel (axis 1) of `[N, O]` or `[N, O, H, W]`."""
    flat = y.transpose(0, 1).reshape(y.shape[1], -1).double()
    mean = flat.mean(dim=1)
    deviation = (flat - mean[:, None]).square().sum(dim=1)
    return Moments(count=flat.shape[1], mean=mean.numpy(), deviation=deviation.numpy())


def combine_moments(parts: Sequence[Moments]) -> Moments:
    """Return the moments of all values together (Chan, Golub and LeVeque, 1979)."""
    total = parts[0]
    for part in parts[1:]:
        count = total.count + part.count
        delta = part.mean - total.mean
        total = Moments(
            count=count,
            mean=total.mean + delta * (part.count / count),
            deviation=total.deviation + part.deviation + delta**2 * (total.count * part.count / count),
        )
    return total


def squared_norm(y: Tensor) -> float:
    """Return the sum of squares of all elements."""
    return float(torch.linalg.vector_norm(y, dtype=torch.float64).square())


def _padded(node: Node, x: Tensor) -> Tensor:
    top, bottom, left, right = node.attributes["padding"]
    return functional.pad(x, (left, right, top, bottom)) if top or bottom or left or right else x


def unfold(node: Node, x: Tensor) -> Tensor:
    """Return the inputs that meet each weight, `[N, groups * C * kh * kw, P]`."""
    assert node.weight is not None
    _, _, kh, kw = as_conv_shape(node.weight.shape)
    padded, stride = _padded(node, x), node.attributes["stride"]
    if (kh, kw) == (1, 1):
        return padded[:, :, :: stride[0], :: stride[1]].flatten(2)
    return functional.unfold(padded, (kh, kw), dilation=node.attributes["dilation"], stride=stride)


def _cut(unfolded: Tensor, block: tuple[int, int, int]) -> Tensor:
    """Cut `[N, C, kh, kw, P]` into blocks `[N, J, d, P]`, as `codecs.product` cuts weights."""
    n, *inner, p = unfolded.shape
    (c, bh, bw), pads = block, [-size % step for size, step in zip(inner, block, strict=True)]
    if any(pads):
        unfolded = functional.pad(unfolded, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
    _, pc, ph, pw, _ = unfolded.shape
    cut = unfolded.reshape(n, pc // c, c, ph // bh, bh, pw // bw, bw, p).permute(0, 1, 3, 5, 2, 4, 6, 7)
    return cut.reshape(n, -1, c * bh * bw, p)
