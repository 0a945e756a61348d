"""Centroids looked up by code: values and gradients are those of plain indexing."""

import pytest

torch = pytest.importorskip("torch", reason="fine-tuning needs PyTorch")

from pyquant.learn.lookup import Lookup  # noqa: E402


def test_values_and_gradients_are_those_of_indexing() -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(5, (40,), generator=generator)
    codes[codes == 2] = 3  # a centroid that nobody uses
    lookup = Lookup(codes, 7)
    codebook = torch.randn(7, 3, generator=generator, requires_grad=True)
    weights = torch.randn(40, 3, generator=generator)
    for _ in range(2):  # the second time with other codes
        (expected,) = torch.autograd.grad((codebook[codes] * weights).sum(), codebook)
        blocks = lookup(codebook, torch.float32)
        assert torch.equal(blocks, codebook[codes])
        (gradient,) = torch.autograd.grad((blocks * weights).sum(), codebook)
        torch.testing.assert_close(gradient, expected)
        assert torch.equal(lookup.counts(), torch.bincount(codes, minlength=7))
        codes = codes.flip(0)
        lookup.set_codes(codes)


def test_the_gradient_of_rounded_blocks_is_that_of_exact_ones() -> None:
    codes, codebook = torch.tensor([1, 0, 1]), torch.randn(2, 4, requires_grad=True)
    blocks = Lookup(codes, 2)(codebook, torch.bfloat16)
    assert blocks.dtype == torch.bfloat16
    (gradient,) = torch.autograd.grad(blocks.sum(), codebook)
    assert torch.equal(gradient, torch.tensor([[1.0] * 4, [2.0] * 4]))
