"""The loss of fine-tuning: how far a network's outputs are from those of the dense network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def distillation_loss(outputs: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the mean over the outputs of a network of each one's distance from its target, per picture.

    Outputs `[N, K]` with K > 1 count as the logits of classes: their distance is the Kullback-Leibler divergence of the
    softmax (Hinton, Vinyals and Dean, 2015), in nats. Others (features, maps) have a relative squared error.
    """
    losses = [_distance(output.float(), target.float()) for output, target in zip(outputs, targets, strict=True)]
    return torch.stack(losses).mean()


def relative_error(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the squared error of outputs, relative to their targets, of all these pairs together."""
    error = sum((output - target).square().sum() for output, target in pairs)
    signal = sum(target.square().sum() for _, target in pairs)
    return torch.as_tensor(error) / torch.as_tensor(signal).clamp_min(1e-12)


def are_logits(output: Tensor) -> bool:
    """Say whether an output counts as the logits of classes."""
    return output.dim() == 2 and output.shape[1] > 1


def _distance(output: Tensor, target: Tensor) -> Tensor:
    if are_logits(output):
        log_p, log_q = functional.log_softmax(target, 1), functional.log_softmax(output, 1)
        return functional.kl_div(log_q, log_p, reduction="batchmean", log_target=True)
    return relative_error([(output, target)])
