"""The network of a file, ready to run on the native core."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pyquant import _core, tuning
from pyquant.codecs import ProductConfig, ScalarConfig, SparseConfig
from pyquant.detector import DetectorPreprocessing, detections_on
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile, read_model
from pyquant.graph import GraphInput, Network, Node, Weight
from pyquant.pictures import read_picture
from pyquant.shapes import Shape

Picture = str | os.PathLike[str] | NDArray[np.uint8]

PRECISIONS = ("exact", "fast")
MAX_THREADS = 1024
MAX_BUDGET = 1 << 48  # bytes
TUNING_TURNS = 2  # in which every kernel is measured once: a machine's speed drifts


def load(
    path: str | os.PathLike[str], threads: int | None = None, precision: str = "exact", memory_budget: int = 0
) -> Model:
    """Return the network of a `.pqmodel`, ready to run.

    Args:
        path: the file.
        threads: threads of one run; by default as many as the process may use (affinity and control group).
        precision: "exact", fp32 throughout, or "fast", layers in 8-bit integers where that is faster. Ranges of
            activations are those of the file; without any, they are measured in each run, which takes time.
        memory_budget: bytes that the model may spend on decoded weights, where kernels would decode them again in each
            run; outputs are the same. None are kept by default.

    Raises:
        InputError: the file cannot be read.
        FormatError: it is not a valid `.pqmodel`.
        ConfigError: an unknown precision, an impossible number of threads or a negative budget.
    """
    check_options(threads, precision, memory_budget)
    return Model(read_model(Path(path)), threads=threads, precision=precision, memory_budget=memory_budget)


def check_options(threads: int | None, precision: str, memory_budget: int = 0) -> None:
    """Raise ConfigError for an unknown precision, an impossible number of threads or a negative budget."""
    if precision not in PRECISIONS:
        raise ConfigError(f"precision: expected one of {', '.join(PRECISIONS)}, got '{precision}'")
    if threads is not None and not 1 <= threads <= MAX_THREADS:
        raise ConfigError(f"threads: expected 1 to {MAX_THREADS}, got {threads}")
    if not 0 <= memory_budget <= MAX_BUDGET:
        raise ConfigError(f"memory_budget: expected 0 to {MAX_BUDGET} bytes, got {memory_budget}")


class Model:
    """A network on the native core. It may be called from several threads at once, and again after a fork."""

    def __init__(
        self,
        file: ModelFile,
        *,
        threads: int | None = None,
        precision: str = "exact",
        memory_budget: int = 0,
        isa: str | None = None,
        kernel: str | None = None,
    ) -> None:
        """Prepare the network of `file`.

        Args:
            file: the contents of a `.pqmodel`.
            threads: threads of one run; None for all that the process may use.
            precision: "exact" or "fast", see `load`.
            memory_budget: bytes for decoded weights, see `load`.
            isa: one of `_core.available_isas()`; None for the one that PYQUANT_ISA names, else the best.
            kernel: one of `_core.kernel_names(precision == "fast")`, to restrict layers to it where they have it, for
                tests and benchmarks; None for the fastest of each layer, as far as it is known.

        Raises:
            ConfigError: an option is unknown.
            InputError: the instruction set cannot run here.
        """
        check_options(threads, precision, memory_budget)
        self.file = file
        self.precision = precision
        known = _core.kernel_names(precision == "fast")
        if kernel is not None and kernel not in known:
            raise ConfigError(f"kernel: expected one of {', '.join(known)}, got '{kernel}'")
        self._graph = file.network.graph
        self._kernel = kernel
        self._core = _to_core(
            file.network,
            fast=precision == "fast",
            threads=threads or _core.default_threads(),
            isa=isa or "",
            kernel=kernel or "",
            memory_budget=memory_budget,
        )

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

    @property
    def kept_bytes(self) -> int:
        """Bytes of weights that are kept decoded, of the memory budget; known when the model has been run."""
        return self._core.kept_bytes

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

    @property
    def is_detector(self) -> bool:
        """Whether the network finds things in pictures, instead of naming the whole."""
        return isinstance(self.file.preprocessing, DetectorPreprocessing)

    def detect(self, pictures: Sequence[Picture]) -> list[dict[str, NDArray[Any]]]:
        """Find what pictures show, one picture after the other: what is found in one does not depend on the others.

        Args:
            pictures: paths, or uint8 RGB arrays `[H, W, 3]` of any sizes.

        Returns:
            Per picture `boxes` float32 `[D, 4]` (left, top, right, bottom, in its pixels), `labels` int64 `[D]` (0, the
            background, is never found by a network of two stages) and `scores` float32 `[D]`, best first; of a network
            with masks, `masks` bool `[D, H, W]`, true where the probability is above one half.

        Raises:
            InputError: a picture cannot be read, or the network is not a detector.
        """
        preprocessing = self.file.preprocessing
        if not isinstance(preprocessing, DetectorPreprocessing):
            raise InputError("the file does not hold a detector; use predict, or call the model with an array")
        results = []
        for picture in pictures:
            pixels = _pixels(picture)
            image, size = preprocessing(pixels)
            found = self(image[None], size[None])
            rows, masks = (found, None) if isinstance(found, np.ndarray) else (found[name] for name in self.outputs)
            assert rows is not None
            height, width = pixels.shape[:2]
            results.append(detections_on((height, width), preprocessing.resized(height, width), rows, masks))
        return results

    def predict(self, pictures: Sequence[Picture], topk: int = 5) -> list[Any]:
        """Name what pictures show, or find it.

        Args:
            pictures: paths, or uint8 RGB arrays `[H, W, 3]`; each is resized, cropped and normalised as the file says.
            topk: how many classes to return for each; a detector returns all that it finds.

        Returns:
            Per picture a list of `{"class": name, "probability": float}`, best first. A class without a name is called
            by its number. Of a detector, what `detect` returns.

        Raises:
            InputError: a picture cannot be read, or the network is neither a classifier of pictures nor a detector.
        """
        if self.is_detector:
            return self.detect(pictures)
        if topk < 1:
            raise InputError(f"topk: expected at least 1, got {topk}")
        preprocessing = self.file.cropped
        results = []
        for picture in pictures:
            logits = self(preprocessing(_pixels(picture))[None])
            if isinstance(logits, dict) or logits.ndim != 2:
                raise InputError("the network's output is not a score per class; call the model with an array instead")
            results.append(self._best(logits[0], topk))
        return results

    def profile(self, *inputs: ArrayLike) -> dict[str, Any]:
        """Run once to warm up and once more to time each step.

        Returns:
            `{"peak_gmacs", "peak8_gmacs", "steps": [{"name", "op", "kernel", "candidates", "ms", "share", "gmacs",
            "of_peak"}]}`.
            `candidates` are the kernels that could have been chosen; `share` is the part of the whole run, 0 to 1;
            `gmacs` are the multiply-accumulates of the dense layer, in 1e9 a second, and `of_peak` is their part of
            what all threads can reach: of `peak_gmacs`, fp32 multiply-adds in registers, or for kernels in integers
            of `peak8_gmacs`, 8-bit products with all that they need in the first-level cache. Both are None for steps
            without a weight; kernels that save multiplications can exceed the peak.
        """
        plan, arrays = self._prepare(inputs)
        self._core.run(plan, arrays)
        steps = self._core.profile(plan, arrays)
        total = sum(step["ms"] for step in steps) or 1.0
        peak, peak8 = (measure(self.isa) * self.threads for measure in (_core.peak_gmacs, _core.peak8_gmacs))
        integer = set(_core.kernel_names(True)) - set(_core.kernel_names(False))
        macs = self._graph.macs([array.shape for array in arrays])
        for step in steps:
            gmacs = macs[step["name"]] / step["ms"] / 1e6 if step["name"] in macs and step["ms"] > 0 else None
            of_peak = gmacs and gmacs / (peak8 if step["kernel"] in integer else peak)
            step |= {"share": step["ms"] / total, "gmacs": gmacs, "of_peak": of_peak}
        return {"peak_gmacs": peak, "peak8_gmacs": peak8, "steps": steps}

    def tune(self, *inputs: ArrayLike, seconds: float = 10.0) -> list[dict[str, Any]]:
        """Measure the kernels of each layer for inputs of these shapes; use the fastest from now on, and remember it.

        The whole network runs with one kernel after the other, so that each layer is measured with caches as they are
        in use. Later models in other processes on this machine choose the same; see `pyquant.tuning`.

        Args:
            inputs: as for a call.
            seconds: how long to measure; each kernel is measured at least twice, however long that takes.

        Returns:
            Per layer that has a choice `{"name", "kernel", "ms": {kernel: the shortest time}}`.

        Raises:
            ConfigError: `seconds` is not positive, or the model was restricted to one kernel.
            InputError: an array does not fit, or the choice cannot be written to the cache; it is used nevertheless.
        """
        if not seconds > 0:
            raise ConfigError(f"seconds: expected a positive number, got {seconds}")
        if self._kernel is not None:
            raise ConfigError(f"the model was restricted to the kernel '{self._kernel}': there is nothing to choose")
        _, arrays = self._prepare(inputs)
        shapes = [array.shape for array in arrays]
        times: dict[str, dict[str, float]] = {}
        kernels = _core.kernel_names(self.precision == "fast")
        for turn in range(TUNING_TURNS * len(kernels)):
            plan = self._make_plan(shapes, dict.fromkeys(self._weighted(), kernels[turn % len(kernels)]))
            end = monotonic() + seconds / (TUNING_TURNS * len(kernels))
            self._core.run(plan, arrays)
            while True:
                for step in self._core.profile(plan, arrays):
                    if len(step["candidates"]) > 1:
                        layer = times.setdefault(step["name"], {})
                        layer[step["kernel"]] = min(step["ms"], layer.get(step["kernel"], step["ms"]))
                if monotonic() >= end:
                    break
        fastest = {name: min(layer, key=layer.__getitem__) for name, layer in times.items()}
        self._make_plan(shapes, fastest)
        keys = self._tuning_keys(shapes)
        choices = {keys[name]: kernel for name, kernel in fastest.items()}
        tuning.remember(self.isa, self.threads, self.precision, choices)
        return [{"name": name, "kernel": fastest[name], "ms": layer} for name, layer in times.items()]

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
            plan = self._make_plan(shapes, {} if self._kernel else self._remembered_kernels(shapes))
        return plan, arrays

    def _make_plan(self, shapes: Sequence[Shape], kernels: Mapping[str, str]) -> _core.Plan:
        """Make the plan for inputs of these shapes, with kernels by layer where they apply."""
        inferred = self._graph.infer_shapes(shapes)
        return self._core.make_plan([inferred[name] for name in self._graph.values()], dict(kernels))

    def _remembered_kernels(self, shapes: Sequence[Shape]) -> dict[str, str]:
        if not (known := tuning.remembered(self.isa, self.threads, self.precision)):
            return {}
        return {name: known[key] for name, key in self._tuning_keys(shapes).items() if key in known}

    def _tuning_keys(self, shapes: Sequence[Shape]) -> dict[str, str]:
        inferred = self._graph.infer_shapes(shapes)
        return {
            name: tuning.layer_key(node, [inferred[value] for value in node.inputs])
            for name, node in self._weighted().items()
        }

    def _weighted(self) -> dict[str, Node]:
        """Return the layers that have a weight, by name."""
        return {node.name: node for node, _ in self._graph.weighted()}

    def _best(self, logits: NDArray[np.float32], topk: int) -> list[dict[str, Any]]:
        exponentials = np.exp(logits.astype(np.float64) - logits.max())
        probabilities = exponentials / exponentials.sum()
        best = np.argsort(-probabilities, kind="stable")[:topk]
        names = self.file.classes
        return [{"class": names[i].name if names else str(i), "probability": float(probabilities[i])} for i in best]


def _pixels(picture: Picture) -> NDArray[np.uint8]:
    return picture if isinstance(picture, np.ndarray) else read_picture(picture)


def _to_core(network: Network, *, fast: bool, threads: int, isa: str, kernel: str, memory_budget: int) -> _core.Model:
    # The core knows a value by its position.
    number = {name: i for i, name in enumerate(network.graph.values())}
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
        fast=fast,
        ranges=network.activation_ranges if fast else None,
        threads=threads,
        isa=isa,
        kernel=kernel,
        memory_budget=memory_budget,
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
    if isinstance(codec, ScalarConfig):
        return {"shape": weight.shape, "bits": codec.bits, **network.tensors_of(weight)}
    if isinstance(codec, SparseConfig):
        patterns = codec.unit_patterns().astype(np.uint8)
        return {"shape": weight.shape, "bits": codec.bits, "patterns": patterns, **network.tensors_of(weight)}
    return {"shape": weight.shape, "dense": np.ascontiguousarray(network.weight(weight))}
