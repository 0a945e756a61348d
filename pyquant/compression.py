"""Compression from beginning to end: capture, choose, learn, write, check."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import pyquant
from pyquant import _core, console
from pyquant.capture import capture
from pyquant.capture.isolate import isolated, undisturbed
from pyquant.choose import Choice, Recipe, dense_reasons
from pyquant.classes import ClassName
from pyquant.codecs import ProductConfig
from pyquant.console import Progress
from pyquant.errors import ConfigError, InputError
from pyquant.file import ModelFile, check_classes, check_writable, read_model, write_model
from pyquant.graph import Graph, Network
from pyquant.learn.calibration import Calibration, Source, from_arrays, from_pictures, is_path, is_rereadable
from pyquant.learn.finetune import Effort, check_enough, finetuned
from pyquant.learn.layerwise import Learnt, Norm, learn
from pyquant.learn.methods import DEFAULT_METHOD, method_called
from pyquant.learn.methods.base import Method
from pyquant.learn.workers import Workers
from pyquant.planning import Plan, make_plan, target_size
from pyquant.preprocessing import Preprocessing
from pyquant.report import Report
from pyquant.runtime import MAX_THREADS
from pyquant.selfcheck import check_against_decoded, check_against_module
from pyquant.storage import checked_before_use

CHECKED_INPUTS = 4  # run by the self-check
ALL = 2**31  # calibration inputs
# The longest that fine-tuning writes about itself: what a size target leaves room for.
FINETUNE_ENTRY = {"steps": 10**7, "learning_rate": 0.000123456789, "precision": "bfloat16", "pictures": 10**7}

State = Mapping[str, torch.Tensor]


def compress(
    module: nn.Module,
    calibration: Source,
    *,
    out: str | os.PathLike[str],
    recipe: Recipe | None = None,
    method: str = DEFAULT_METHOD,
    input_shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[ClassName] | None = None,
    samples: int = 1024,
    seed: int = 0,
    threads: int | None = None,
    target_bytes: int | None = None,
    target_ratio: float | None = None,
    finetune_steps: int | None = None,
    finetune_minutes: float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Report:
    """Compress a trained network into a `.pqmodel` file, and check the file against the network.

    The same arguments give the same file, whatever `threads` is, on one machine; with fine-tuning, equal `threads` and
    steps do, on the CPU. The module is left as it was.

    Args:
        module: the network; it is captured in eval mode, for one float32 input `[N, C, H, W]`.
        calibration: inputs on which codebooks and batch-norm statistics are learnt, without labels: a float32 array or
            tensor `[N, C, H, W]`, an iterable of such, the path of a folder or zip file of pictures, or None: then all
            weights count the same, and `input_shape` is required.
        out: the file to write; one that exists is replaced once the new one has passed its check.
        recipe: preset and rules; by default `small-blocks`.
        method: how codes and codebooks are chosen, one of `pyquant.learn.methods.METHODS`.
        input_shape: `(C, H, W)`; by default that of the calibration inputs, or the crop of `preprocessing`.
        preprocessing: how a picture becomes an input, kept in the file; by default
            `Preprocessing.default_for(input_shape)` where the calibration is pictures, else nothing.
        classes: the classes in the order of the outputs, kept in the file.
        samples: how many calibration inputs are used at most: drawn by `seed` from pictures (sorted by name) or from an
            array, the first ones of an iterable. Fine-tuning takes all pictures of a path and all inputs of an array.
        seed: of every random choice, 0 or more.
        threads: by default as many as the process may use.
        target_bytes: the size of the file, header included: it is never larger, and at most 1 % smaller. Codecs are
            chosen for the least error of the outputs, by measured sensitivities; of `recipe`, only the rules count.
        target_ratio: or how many times smaller than the network in fp32 it is to be.
        finetune_steps: for how many steps codebooks, scales and biases are trained to give the outputs of `module`.
        finetune_minutes: or for how long; a timed warm-up turns it into a number of steps.
        device: where fine-tuning is done, `cpu` or `cuda`.
        progress: called now and then with what is being done, how much of it is done, and of how much.

    Raises:
        ConfigError: the recipe does not fit the network, an option is out of range, or no file has the target's size.
        CaptureError: the network cannot be described by our operations.
        InputError: the calibration, the network's weights or the path cannot be used, or the disk is full.
        SelfCheckError: the file did not compute what the network computes. Whatever is raised, no file is left.
    """
    effort = Effort(steps=finetune_steps, minutes=finetune_minutes, device=device)
    check_writable(out, inputs=[calibration] if is_path(calibration) else [])
    task = _task(
        module,
        calibration,
        recipe=recipe,
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=classes,
        samples=samples,
        seed=seed,
        threads=threads,
        target_bytes=target_bytes,
        target_ratio=target_ratio,
    )
    network = task.network
    tuning_inputs = task.inputs
    if effort:
        if is_rereadable(calibration):
            tuning_inputs = _open_calibration(calibration, task.preprocessing, ALL, seed)
        check_enough(tuning_inputs)
    norms = norms_of(network.graph, module.state_dict())
    how_tuned: dict[str, Any] = {}
    with Workers(threads or _core.default_threads()) as workers:
        choices: Mapping[str, Choice] = task.recipe.choose(network.graph)
        if task.target_bytes is not None:
            # What fine-tuning will write about itself is not known yet: its place is kept.
            kept = FINETUNE_ENTRY if effort else {}
            choices = task.plan(workers, progress or _silent, how_tuned=kept).choices
        learnt = learn(
            network,
            choices,
            seed=seed,
            workers=workers,
            method=task.method,
            calibration=task.inputs,
            norms=norms,
            progress=progress or _silent,
        )
    if effort and tuning_inputs is not None:
        learnt, how_tuned = finetuned(
            network,
            learnt,
            tuning_inputs,
            norms,
            effort=effort,
            seed=seed,
            threads=threads or _core.default_threads(),
            progress=progress or _silent,
        )
    model = task.model(learnt.network, choices, learnt.errors, how_tuned)
    with checked_before_use(out) as path:
        written = write_model(path, model)
        if task.target_bytes is not None and written > task.target_bytes:
            raise ConfigError(
                f"the file would have {written:,} bytes, more than the {task.target_bytes:,} asked for; give a target "
                f"size that is {written - task.target_bytes:,} bytes smaller"
            )
        error = _self_check(path, module, learnt, _check_batch(task.inputs, task.shape, seed), threads)
    return Report.of(out, model, max_relative_error=error)


def plan(
    module: nn.Module,
    calibration: Source,
    *,
    recipe: Recipe | None = None,
    method: str = DEFAULT_METHOD,
    input_shape: tuple[int, int, int] | None = None,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[ClassName] | None = None,
    samples: int = 1024,
    seed: int = 0,
    threads: int | None = None,
    target_bytes: int | None = None,
    target_ratio: float | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Return what `compress` would make of the same arguments, in much less time, and write nothing.

    Raises:
        ConfigError, CaptureError, InputError: as `compress` would.
    """
    task = _task(
        module,
        calibration,
        recipe=recipe,
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=classes,
        samples=samples,
        seed=seed,
        threads=threads,
        target_bytes=target_bytes,
        target_ratio=target_ratio,
    )
    with Workers(threads or _core.default_threads()) as workers:
        return task.plan(workers, progress or _silent)


def norms_of(graph: Graph, state: State) -> dict[str, Norm]:
    """Return the batch norms of a graph by module path, from the state dict of the module it was captured from."""
    norms = {}
    for node in graph.nodes:
        if name := node.state.norm:
            mean = _array(state[f"{name}.running_mean"])
            norms[name] = Norm(
                weight=_array(state[f"{name}.weight"]) if f"{name}.weight" in state else np.ones_like(mean),
                bias=_array(state[f"{name}.bias"]) if f"{name}.bias" in state else np.zeros_like(mean),
                input_bias=_array(state[node.state.bias]) if node.state.bias else np.zeros_like(mean),
                mean=mean,
                variance=_array(state[f"{name}.running_var"]),
                eps=node.state.eps,
            )
    return norms


def with_learnt(module: nn.Module, learnt: Learnt) -> nn.Module:
    """Return a copy of a module with the decoded weights and the batch norms as learnt, not folded.

    Batch norms that keep their statistics, and parts that the network does not use, stay as they are.
    """
    state = module.state_dict(keep_vars=True)
    new: dict[str, NDArray[np.float32]] = {}
    for node, weight in learnt.network.graph.weighted():
        new[node.state.weight or f"{node.name}.weight"] = learnt.network.weight(weight)
    for node in learnt.network.graph.nodes:
        if node.weight is not None and node.state.bias and not node.state.norm:
            bias = learnt.network.own(node, "bias")
            assert bias is not None
            new[node.state.bias] = bias
    for name, norm in learnt.norms.items():
        new |= {f"{name}.running_mean": norm.mean, f"{name}.running_var": norm.variance}
        if f"{name}.weight" in state:
            new |= {f"{name}.weight": norm.weight, f"{name}.bias": norm.bias}
    by_tensor = {id(state[key]): value for key, value in new.items()}  # a tied weight has several names
    result = isolated(module)
    # Assigned, not copied: the isolated module shares its parameters with the user's.
    entries = {key: torch.from_numpy(by_tensor[id(old)]) for key, old in state.items() if id(old) in by_tensor}
    result.load_state_dict({**result.state_dict(), **entries}, strict=True, assign=True)
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """What is to be compressed, and how: checked, and captured."""

    network: Network
    inputs: Calibration | None
    shape: tuple[int, int, int]
    preprocessing: Preprocessing | None
    classes: tuple[ClassName, ...]
    recipe: Recipe
    method: Method
    method_name: str
    seed: int
    target_bytes: int | None

    def model(
        self,
        network: Network,
        choices: Mapping[str, Choice],
        errors: Mapping[str, float],
        how_tuned: Mapping[str, Any],
    ) -> ModelFile:
        """Return the file that holds `network`, which is coded as `choices` say."""
        chosen: dict[str, Any] = self.recipe.to_json() | {"target_bytes": self.target_bytes}
        # With a target, the preset has no say.
        del chosen["target_bytes" if self.target_bytes is None else "preset"]
        return ModelFile(
            network=network,
            preprocessing=self.preprocessing,
            classes=self.classes,
            provenance={
                "source": "compress",
                "method": self.method_name,
                "objective": "weights alone" if self.inputs is None else "outputs on calibration inputs",
                "samples": 0 if self.inputs is None else self.inputs.count,
                "seed": self.seed,
                "pyquant": pyquant.__version__,
                **chosen,
                "dense": dense_reasons(self.network.graph, choices),
                "errors": dict(errors),
                **({"finetune": dict(how_tuned)} if how_tuned else {}),
            },
        )

    def plan(self, workers: Workers, progress: Progress, *, how_tuned: Mapping[str, Any] | None = None) -> Plan:
        """Return the plan for the target, or for the recipe where there is none."""
        return make_plan(
            self.network,
            self.recipe,
            self.inputs,
            target_bytes=self.target_bytes,
            model_of=partial(self.model, how_tuned=how_tuned or {}),
            seed=self.seed,
            workers=workers,
            progress=progress,
        )


def _task(
    module: nn.Module,
    calibration: Source,
    *,
    recipe: Recipe | None,
    method: str,
    input_shape: tuple[int, int, int] | None,
    preprocessing: Preprocessing | None,
    classes: Sequence[ClassName] | None,
    samples: int,
    seed: int,
    threads: int | None,
    target_bytes: int | None,
    target_ratio: float | None,
) -> _Task:
    recipe = recipe or Recipe()
    learner = method_called(method)
    _check_options(module, recipe, samples, seed, threads)
    if is_path(calibration):
        if input_shape is None and preprocessing is None:
            raise InputError("pictures need a size: give input_shape or preprocessing")
        preprocessing = preprocessing or Preprocessing.default_for(_checked_shape(input_shape))
    inputs = _open_calibration(calibration, preprocessing, samples, seed)
    if input_shape is None and inputs is None:
        raise InputError("without calibration, input_shape=(C, H, W) is required")
    if inputs is None:
        console.note("no calibration: codebooks are learnt on the weights alone, which costs accuracy")
    shape = _checked_shape(input_shape if inputs is None or input_shape is not None else inputs.shape)
    network = capture(module, shape)
    if inputs is not None:
        network.graph.infer_shapes([(1, *inputs.shape)])
    check_classes(network.graph, classes or ())
    _check_codebooks(recipe.choose(network.graph), learner.max_codebooks, method)
    return _Task(
        network=network,
        inputs=inputs,
        shape=shape,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        recipe=recipe,
        method=learner,
        method_name=method,
        seed=seed,
        target_bytes=target_size(network.graph, target_bytes, target_ratio),
    )


def _check_options(module: nn.Module, recipe: Recipe, samples: int, seed: int, threads: int | None) -> None:
    if not isinstance(module, nn.Module):
        raise InputError(f"module must be a torch.nn.Module, got {type(module).__name__}")
    if not isinstance(recipe, Recipe):
        raise ConfigError(f"recipe must be a Recipe, got {type(recipe).__name__}")
    for name, value, low, high in (
        ("samples", samples, 1, 2**31),
        ("seed", seed, 0, 2**63),
        ("threads", 1 if threads is None else threads, 1, MAX_THREADS),
    ):
        if not isinstance(value, int) or not low <= value <= high:
            raise ConfigError(f"{name} must be a whole number from {low} to {high}, got {value!r}")


def _check_codebooks(choices: Mapping[str, Choice], most: int, method: str) -> None:
    """Raise ConfigError where a layer was given more additive codebooks than the method can learn."""
    for layer, choice in choices.items():
        if isinstance(choice.codec, ProductConfig) and choice.codec.codebooks > most:
            raise ConfigError(
                f"layer '{layer}': {choice.codec.codebooks} additive codebooks; method '{method}' learns {most} at most"
            )


def _checked_shape(shape: Sequence[int] | None) -> tuple[int, int, int]:
    if shape is None or len(shape) != 3 or not all(isinstance(size, int) and size > 0 for size in shape):
        raise InputError(f"input_shape must be three sizes (C, H, W), got {shape!r}")
    channels, height, width = shape
    return channels, height, width


def _open_calibration(
    source: Source, preprocessing: Preprocessing | None, samples: int, seed: int
) -> Calibration | None:
    if source is None:
        return None
    if is_path(source):
        assert preprocessing is not None
        return from_pictures(source, preprocessing, samples=samples, seed=seed)
    return from_arrays(source, samples=samples, seed=seed)


def _check_batch(inputs: Calibration | None, shape: tuple[int, int, int], seed: int) -> NDArray[np.float32]:
    """Return the inputs of the self-check: the first calibration inputs, or else normally distributed numbers."""
    if inputs is not None:
        return inputs.load(0)[:CHECKED_INPUTS]
    return np.random.default_rng(seed).standard_normal((CHECKED_INPUTS, *shape), dtype=np.float32)


def _self_check(
    path: Path, module: nn.Module, learnt: Learnt, batch: NDArray[np.float32], threads: int | None
) -> float:
    """Return the largest relative difference of the file from PyTorch; raise SelfCheckError where it is too large."""
    written = replace(learnt, network=read_model(path).network)
    with undisturbed():
        return max(
            check_against_decoded(path, batch, threads=threads),
            check_against_module(path, with_learnt(module, written), batch, threads=threads),
        )


def _array(tensor: torch.Tensor) -> NDArray[np.float32]:
    return np.array(tensor.detach().to("cpu", torch.float32).numpy())


def _silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""
