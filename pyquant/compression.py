"""Compression from beginning to end, as it is called from Python and the command line: files, and plans of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TypeVar

from torch import nn

from pyquant.choose import Recipe
from pyquant.classes import ClassName
from pyquant.console import Progress
from pyquant.learn.calibration import Source, is_path
from pyquant.learn.methods import DEFAULT_METHOD, method_called
from pyquant.order import Order
from pyquant.outcome import Outcome
from pyquant.planning import Plan
from pyquant.preprocessing import Preprocessing
from pyquant.report import Report
from pyquant.settings import Settings

Number = TypeVar("Number", int, float)


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
    max_bit_operations: float | None = None,
    finetune_steps: int | None = None,
    finetune_minutes: float | None = None,
    device: str = "cpu",
    checkpoint: str | os.PathLike[str] | None = None,
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
        recipe: preset and rules; by default the preset of the method: `small-blocks`, of `obq` `int4`, of
            `exactobs` `half`.
        method: how codes are chosen, one of `pyquant.learn.methods.METHODS`; layers in a codec that it does not code
            are coded by `gram`, `obq` or `exactobs`.
        input_shape: `(C, H, W)`; by default that of the calibration inputs, or the crop of `preprocessing`. A detector
            has sizes and a preprocessing of its own, and takes neither.
        preprocessing: how a picture becomes an input, kept in the file; by default
            `Preprocessing.default_for(input_shape)` where the calibration is pictures, else nothing.
        classes: the classes in the order of the outputs, kept in the file.
        samples: how many calibration inputs are used at most: drawn by `seed` from pictures (sorted by name) or from an
            array, the first ones of an iterable. Fine-tuning takes all pictures of a path and all inputs of an array.
        seed: of every random choice, 0 or more.
        threads: by default as many as the process may use.
        target_bytes: the size of the file, header included: it is never larger, and at most 1 % smaller (of less than
            15 kB, 2 %). Codecs are chosen for the least error of the outputs, by measured sensitivities; of `recipe`,
            only `rules` and `codecs` count.
        target_ratio: or how many times smaller than the network in fp32 it is to be.
        max_bit_operations: the most for one input, or below 1 the share of those of the network in fp32: multiply-
            accumulates times the bits of a weight times 32, as `pyquant.report.bit_operations` counts them. Codecs are
            chosen as for a size, or for both where there is one.
        finetune_steps: for how many steps all that the file holds is trained to give the outputs of `module`.
        finetune_minutes: or for how long; a timed warm-up turns it into a number of steps.
        device: where fine-tuning is done, `cpu` or `cuda`.
        checkpoint: a folder, made if it is not there, in which to save what is done: each layer once it is learnt, and
            fine-tuning each minute. The same arguments then go on where a job was stopped, and give the same file. With
            other fine-tuning, or any where there was none, what was learnt before it is taken up.
        progress: called now and then with what is being done, how much of it is done, and of how much.

    Raises:
        ConfigError: the recipe does not fit the network, an option is out of range, or no file has the target's size.
        CaptureError: the network cannot be described by our operations.
        InputError: the calibration, the network's weights or the path cannot be used, or the disk is full; or the
            checkpoint is of another job: all that differs is named.
        SelfCheckError: the file did not compute what the network computes. Whatever is raised, no file is left.
    """
    settings = Settings(
        recipe=recipe or Recipe(preset=method_called(method).preset),
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        samples=samples,
        seed=seed,
        threads=threads,
        max_bit_operations=max_bit_operations,
        finetune_steps=finetune_steps,
        finetune_minutes=finetune_minutes,
        device=device,
    )
    order = Order(out=out, sizes=_given(target_bytes), ratios=_given(target_ratio), checkpoint=checkpoint)
    return _outcome(order, module, calibration, settings, progress).files[0].report


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
    max_bit_operations: float | None = None,
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
        recipe=recipe or Recipe(preset=method_called(method).preset),
        method=method,
        input_shape=input_shape,
        preprocessing=preprocessing,
        classes=tuple(classes or ()),
        samples=samples,
        seed=seed,
        threads=threads,
        max_bit_operations=max_bit_operations,
        finetune_steps=finetune_steps,
        finetune_minutes=finetune_minutes,
        device=device,
    )
    order = Order(out=None, sizes=_given(target_bytes), ratios=_given(target_ratio))
    return _outcome(order, module, calibration, settings, progress).plans[0]


def compress_sizes(
    module: nn.Module,
    calibration: Source,
    *,
    out: str | os.PathLike[str],
    target_bytes: Sequence[int] = (),
    target_ratios: Sequence[float] = (),
    labelled: str | os.PathLike[str] | None = None,
    page: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Compress a network to several sizes in one run: it is captured, and sensitivities are measured, once.

    Each file is the one that `compress` gives for its size, and is at its place as soon as it has passed its check.

    Args:
        module: the network.
        calibration: as for `compress`.
        out: the name of the files: `{bytes}` in it stands for the size that was asked for, `{ratio}` for the ratio.
        target_bytes: the sizes of the files; impossible ones are refused, all at once, before anything is learnt.
        target_ratios: or how many times smaller than the network in fp32 they are to be.
        labelled: pictures in class folders, on which accuracy is measured before and after.
        page: an HTML page to write about all files.
        checkpoint: as for `compress`.
        settings: all but the size, as the arguments of `compress` of the same names.
        progress: as for `compress`.

    Raises:
        ConfigError, CaptureError, InputError, SelfCheckError: as `compress`; files that were ready before stay.
        MissingDependencyError: a page needs matplotlib.
    """
    order = Order(
        out=out,
        sizes=tuple(target_bytes),
        ratios=tuple(target_ratios),
        labelled=labelled,
        page=page,
        checkpoint=checkpoint,
    )
    return _outcome(order, module, calibration, settings or Settings(), progress)


def compress_within(
    module: nn.Module,
    calibration: Source,
    *,
    out: str | os.PathLike[str],
    max_drop: float,
    labelled: str | os.PathLike[str],
    page: str | os.PathLike[str] | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> Outcome:
    """Compress a network to the smallest file whose top-1 falls by at most `max_drop` points on labelled pictures.

    Sizes are tried, at most `pyquant.drop.MAX_TRIALS` of them, until the smallest that holds and the largest that does
    not are 2 % apart. `out` is written as soon as a file holds, and again for each smaller one. Labels choose the size
    alone: nothing is learnt from them.

    Args:
        module: the network.
        calibration: as for `compress`.
        out: the file to write.
        max_drop: points of top-1, 0 to 100.
        labelled: a folder or zip file of pictures in class folders.
        page: an HTML page to write about the file and the trials.
        checkpoint: as for `compress`.
        settings: all but the size, as the arguments of `compress` of the same names.
        progress: as for `compress`.

    Raises:
        ConfigError, CaptureError, InputError, SelfCheckError: as `compress`; a ConfigError too, and no file, where no
            trial held.
        MissingDependencyError: a page needs matplotlib.
    """
    order = Order(out=out, max_drop=max_drop, labelled=labelled, page=page, checkpoint=checkpoint)
    return _outcome(order, module, calibration, settings or Settings(), progress)


def plan_sizes(
    module: nn.Module,
    calibration: Source,
    *,
    target_bytes: Sequence[int] = (),
    target_ratios: Sequence[float] = (),
    settings: Settings | None = None,
    progress: Progress | None = None,
) -> tuple[Plan, ...]:
    """Return the plans of the files that `compress_sizes` would make of the same arguments, and write nothing.

    Raises:
        ConfigError, CaptureError, InputError: as `compress_sizes`.
    """
    order = Order(out=None, sizes=tuple(target_bytes), ratios=tuple(target_ratios))
    return _outcome(order, module, calibration, settings or Settings(), progress).plans


def _outcome(
    order: Order, module: nn.Module, calibration: Source, settings: Settings, progress: Progress | None
) -> Outcome:
    inputs = [calibration] if is_path(calibration) else []
    order.check_files([*inputs, *([order.labelled] if order.labelled is not None else [])])
    return order.carry_out(module, calibration, settings, progress or _silent)


def _given(value: Number | None) -> tuple[Number, ...]:
    return () if value is None else (value,)


def _silent(what: str, done: int, total: int) -> None:
    """Report progress to nobody."""
