"""Compression from beginning to end, as it is called from Python and the command line: files, and plans of them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from torch import nn

from pyquant.choose import Recipe
from pyquant.classes import ClassName
from pyquant.console import Progress
from pyquant.job import Job
from pyquant.learn.calibration import Source, is_path
from pyquant.learn.methods import DEFAULT_METHOD
from pyquant.planning import Plan
from pyquant.preprocessing import Preprocessing
from pyquant.report import Report
from pyquant.settings import Settings
from pyquant.storage import check_writable
from pyquant.targets import Target, check_possible, targets_of


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
    settings = Settings(
        recipe=recipe or Recipe(),
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        samples=samples,
        seed=seed,
        threads=threads,
        finetune_steps=finetune_steps,
        finetune_minutes=finetune_minutes,
        device=device,
    )
    check_writable(out, inputs=[calibration] if is_path(calibration) else [])
    job = Job(module, calibration, settings, progress or _silent)
    return job.compress(out, _one_target(job, target_bytes, target_ratio))


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
    finetune_steps: int | None = None,
    finetune_minutes: float | None = None,
    device: str = "cpu",
    progress: Progress | None = None,
) -> Plan:
    """Return what `compress` would make of the same arguments, in much less time, and write nothing.

    Raises:
        ConfigError, CaptureError, InputError: as `compress` would.
    """
    settings = Settings(
        recipe=recipe or Recipe(),
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        samples=samples,
        seed=seed,
        threads=threads,
        finetune_steps=finetune_steps,
        finetune_minutes=finetune_minutes,
        device=device,
    )
    job = Job(module, calibration, settings, progress or _silent)
    return job.plan(_one_target(job, target_bytes, target_ratio))


def _one_target(job: Job, target_bytes: int | None, target_ratio: float | None) -> int | None:
    """Return the bytes of the file that is asked for, None where the recipe decides; refuse what is not possible."""
    sizes = [] if target_bytes is None else [target_bytes]
    ratios = [] if target_ratio is None else [target_ratio]
    targets = _possible(job, targets_of(job.network.graph, sizes, ratios))
    return targets[0].bytes if targets else None


def _possible(job: Job, targets: list[Target]) -> list[Target]:
    """Return the targets, all of which are possible."""
    if targets:
        check_possible(targets, *job.possible_sizes())
    return targets


def _silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""
