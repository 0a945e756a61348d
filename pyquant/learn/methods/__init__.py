"""The methods: ways to choose the codes of a layer, one file each, and the registry of them."""

from __future__ import annotations

from pyquant.codecs import CodedConfig, codec_name
from pyquant.errors import ConfigError
from pyquant.learn.methods.abgd import Abgd
from pyquant.learn.methods.base import Method
from pyquant.learn.methods.exactobs import ExactObs
from pyquant.learn.methods.gram import Gram
from pyquant.learn.methods.obq import Obq
from pyquant.learn.methods.pqf import Pqf

METHODS: dict[str, Method] = {"gram": Gram(), "abgd": Abgd(), "pqf": Pqf(), "obq": Obq(), "exactobs": ExactObs()}
DEFAULT_METHOD = "gram"
USUAL = ("gram", "obq", "exactobs")  # one for each codec: for layers that the method asked for does not code

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "coder_of", "method_called"]


def method_called(name: str) -> Method:
    """Return a method by its name; raise ConfigError, listing the known ones, for any other."""
    if (method := METHODS.get(name)) is None:
        raise ConfigError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    return method


def coder_of(config: CodedConfig, method: Method) -> Method:
    """Return the method that codes layers in a codec: `method`, or else the usual one for the codec.

    Raises:
        ConfigError: none does.
    """
    for known in (method, *(METHODS[name] for name in USUAL)):
        if isinstance(config, known.codec):
            return known
    raise ConfigError(f"no method codes layers in the codec '{codec_name(type(config))}', as '{config.setting}' wants")
