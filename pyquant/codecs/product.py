"""The product codec: each block of weights is replaced by the index of one centroid of its layer's codebook.

Dimensions: O outputs · C input channels (per group) · K centroids · d weights of a block · J blocks per output row ·
M additive codebooks. A weight `[O, C, kh, kw]` is cut into blocks of shape `(c, bh, bw)`; block positions are numbered
channels first, then rows, then columns of the kernel, and so are the weights inside a block. Tail blocks are padded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant.codecs.packing import pack_codes, packed_bytes, unpack_codes
from pyquant.errors import ConfigError

MIN_CENTROIDS = 2
MAX_CENTROIDS = 65536
CODEBOOK_DTYPES = ("float", "int8")
CODEBOOK_BYTES = {"float": 2, "int8": 1}  # of a number: fp16, where fp16 can hold it, and int8
INT8_MAX = 127  # the largest number of an int8 codebook; -128 is not used
MAX_ROUNDING = 1e-3  # relative error of an fp16 codebook above which it stays fp32


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductConfig:
    """Replace each block of weights by the sum of `codebooks` centroids, one of `centroids` from each codebook.

    The centroids' numbers are kept as `float` (fp16, or fp32 where fp16 cannot hold them) or as `int8`, times a scale
    for each codebook. With a `rate`, frequent centroids are preferred until entropy coding brings codes to so many bits
    per weight, at most (Chou, Lookabaugh and Gray, "Entropy-constrained vector quantization", 1989); 0: every block
    gets the centroids that suit the outputs best.
    """

    block: tuple[int, int, int]
    centroids: int
    codebooks: int = 1
    codebook_dtype: str = "float"
    rate: float = 0.0

    def __post_init__(self) -> None:
        if len(self.block) != 3 or min(self.block) < 1:
            raise ConfigError(f"block must be three positive integers (channels, kh, kw), got {self.block}")
        if not MIN_CENTROIDS <= self.centroids <= MAX_CENTROIDS:
            raise ConfigError(f"centroids must be {MIN_CENTROIDS} to {MAX_CENTROIDS}, got {self.centroids}")
        if self.codebooks < 1:
            raise ConfigError(f"codebooks must be at least 1, got {self.codebooks}")
        if self.codebook_dtype not in CODEBOOK_DTYPES:
            raise ConfigError(f"codebook dtype must be {' or '.join(CODEBOOK_DTYPES)}, got {self.codebook_dtype!r}")
        if not 0 <= self.rate <= self.most_bits:
            raise ConfigError(
                f"rate must be 0 (none) to {self.most_bits:g}, the bits per weight of packed codes, got {self.rate:g}"
            )

    @property
    def setting(self) -> str:
        """The text that stands for the config in a rule."""
        block = ",".join(str(size) for size in self.block)
        books = f";codebooks:{self.codebooks}" if self.codebooks > 1 else ""
        dtype = ";codebook:int8" if self.codebook_dtype == "int8" else ""
        rate = f";rate:{self.rate:g}" if self.rate else ""
        return f"block:{block};centroids:{self.centroids}{books}{dtype}{rate}"

    @property
    def dim(self) -> int:
        """The number of weights in a block, d."""
        return prod(self.block)

    @property
    def code_bits(self) -> int:
        """The bits of one packed code: ceil(log2 K)."""
        return (self.centroids - 1).bit_length()

    @property
    def most_bits(self) -> float:
        """The bits per weight of packed codes."""
        return self.code_bits * self.codebooks / self.dim

    @property
    def weight_bits(self) -> float:
        """The bits that one weight counts in `bit_operations`: log2(K) * M / d, or the rate."""
        return self.rate or log2(self.centroids) * self.codebooks / self.dim

    def dimensions(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the dimensions of its tensors, by the letters of `pyquant.layers`."""
        blocks = self.blocks_per_row(weight_shape)
        return {"K": self.centroids, "d": self.dim, "J": blocks, "M": self.codebooks, "bits": self.code_bits}

    def coded_bytes(self, weight_shape: tuple[int, ...]) -> int:
        """Return the bytes of the codes, packed or at the rate, and of the fp16 or int8 codebooks of a weight."""
        if self.rate:
            codes = self.planned_bytes(weight_shape)["codes"]
        else:
            codes = packed_bytes(self.codebooks * weight_shape[0] * self.blocks_per_row(weight_shape), self.code_bits)
        return codes + CODEBOOK_BYTES[self.codebook_dtype] * self.codebooks * self.centroids * self.dim

    def planned_bytes(self, weight_shape: tuple[int, ...]) -> dict[str, int]:
        """Return the most bytes that the codes of a weight take when entropy-coded, by role; {} without a rate."""
        return {"codes": int(self.rate * prod(weight_shape) / 8)} if self.rate else {}

    def codes(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.uint16]:
        """Return the codes `[M, O, J]` that tensors, by role, hold."""
        shape = (self.codebooks, weight_shape[0], self.blocks_per_row(weight_shape))
        return unpack_codes(tensors["codes"], self.code_bits, prod(shape)).reshape(shape)

    def decoded(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> NDArray[np.float32]:
        """Return the fp32 weight of `weight_shape` that tensors, by role, stand for."""
        return decode(self.codes(tensors, weight_shape), codebook_values(tensors), weight_shape, self)

    def faults(self, tensors: Mapping[str, NDArray[Any]], weight_shape: tuple[int, ...]) -> Iterator[tuple[str, str]]:
        """Yield what is wrong with numbers, each with the role of the tensor that holds them."""
        with np.errstate(over="ignore"):
            centroids = codebook_values(tensors)
        if np.isfinite(tensors["codebook"]).all() and not np.isfinite(centroids).all():
            yield "codebook_scale", "is too large: centroids are not finite"

    def blocks_per_row(self, weight_shape: tuple[int, ...]) -> int:
        """Return J, the number of blocks in one output row of a weight `[O, C, kh, kw]` or `[O, C]`."""
        return prod(self.grid(weight_shape))

    def grid(self, weight_shape: tuple[int, ...]) -> tuple[int, int, int]:
        """Return the number of block positions along channels, kernel rows and kernel columns."""
        _, *inner = as_conv_shape(weight_shape)
        channels, rows, columns = (-(-size // step) for size, step in zip(inner, self.block, strict=True))
        return channels, rows, columns


def as_conv_shape(weight_shape: tuple[int, ...]) -> tuple[int, int, int, int]:
    """Return the shape of a weight as `(O, C, kh, kw)`; a linear layer's kernel is 1x1."""
    o, c, *kernel = weight_shape
    kh, kw = kernel or (1, 1)
    return o, c, kh, kw


def blocks_from_weight(weight: NDArray[np.float32], block: tuple[int, int, int]) -> NDArray[np.float32]:
    """Cut `weight` `[O, C, kh, kw]` or `[O, C]` into blocks `[O, J, d]`, padding tail blocks with zeros."""
    o, *inner = as_conv_shape(weight.shape)
    padding = [(0, -size % step) for size, step in zip(inner, block, strict=True)]
    padded = np.pad(weight.reshape(o, *inner), [(0, 0), *padding])
    (c, bh, bw), (_, pc, ph, pw) = block, padded.shape
    cut = padded.reshape(o, pc // c, c, ph // bh, bh, pw // bw, bw)
    return np.ascontiguousarray(cut.transpose(0, 1, 3, 5, 2, 4, 6)).reshape(o, -1, c * bh * bw)


def weight_from_blocks(
    blocks: NDArray[np.float32], weight_shape: tuple[int, ...], block: tuple[int, int, int]
) -> NDArray[np.float32]:
    """Put blocks `[O, J, d]` back together as a weight of `weight_shape`, dropping the padding of tail blocks."""
    o, cc, kh, kw = as_conv_shape(weight_shape)
    (c, bh, bw) = block
    gc, gh, gw = -(-cc // c), -(-kh // bh), -(-kw // bw)
    grid = blocks.reshape(o, gc, gh, gw, c, bh, bw).transpose(0, 1, 4, 2, 5, 3, 6)
    whole = grid.reshape(o, gc * c, gh * bh, gw * bw)
    return np.ascontiguousarray(whole[:, :cc, :kh, :kw]).reshape(weight_shape)


def decode(
    codes: NDArray[np.integer], codebook: NDArray[np.float32], weight_shape: tuple[int, ...], config: ProductConfig
) -> NDArray[np.float32]:
    """Return the fp32 weight of `weight_shape` that `codes` `[M, O, J]` and `codebook` `[M, K, d]` stand for.

    Additive codebooks (Babenko and Lempitsky, 2014): a block is the sum of one centroid of each codebook.
    """
    blocks = codebook[0][codes[0]]
    for m in range(1, config.codebooks):
        blocks = blocks + codebook[m][codes[m]]
    return weight_from_blocks(blocks, weight_shape, config.block)


def tensors_of(
    codes: NDArray[np.integer], codebook: NDArray[np.floating], config: ProductConfig
) -> dict[str, NDArray[Any]]:
    """Return the tensors that keep codes `[M, O, J]` and codebooks `[M, K, d]`, by role."""
    return {"codes": pack_codes(codes, config.code_bits), **codebook_tensors(codebook, config)}


def codebook_tensors(codebook: NDArray[np.floating], config: ProductConfig) -> dict[str, NDArray[Any]]:
    """Return the tensors that keep a codebook `[M, K, d]`, by role, its numbers rounded to what they can hold."""
    values = codebook.astype(np.float32)
    if config.codebook_dtype == "int8":
        largest = np.abs(values).max(axis=(1, 2))
        # A codebook of zeros, or of numbers too small for a scale, is kept as zeros.
        scale = (np.maximum(largest, np.finfo(np.float32).tiny * INT8_MAX) / INT8_MAX).astype(np.float32)
        integers = np.clip(np.rint(values / scale[:, None, None]), -INT8_MAX, INT8_MAX).astype(np.int8)
        return {"codebook": integers, "codebook_scale": scale}
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float16)
    error = np.linalg.norm(rounded.astype(np.float64) - values)
    lossless = error <= MAX_ROUNDING * np.linalg.norm(values.astype(np.float64))
    return {"codebook": rounded if lossless else values}


def codebook_values(tensors: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
    """Return the fp32 codebook `[M, K, d]` that the tensors of `codebook_tensors` keep."""
    values = tensors["codebook"].astype(np.float32)
    return values * tensors["codebook_scale"][:, None, None] if "codebook_scale" in tensors else values


def rounded_codebook(codebook: NDArray[np.floating], config: ProductConfig) -> NDArray[np.float32]:
    """Return a codebook `[M, K, d]` with the numbers that a file would keep."""
    return codebook_values(codebook_tensors(codebook, config))
