"""The codecs: ways to store the weights of a layer."""

from __future__ import annotations

from pyquant.codecs.dense import DenseConfig
from pyquant.codecs.product import ProductConfig

CodecConfig = DenseConfig | ProductConfig

CODEC_CONFIGS: dict[str, type[DenseConfig] | type[ProductConfig]] = {"dense": DenseConfig, "product": ProductConfig}

__all__ = ["CODEC_CONFIGS", "CodecConfig", "DenseConfig", "ProductConfig"]
