"""The engines that `bench` measures, one file each, and what each needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal, Protocol

from numpy.typing import NDArray

from pyquant.errors import ConfigError, MissingDependencyError
from pyquant.extras import EXTRA_OF

Arrays = Sequence[NDArray[Any]]
FileKind = Literal["pqmodel", "onnx", "onnx-int8", "safetensors"]


class Engine(Protocol):
    """A network loaded by one engine, for arrays of fixed shapes."""

    isa: str  # the instruction set, "" where the engine does not say

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs, in the order of the graph, for one float32 array per input."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """Where an engine's loader is, which libraries it needs, and what it reads."""

    module: str  # has load(path, shapes, threads, precision) -> Engine; ours takes the rest of `bench`'s options too
    libraries: tuple[str, ...] = ()
    file: FileKind = "onnx"
    precision: str = "fp32"  # "" : the one that `bench` was asked for


OWN = "pyquant"

ENGINES: dict[str, EngineSpec] = {
    OWN: EngineSpec(module="pyquant.engines.pyquant", file="pqmodel", precision=""),
    "torch": EngineSpec(module="pyquant.engines.torch", libraries=("torch",), file="safetensors"),
    "onnxruntime": EngineSpec(module="pyquant.engines.onnxruntime", libraries=("onnx", "onnxruntime")),
    "openvino": EngineSpec(module="pyquant.engines.openvino", libraries=("onnx", "openvino")),
    "openvino-bf16": EngineSpec(module="pyquant.engines.openvino", libraries=("onnx", "openvino"), precision="bf16"),
    "onnxruntime-int8": EngineSpec(
        module="pyquant.engines.onnxruntime", libraries=("onnx", "onnxruntime"), file="onnx-int8", precision="int8"
    ),
    "openvino-int8": EngineSpec(
        module="pyquant.engines.openvino",
        libraries=("onnx", "onnxruntime", "openvino"),  # ONNX Runtime quantizes for both
        file="onnx-int8",
        precision="int8",
    ),
}


def check_engines(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names of other engines, each once, checked.

    Raises:
        ConfigError: a name is none of theirs.
        MissingDependencyError: libraries are not installed; all are named.
    """
    names = tuple(dict.fromkeys(names))
    known = [name for name in ENGINES if name != OWN]
    if unknown := [name for name in names if name not in known]:
        raise ConfigError(f"unknown engine {', '.join(map(repr, unknown))}; known: {', '.join(known)}")
    needed = dict.fromkeys(library for name in names for library in ENGINES[name].libraries)
    if missing := [library for library in needed if find_spec(library) is None]:
        extras = ",".join(sorted({EXTRA_OF[library] for library in missing}))
        raise MissingDependencyError(
            f"cannot measure against {', '.join(names)}: {', '.join(missing)} not installed: "
            f"pip install 'pyquant-codec[{extras}]'"
        )
    return names


def load_engine(name: str, path: str, shapes: Sequence[tuple[int, ...]], threads: int, **options: Any) -> Engine:
    """Return the network in the file at `path`, loaded by an engine of `ENGINES` for inputs of these shapes."""
    engine: Engine = import_module(ENGINES[name].module).load(path, shapes, threads, **options)
    return engine
