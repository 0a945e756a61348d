"""Whether a method suits what it is to code, and what it may choose from for a target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pyquant.candidates import Candidates
from pyquant.choose import Choice
from pyquant.codecs import CODEC_CONFIGS, CodecConfig, DenseConfig, ProductConfig, codec_name
from pyquant.errors import ConfigError
from pyquant.graph import Graph
from pyquant.learn.methods import DEFAULT_METHOD, Method, coder_of
from pyquant.report import bit_operations
from pyquant.settings import Settings

USUAL_CODECS = ("product", "scalar")  # that a size target chooses from


def check_method(
    choices: Mapping[str, Choice], method: Method, name: str, candidates: Sequence[type[CodecConfig]]
) -> None:
    """Raise ConfigError where a method codes no layer, or one has a rate or additive codebooks that it cannot learn.

    Args:
        choices: the recipe's.
        method: of the learner.
        name: the method's.
        candidates: the codecs that a target chooses from; () without one.
    """
    coded = [(layer, choice.codec) for layer, choice in choices.items() if not isinstance(choice.codec, DenseConfig)]
    kinds = {*candidates, *(type(codec) for _, codec in coded)}
    if kinds and name != DEFAULT_METHOD and method.codec not in kinds:
        raise ConfigError(
            f"method '{name}' codes layers in the codec '{codec_name(method.codec)}', and there is none; give the "
            f"preset '{method.preset}' or a rule, or leave the method out"
        )
    for layer, config in coded:
        if config.rate and not coder_of(config, method).reaches_rates:
            raise ConfigError(
                f"layer '{layer}': codes of {config.rate:g} bits per weight; method '{name}' cannot aim at a rate, use "
                f"'{DEFAULT_METHOD}'"
            )
        most = coder_of(config, method).max_codebooks
        if isinstance(config, ProductConfig) and config.codebooks > most:
            raise ConfigError(
                f"layer '{layer}': {config.codebooks} additive codebooks; method '{name}' learns {most} at most"
            )


def max_operations(graph: Graph, settings: Settings) -> int | None:
    """Return the most bit operations for one input that are asked for; `graph` is of the dense network."""
    most = settings.max_bit_operations
    return None if most is None else int(most * bit_operations(graph) if most < 1 else most)


def candidates_of(settings: Settings, method: Method) -> Candidates:
    """Return what a size target chooses from: the codecs that are asked for, or the usual ones, or another method's."""
    own = USUAL_CODECS if settings.method == DEFAULT_METHOD else (codec_name(method.codec),)
    codecs = tuple(CODEC_CONFIGS[name] for name in settings.recipe.codecs or own)
    bounded = settings.max_bit_operations is not None
    return Candidates(codecs=codecs, max_codebooks=method.max_codebooks, small_grids=bounded)
