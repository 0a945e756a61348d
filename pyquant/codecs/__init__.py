"""The codecs: ways to store the weights of a layer."""

from __future__ import annotations

from pyquant.codecs.dense import DenseConfig
from pyquant.codecs.product import ProductConfig
from pyquant.codecs.scalar import ScalarConfig
from pyquant.codecs.sparse import SparseConfig

CodedConfig = ProductConfig | ScalarConfig | SparseConfig  # those that make a weight smaller
CodecConfig = DenseConfig | CodedConfig

CODEC_CONFIGS: dict[str, type[CodecConfig]] = {
    "dense": DenseConfig,
    "product": ProductConfig,
    "scalar": ScalarConfig,
    "sparse": SparseConfig,
}


def codec_name(config: type[CodecConfig]) -> str:
    """Return the name, in files and rules, of the codec that a config is of."""
    return next(name for name, known in CODEC_CONFIGS.items() if known is config)


__all__ = [
    "CODEC_CONFIGS",
    "CodecConfig",
    "CodedConfig",
    "DenseConfig",
    "ProductConfig",
    "ScalarConfig",
    "SparseConfig",
    "codec_name",
]
