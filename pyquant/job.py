"""One network to compress, captured and checked once: planned and compressed for any number of sizes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

import pyquant
from pyquant import _core, console
from pyquant.capture import capture, capture_detector, is_detector
from pyquant.capture.isolate import undisturbed
from pyquant.checkpoint import NOWHERE, Checkpoint, Records, digest
from pyquant.choose import Choice, dense_reasons
from pyquant.console import Progress
from pyquant.container import compact_json
from pyquant.detector import DetectorPreprocessing, as_before, for_learning
from pyquant.errors import CaptureError, ConfigError, InputError
from pyquant.file import TARGET_BYTES, ModelFile, check_classes, read_model, write_model
from pyquant.graph import Network
from pyquant.identity import circumstances, finetuning_identity, identity
from pyquant.layers import ACTIVATION_RANGES
from pyquant.learn.calibration import Calibration, Source, from_arrays, from_pictures, is_path, is_rereadable
from pyquant.learn.effort import Effort
from pyquant.learn.enough import warn_if_few
from pyquant.learn.finetune import check_enough, finetuned
from pyquant.learn.kept import KeptInputs
from pyquant.learn.layer_training import layer_training
from pyquant.learn.layerwise import Learnt, learn
from pyquant.learn.methods import method_called
from pyquant.learn.saved import load_learnt, save_learnt
from pyquant.learn.workers import Workers
from pyquant.module_state import norms_of, with_learnt
from pyquant.planning import Plan, Planner
from pyquant.preprocessing import Preprocessing
from pyquant.ranges import (
    CALIBRATED_INPUTS,
    CALIBRATED_PICTURES,
    calibrated_pictures,
    measure_ranges,
    some_batches,
    unmeasured_ranges,
    whole_pictures,
)
from pyquant.report import Report
from pyquant.selfcheck import check_against_decoded, check_against_module, check_detector
from pyquant.settings import Settings, checked_shape
from pyquant.storage import checked_before_use
from pyquant.suitability import candidates_of, check_method, max_operations
from pyquant.yardstick import Yardstick

CHECKED_INPUTS = 4  # run by the self-check
ALL = 2**31  # calibration inputs
LEARNT, DONE = "learnt", "done"  # records: before fine-tuning, and after it
RANGES = "ranges"  # a record, the last one
# The longest that fine-tuning writes about itself: what a size target leaves room for.
FINETUNE_ENTRY = {"steps": 10**7, "learning_rates": [0.000123456789] * 3, "precision": "bfloat16", "pictures": 10**7}


class Job:
    """A network, calibration inputs and settings, checked; what several sizes share is done once."""

    def __init__(
        self,
        module: nn.Module,
        calibration: Source,
        settings: Settings,
        progress: Progress,
        *,
        several: bool = False,
        to_size: bool = False,
    ) -> None:
        """Capture the module, and check all there is to check before long work.

        Args:
            module: the network, in any mode.
            calibration: inputs, as `pyquant.compress` takes them.
            settings: all but the size.
            progress: called now and then.
            several: whether several files are to be made: calibration pictures are kept once they were decoded.
            to_size: whether they are made for a size, and the preset does not count.

        Raises:
            ConfigError: the recipe does not fit the network, or an option is out of range.
            CaptureError: the network cannot be described by our operations.
            InputError: the calibration or the network's weights cannot be used.
        """
        if not isinstance(module, nn.Module):
            raise InputError(f"module must be a torch.nn.Module, got {type(module).__name__}")
        self._effort = Effort(steps=settings.finetune_steps, minutes=settings.finetune_minutes, device=settings.device)
        self._method = method_called(settings.method)
        self._module = module
        self._settings = settings
        self._progress = progress
        self.preprocessing: Preprocessing | DetectorPreprocessing | None = settings.preprocessing
        self._source = calibration
        self._is_detector = is_detector(module)
        if self._is_detector:
            if settings.preprocessing is not None:
                raise ConfigError("a detector has a preprocessing of its own, which is kept; leave out any other")
            if settings.input_shape is not None:
                raise ConfigError("a detector has sizes of its own, which are kept; leave out the input shape")
            self.network, self.preprocessing = capture_detector(module)
        elif isinstance(self.preprocessing, DetectorPreprocessing):
            raise ConfigError("preprocessing is a detector's, but the network is none; give a Preprocessing")
        elif is_path(calibration) and self.preprocessing is None:
            if settings.input_shape is None:
                raise InputError("pictures need a size: give input_shape or preprocessing")
            self.preprocessing = Preprocessing.default_for(settings.input_shape)
        self.inputs = self._open(calibration, settings.samples)
        self._kept = KeptInputs(self.inputs) if several and self.inputs is not None and is_path(calibration) else None
        if self._kept is not None:
            self.inputs = self._kept.calibration
        if self.inputs is None:
            console.note("no calibration: codebooks are learnt on the weights alone, which costs accuracy")
        self._shape = self._input_shape()
        if not self._is_detector:
            self.network = capture(module, self._shape)
            if (batch := self.network.graph.inputs[0].shape[0]) is not None:
                raise CaptureError(
                    f"the network takes batches of {batch} alone, and is learnt on several inputs at once: its "
                    "forward() treats some numbers of inputs as a special case, which has to go"
                )
        # What codebooks are learnt on: the network itself, or a detector that finds less.
        self._lesson = for_learning(self.network) if self._is_detector else self.network
        if self.inputs is not None:
            self._lesson.graph.infer_shapes([(1, *self.inputs.shape)])
        check_classes(self.network.graph, settings.classes)
        choices = settings.recipe.choose(self.network.graph)
        candidates = candidates_of(settings, self._method)
        targeted = to_size or settings.max_bit_operations is not None
        check_method(choices, self._method, settings.method, candidates.codecs if targeted else ())
        self._tuning_inputs = self.inputs
        if self._effort:
            if is_rereadable(calibration):
                self._tuning_inputs = self._open(calibration, ALL)
            check_enough(self._tuning_inputs)
        if self.inputs is not None:
            warn_if_few(self._lesson.graph, choices, self.inputs, self._method)
        self._norms = norms_of(self.network.graph, module.state_dict())
        self._threads = settings.threads or _core.default_threads()
        self._planner = Planner(
            self.network,
            settings.recipe,
            self.inputs,
            lesson=self._lesson,
            shape=self._learning_shape(),
            candidates=candidates,
            max_operations=max_operations(self.network.graph, settings),
            makes_up=self._method.makes_up and self.inputs is not None,
            model_of=self._draft,
            seed=settings.seed,
            progress=progress,
        )
        self._yardstick: Yardstick | None = None
        self._records: Records = NOWHERE
        self._tuned_part = ""  # of the records: what fine-tuning gave, by what it was

    def __enter__(self) -> Job:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._kept is not None:
            self._kept.close()

    def keep(self, checkpoint: Checkpoint, asked: Mapping[str, Any]) -> None:
        """Save in a checkpoint what is done from now on, and take up what it holds.

        Args:
            checkpoint: locked by this process.
            asked: the sizes asked for, as plain JSON values by what a user calls them.

        Raises:
            InputError: it is the checkpoint of another job; all that differs is named.
        """
        settled = replace(
            self._settings, threads=self._threads, input_shape=self._shape, preprocessing=self.preprocessing
        )
        checkpoint.begin(identity(self.network, self._norms, self.inputs, settled, asked), circumstances())
        self._records = self._planner.records = checkpoint
        if self._effort:
            tuning = compact_json(finetuning_identity(self._tuning_inputs, settled))
            self._tuned_part = f"finetuning {digest([tuning.encode()])}"

    @property
    def bounds_operations(self) -> bool:
        """Whether bit operations are bounded, so that there is a plan where no size is asked for."""
        return self._settings.max_bit_operations is not None

    def possible_sizes(self) -> tuple[int, int]:
        """Return the bytes of the smallest and of the largest file that can be asked for."""
        return self._planner.possible_sizes()

    def plan(self, target_bytes: int | None) -> Plan:
        """Return the plan for a file of `target_bytes`, or for the recipe where there is no target.

        Raises:
            ConfigError: no such file is possible.
            InputError: a calibration picture is corrupt, or the network's outputs are not finite.
        """
        with Workers(self._threads) as workers:
            return self._planner.plan(target_bytes, workers)

    def compress(self, out: str | os.PathLike[str], target_bytes: int | None) -> Report:
        """Write a file of `target_bytes`, or of the size that the recipe gives, and check it.

        Raises:
            ConfigError, InputError, SelfCheckError: as `pyquant.compress`; what `out` held before is left as it was.
        """
        choices = self._choices(target_bytes)
        records = self._records if target_bytes is None else self._records.part(str(target_bytes))
        tuned = records.part(self._tuned_part) if self._effort else records
        if self._method.training.each_layer is not None:
            records = tuned  # codes depend on how the layers before them were trained
        learnt, how_tuned = load_learnt(tuned, DONE) or self._learn(choices, records, tuned)
        network = learnt.network.with_activation_ranges(self._ranges(learnt.network, tuned))
        model = self._model(network, choices, learnt.errors, target_bytes, how_tuned)
        with checked_before_use(out) as path:
            written = write_model(path, model)
            if target_bytes is not None and written > target_bytes:
                raise ConfigError(
                    f"the file would have {written:,} bytes, more than the {target_bytes:,} asked for; give a target "
                    f"size that is {written - target_bytes:,} bytes smaller"
                )
            error = self._self_check(path, learnt)
        return Report.of(out, model, max_relative_error=error)

    def _choices(self, target_bytes: int | None) -> Mapping[str, Choice]:
        """Return the codecs of a file of `target_bytes`, or those of the recipe, by the weight's name."""
        if target_bytes is not None:
            return self.plan(target_bytes).choices
        with Workers(self._threads) as workers:
            return self._planner.choices(workers)

    def _learn(
        self, choices: Mapping[str, Choice], records: Records, tuned: Records
    ) -> tuple[Learnt, Mapping[str, Any]]:
        """Return the network with its weights coded, fine-tuned if that is asked for, and how it was fine-tuned.

        What is learnt goes to `records`, what depends on fine-tuning the whole network to `tuned`.
        """
        with Workers(self._threads) as workers:
            network, norms = self._method.prepare(
                self._lesson,
                self._norms,
                choices,
                seed=self._settings.seed,
                workers=workers,
                progress=self._progress,
            )
            layers = layer_training(
                network,
                self._tuning_inputs,
                choices,
                self._method.training,
                effort=self._effort,
                seed=self._settings.seed,
                threads=self._threads,
                records=records,
            )
            if (coded := load_learnt(records, LEARNT)) is not None:
                learnt, _ = coded
            else:
                learnt = learn(
                    network,
                    choices,
                    seed=self._settings.seed,
                    workers=workers,
                    method=self._method,
                    calibration=self.inputs,
                    norms=norms,
                    train=layers.train if layers else None,
                    progress=self._progress,
                    records=records,
                )
                learnt = replace(
                    learnt, network=as_before(learnt.network, self.network), norms={**norms, **learnt.norms}
                )
                save_learnt(records, LEARNT, learnt, {})
        how_tuned: dict[str, Any] = {}
        if self._effort and self._tuning_inputs is not None:
            learnt, how_tuned = finetuned(
                network,
                learnt,
                self._tuning_inputs,
                norms,
                effort=self._effort,
                seed=self._settings.seed,
                threads=self._threads,
                progress=self._progress,
                recipe=self._method.training,
                after=layers,
                records=tuned,
            )
        save_learnt(tuned, DONE, learnt, how_tuned)
        return learnt, how_tuned

    def _ranges(self, network: Network, records: Records) -> NDArray[np.float32] | None:
        """Return the activation ranges of the compressed network `[V, 2]`, None where there are no inputs.

        Those of a detector on whole pictures: pictures of one size do not tell what others give.
        """
        if self.inputs is None:
            return None
        if (record := records.load(RANGES)) is not None:
            return record.arrays[ACTIVATION_RANGES]
        if isinstance(self.preprocessing, DetectorPreprocessing):
            batches = self._whole_pictures(self.preprocessing)
        else:
            batches = some_batches(self.inputs, CALIBRATED_INPUTS, self._progress)
        ranges = measure_ranges(network, batches, threads=self._threads)
        records.save(RANGES, {}, {ACTIVATION_RANGES: ranges})
        return ranges

    def _whole_pictures(self, preprocessing: DetectorPreprocessing) -> Iterator[list[NDArray[np.float32]]]:
        """Yield inputs of the detector: whole calibration pictures, or the arrays as they are."""
        if is_path(self._source):
            pictures = calibrated_pictures(self._source, min(self._settings.samples, CALIBRATED_PICTURES))
            yield from whole_pictures(pictures, preprocessing, self._progress)
        else:
            assert self.inputs is not None
            for (images,) in some_batches(self.inputs, CALIBRATED_PICTURES, self._progress):
                yield [images, np.full((len(images), 2), images.shape[2:], np.float32)]

    def output_error(self, file: str | os.PathLike[str]) -> float | None:
        """Return the relative squared error of a file's outputs on calibration inputs, None where there are none.

        Of a detector it is that of what boxes are chosen by, on boxes that the dense network finds.
        """
        if self.inputs is None:
            return None
        if self._yardstick is None:
            self._yardstick = Yardstick(self._lesson, self.inputs)
        return self._yardstick.error(file, self._settings.threads)

    def _draft(
        self,
        network: Network,
        choices: Mapping[str, Choice],
        errors: Mapping[str, float],
        target_bytes: int | None,
    ) -> ModelFile:
        """Return the file that `network` would give, with room for ranges and what fine-tuning says of itself.

        Where a checkpoint keeps what is learnt, a file made for a size has the room in any case, so that the same codes
        can be fine-tuned later.
        """
        may_be_tuned = self._effort or (target_bytes is not None and self._records is not NOWHERE)
        how_tuned: dict[str, Any] = {}
        if self.inputs is not None:
            network = network.with_activation_ranges(unmeasured_ranges(network.graph))
            how_tuned = FINETUNE_ENTRY if may_be_tuned else {}
        return self._model(network, choices, errors, target_bytes, how_tuned)

    def _model(
        self,
        network: Network,
        choices: Mapping[str, Choice],
        errors: Mapping[str, float],
        target_bytes: int | None,
        how_tuned: Mapping[str, Any],
    ) -> ModelFile:
        """Return the file that holds `network`, which is coded as `choices` say."""
        chosen: dict[str, Any] = self._settings.recipe.to_json() | {TARGET_BYTES: target_bytes}
        weighed = self.inputs is not None and self._method.weighs_inputs
        if target_bytes is None:
            del chosen[TARGET_BYTES]
        if (most := self._settings.max_bit_operations) is not None:
            chosen["max_bit_operations"] = most
        if target_bytes is not None or most is not None:  # the preset has no say
            del chosen["preset"]
        return ModelFile(
            network=network,
            preprocessing=self.preprocessing,
            classes=self._settings.classes,
            provenance={
                "source": "compress",
                "method": self._settings.method,
                "objective": "outputs on calibration inputs" if weighed else "weights alone",
                "samples": 0 if self.inputs is None else self.inputs.count,
                "seed": self._settings.seed,
                "pyquant": pyquant.__version__,
                **chosen,
                "dense": dense_reasons(self.network.graph, choices),
                "errors": dict(errors),
                **({"finetune": dict(how_tuned)} if how_tuned else {}),
            },
        )

    def _open(self, source: Source, samples: int) -> Calibration | None:
        if source is None:
            return None
        if is_path(source):
            preprocessing = self.preprocessing
            if isinstance(preprocessing, DetectorPreprocessing):
                preprocessing = preprocessing.for_learning
            assert preprocessing is not None
            return from_pictures(source, preprocessing, samples=samples, seed=self._settings.seed)
        return from_arrays(source, samples=samples, seed=self._settings.seed)

    def _input_shape(self) -> tuple[int, int, int]:
        if self._is_detector:
            return checked_shape(self.network.graph.inputs[0].default)
        if self._settings.input_shape is not None:
            return checked_shape(self._settings.input_shape)
        if self.inputs is None:
            raise InputError("without calibration, input_shape=(C, H, W) is required")
        return checked_shape(self.inputs.shape)

    def _learning_shape(self) -> tuple[int, int, int]:
        """Return the shape of what is learnt on where no calibration says it."""
        if isinstance(self.preprocessing, DetectorPreprocessing):
            return 3, *self.preprocessing.for_learning.crop
        return self._shape

    def _self_check(self, path: Path, learnt: Learnt) -> float:
        """Return the largest relative difference of the file from PyTorch; raise SelfCheckError if it is too large."""
        if self._is_detector:  # its parts were compared with the module's when they were captured
            with undisturbed():
                return check_detector(path, seed=self._settings.seed, threads=self._settings.threads)
        written = replace(learnt, network=read_model(path).network)
        batch = self._check_batch()
        threads = self._settings.threads
        with undisturbed():
            return max(
                check_against_decoded(path, batch, threads=threads),
                check_against_module(path, with_learnt(self._module, written), batch, threads=threads),
            )

    def _check_batch(self) -> NDArray[np.float32]:
        """Return the inputs of the self-check: the first calibration inputs, or else normally distributed numbers."""
        if self.inputs is not None:
            return self.inputs.load(0)[:CHECKED_INPUTS]
        rng = np.random.default_rng(self._settings.seed)
        return rng.standard_normal((CHECKED_INPUTS, *self._shape), dtype=np.float32)
