"""The network of a file, ready to run on the native core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyquant import _core
from pyquant.codecs import ProductConfig
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile, read_model
from pyquant.graph import Graph, GraphInput, Network, Weight
from pyquant.pictures import read_picture

PRECISIONS = ("exact",)
MAX_THREADS = 1024


def load(path: str | os.PathLike[str], threads: int | None = None, precision: str = "exact") -> Model:
    """Return the network of a `.pqmodel`, ready to run.

    Args:
        path: the file.
        threads: threads of one run; by default as many as the process may use (affinity and control group).
        precision: "exact", fp32 throughout.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not a valid `.pqmodel`.
        ConfigError: an unknown precision or an impossible number of threads.
    """
    check_options(threads, precision)
    return Model(read_model(Path(path)), threads=threads, precision=precision)


def check_options(threads: int | None, precision: str) -> None:
    """Raise ConfigError for an unknown precision or an impossible number of threads."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got '{precision}'")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads: expected 1 to {MAX_THREADS}, got {threads}")


class Model:
    """A network on the native core. It may be called from several threads at once, and again after a fork."""

    def __init__(
        self,
        file: ModelFile,
        *,
        threads: int | None = None,
        precision: str = "exact",
        isa: str | None = None,
        kernels: str = "auto",
    ) -> None:
        """Prepare the network of `file`.

        Args:
            file: the contents of a `.pqmodel`.
            threads: threads of one run; None for all that the process may use.
            precision: "exact", fp32 throughout.
            isa: one of `_core.available_isas()`; None for the one that PYQUANT_ISA names, else the best.
            kernels: "auto", or "decode", "winograd" or "table" to restrict compressed layers to one path, where they have
                it, for tests and benchmarks.

        Raises:
            ConfigError: an option is unknown.
            InputError: the instruction set cannot run here.
        """
        check_options(threads, precision)
        self.file = file
        self.precision = precision
        self._graph = file.network.graph
        self._core = _to_core(file.network, threads or _core.default_threads(), isa or "", kernels)

    @property
    def inputs(self) -> tuple[GraphInput, ...]:
        """The network's inputs: name, shape with the batch first (None: any size), and default shape."""
        return self._graph.inputs

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of the network's outputs."""
        return self._graph.outputs

    @property
    def isa(self) -> str:
        """The instruction set whose kernels run."""
        return str(self._core.isa)

    @property
    def threads(self) -> int:
        """The threads of one run."""
        return int(self._core.threads)

    def __call__(self, *inputs: ArrayLike) -> NDArray[np.float32] | dict[str, NDArray[np.float32]]:
        """Run the network.

        Args:
            inputs: a float32 array for each input, images as `[N, C, H, W]`.

        Returns:
            The output as a float32 array, or a dict by output name where there are several.

        Raises:
            InputError: an array's number, dtype or shape does not fit.
        """
        results = self._core.run(*self._prepare(inputs))
        return results[0] if len(results) == 1 else dict(zip(self.outputs, results, strict=True))

    def predict(
        self, pictures: Sequence[str | os.PathLike[str] | NDArray[np.uint8]], topk: int = 5
    ) -> list[list[dict[str, Any]]]:
        """Name what pictures show.

        Args:
            pictures: paths, or uint8 RGB arrays `[H, W, 3]`; each is resized, cropped and normalised as the file says.
            topk: how many classes to return for each.

        Returns:
            Per picture a list of `{"class": name, "probability": float}`, best first. A class without a name is called
            by its number.

        Raises:
            InputError: a picture cannot be read, or the network is not a classifier of pictures.
        """
        if topk < 1:
            raise InputError(f"topk: expected at least 1, got {topk}")
        preprocessing = self.file.preprocessing
        if preprocessing is None:
            raise InputError("the file says nothing of preprocessing; call the model with an array instead")
        results = []
        for picture in pictures:
            pixels = picture if isinstance(picture, np.ndarray) else read_picture(picture)
            logits = self(preprocessing(pixels)[None])
            if isinstance(logits, dict) or logits.ndim != 2:
                raise InputError("the network's output is not a score per class; call the model with an array instead")
            results.append(self._best(logits[0], topk))
        return results

    def profile(self, *inputs: ArrayLike) -> dict[str, Any]:
        """Run once to warm up and once more to time each step.

        Returns:
            `{"steps": [{"name", "op", "kernel", "ms", "share"}]}`, share being the part of the whole run, 0 to 1.
        """
        plan, arrays = self._prepare(inputs)
        self._core.run(plan, arrays)
        steps = self._core.profile(plan, arrays)
        total = sum(step["ms"] for step in steps) or 1.0
        return {"steps": [{**step, "share": step["ms"] / total} for step in steps]}

    def _prepare(self, inputs: Sequence[ArrayLike]) -> tuple[_core.Plan, list[NDArray[np.float32]]]:
        """Return the plan for inputs of these shapes, and the inputs as contiguous arrays."""
        if len(inputs) != len(self.inputs):
            raise InputError(f"the network takes {len(self.inputs)} inputs, got {len(inputs)}")
        arrays = []
        for declared, given in zip(self.inputs, inputs, strict=True):
            array = np.asarray(given)
            if array.dtype != np.float32:
                raise InputError(f"input '{declared.name}': expected float32, got {array.dtype}; convert it first")
            declared.check(array.shape)
            arrays.append(np.ascontiguousarray(array))
        shapes = [array.shape for array in arrays]
        plan = self._core.find_plan(shapes)
        if plan is None:
            inferred = self._graph.infer_shapes(shapes)
            plan = self._core.make_plan([inferred[name] for name in _value_names(self._graph)])
        return plan, arrays

    def _best(self, logits: NDArray[np.float32], topk: int) -> list[dict[str, Any]]:
        exponentials = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:topk]
        names = self.file.classes
        return [{"class": names[i].name if names else str(i), "probability": float(probabilities[i])} for i in best]


def _value_names(graph: Graph) -> list[str]:
    """Return every value of the graph; the core knows them by their position here."""
    return [i.name for i in graph.inputs] + [value for node in graph.nodes for value in node.outputs]


def _to_core(network: Network, threads: int, isa: str, kernels: str) -> _core.Model:
    number = {name: i for i, name in enumerate(_value_names(network.graph))}
    weights: dict[str, Weight] = {}
    for _, weight in network.graph.weighted():
        weights.setdefault(weight.name, weight)
    position = {name: i for i, name in enumerate(weights)}
    nodes = [
        {
            "op": node.op,
            "name": node.name,
            "inputs": [number[value] for value in node.inputs],
            "outputs": [number[value] for value in node.outputs],
            "attributes": dict(node.attributes),
            "weight": None if node.weight is None else position[node.weight.name],
            "scale": network.own(node, "scale"),
            "bias": network.own(node, "bias"),
        }
        for node in network.graph.nodes
    ]
    return _core.Model(
        weights=[_weight_to_core(network, weight) for weight in weights.values()],
        nodes=nodes,
        inputs=[number[i.name] for i in network.graph.inputs],
        outputs=[number[name] for name in network.graph.outputs],
        num_values=len(number),
        threads=threads,
        isa=isa,
        kernels=kernels,
    )


def _weight_to_core(network: Network, weight: Weight) -> dict[str, Any]:
    codec = weight.codec
    if isinstance(codec, ProductConfig):
        return {
            "shape": weight.shape,
            "block": codec.block,
            "bits": codec.code_bits,
            "codes": network.tensors[weight.tensor("codes")],
            "codebook": np.ascontiguousarray(network.codebook(weight)),
        }
    return {"shape": weight.shape, "dense": np.ascontiguousarray(network.weight(weight))}
