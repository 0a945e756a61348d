"""Centroids looked up by code, differentiable: the gradient of a centroid is the sum over the blocks that use it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional


class Lookup(nn.Module):
    """The codes `[N]`, each below `centroids`, of the blocks of one weight in one codebook.

    PyTorch's own gradient adds blocks up as they come, and takes longer than the convolutions; blocks sorted by code,
    once, are added up many times faster.
    """

    codes: Tensor
    _order: Tensor
    _starts: Tensor

    def __init__(self, codes: Tensor, centroids: int) -> None:
        super().__init__()
        self.centroids = centroids
        for name in ("codes", "_order", "_starts"):
            self.register_buffer(name, None, persistent=False)
        self.set_codes(codes)

    def set_codes(self, codes: Tensor) -> None:
        """Use other codes from now on."""
        self.codes = codes
        self._order = torch.argsort(codes, stable=True)
        self._starts = functional.pad(self.counts().cumsum(0), (1, -1))

    def counts(self) -> Tensor:
        """Return how many blocks use each centroid, `[K]`."""
        return torch.bincount(self.codes, minlength=self.centroids)

    def forward(self, codebook: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the blocks `[N, d]` for a codebook `[K, d]`, in another dtype."""
        blocks: Tensor = _Gather.apply(codebook, self.codes, self._order, self._starts, dtype)  # type: ignore[no-untyped-call]
        return blocks


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, codebook: Tensor, codes: Tensor, order: Tensor, starts: Tensor, dtype: torch.dtype) -> Tensor:
        ctx.save_for_backward(order, starts)
        return codebook.to(dtype).index_select(0, codes)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        order, starts = ctx.saved_tensors
        sums = functional.embedding_bag(order, gradients[0].float().contiguous(), starts, mode="sum")
        return sums, None, None, None, None
