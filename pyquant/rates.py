"""Rates: how the bits per weight that a rule asks for are shared out among the layers that it names.

Halving the steps of a layer costs each of its weights a bit and quarters its error, which is `2^(-2 r)` at r bits; the
network's outputs get `a 2^(-2 p r)` of it, a and p being measured (`pyquant.sensitivity`). Of all rates of the same
mean over n weights of each layer, those cause the least error for which `a 2^(-2 p r) / n` is the same everywhere, as
far as rates are possible (reverse water-filling; Cover and Thomas, "Elements of Information Theory", 10.3.3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import floor, log2, prod

from pyquant.choose import Choice
from pyquant.codecs import CodedConfig, DenseConfig, ProductConfig, ScalarConfig
from pyquant.codecs.scalar import MAX_BITS
from pyquant.graph import Graph
from pyquant.sensitivity import LEAST_FACTOR, Curves

LEAST, MOST = 0.2, 7.0  # bits per weight, of grids
USUAL_BITS = 4  # of a code, for low rates
SPARE_BITS = 2.5  # of a code beyond the rate, so that rare weights lie within their grid
LEVELS = (-100.0, 200.0)  # between which the common level lies, in bits
HALVINGS = 60  # of that interval


def sharing(choices: Mapping[str, Choice]) -> list[tuple[CodedConfig, list[str]]]:
    """Return the weights that share a rate, as they were chosen for the same one."""
    groups: dict[CodedConfig, list[str]] = {}
    for name, choice in choices.items():
        config = choice.codec
        if not isinstance(config, DenseConfig) and config.rate:
            groups.setdefault(config, []).append(name)
    return [(config, names) for config, names in groups.items() if len(names) > 1]


def with_shared_rates(choices: Mapping[str, Choice], graph: Graph, curves: Curves) -> dict[str, Choice]:
    """Return the choices in which layers that share a rate have it on average, each as much as suits the outputs.

    Args:
        choices: by the weight's name.
        graph: of the network.
        curves: of the weights that share a rate, for their shapes of blocks.
    """
    sizes = {weight.name: prod(weight.shape) for _, weight in graph.weighted()}
    result = dict(choices)
    for config, names in sharing(choices):
        of_names = {name: curves[name, config.block] for name in names}
        factors = {name: curve.factor for name, curve in of_names.items()}
        (exponent,) = {curve.exponent for curve in of_names.values()}
        for name, rate in shared_rates(config.rate, factors, sizes, _most(config), exponent).items():
            result[name] = Choice(codec=_at_own_rate(config, rate))
    return result


def at_rate(rate: float, least_bits: int = USUAL_BITS) -> ScalarConfig:
    """Return the grid for so many bits per weight, four digits of it, with levels enough that rare weights have one."""
    bits = min(MAX_BITS, max(least_bits, floor(rate + SPARE_BITS)))
    return ScalarConfig(bits=bits, rate=rounded(rate))


def rounded(rate: float) -> float:
    """Return a rate of four digits, which a header has room for."""
    return float(f"{rate:.4g}")


def _most(config: CodedConfig) -> float:
    """Return the largest rate of a layer: of codebooks, that of packed codes."""
    return config.most_bits if isinstance(config, ProductConfig) else MOST


def _at_own_rate(config: CodedConfig, rate: float) -> CodedConfig:
    if isinstance(config, ScalarConfig):
        return at_rate(rate, config.bits)
    assert isinstance(config, ProductConfig)
    return replace(config, rate=min(rounded(rate), config.most_bits))


def shared_rates(
    mean: float, factors: Mapping[str, float], sizes: Mapping[str, int], most: float = MOST, exponent: float = 1.0
) -> dict[str, float]:
    """Return the rates of layers, by name, that have this mean over all their weights, and of these the best ones.

    Args:
        mean: bits per weight.
        factors: what the outputs' error gets of each layer, in units of the layer's own.
        sizes: the number of weights of each.
        most: the largest rate of a layer.
        exponent: to which a layer's own error is raised before.
    """
    own = {name: log2(max(factor, LEAST_FACTOR) / sizes[name]) / (2 * exponent) for name, factor in factors.items()}
    total = mean * sum(sizes[name] for name in factors)
    low, high = LEVELS

    def at(level: float) -> dict[str, float]:
        return {name: min(max(level + value, min(LEAST, most)), most) for name, value in own.items()}

    for _ in range(HALVINGS):
        middle = (low + high) / 2
        enough = sum(rate * sizes[name] for name, rate in at(middle).items()) >= total
        low, high = (low, middle) if enough else (middle, high)
    return at(high)
