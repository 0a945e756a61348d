"""The methods: ways to choose the codes and codebooks of a layer, one file each, and the registry of them."""

from __future__ import annotations

from pyquant.errors import ConfigError
from pyquant.learn.methods.abgd import Abgd
from pyquant.learn.methods.base import Method
from pyquant.learn.methods.gram import Gram
from pyquant.learn.methods.pqf import Pqf

METHODS: dict[str, Method] = {"gram": Gram(), "abgd": Abgd(), "pqf": Pqf()}
DEFAULT_METHOD = "gram"

__all__ = ["DEFAULT_METHOD", "METHODS", "Method", "method_called"]


def method_called(name: str) -> Method:
    """Return a method by its name; raise ConfigError, listing the known ones, for any other."""
    if (method := METHODS.get(name)) is None:
        raise ConfigError(f"unknown method '{name}'; known: {', '.join(METHODS)}")
    return method
