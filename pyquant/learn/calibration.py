"""The calibration inputs, whatever they come as: arrays, an iterable of arrays, or pictures in a folder or zip file."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.errors import InputError
from pyquant.pictures import find_pictures, load_batch, sample_pictures
from pyquant.preprocessing import Preprocessing

BATCH = 16  # pictures a worker takes at a time; fixed, so that results are the same for any number of threads

Floats = NDArray[np.float32]
Source = Any  # a float32 array or tensor [N, C, H, W], an iterable of such, or the path of a folder or zip file


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """`count` inputs of one shape, read in batches."""

    count: int
    shape: tuple[int, ...]  # without the batch
    read: Callable[[slice], Floats]
    files: Callable[[], Iterator[bytes]] | None = None  # that the inputs are made of, where they are pictures

    @property
    def batches(self) -> int:
        """The number of batches, the last of which may be smaller."""
        return -(-self.count // BATCH)

    def load(self, batch: int) -> Floats:
        """Return one batch, float32 `[n, C, H, W]`, n at most `BATCH`.

        Raises:
            InputError: a picture is corrupt.
        """
        return self.read(slice(batch * BATCH, min((batch + 1) * BATCH, self.count)))

    def evenly(self, most: int, size: int) -> Iterator[Floats]:
        """Yield at most `most` of the inputs in batches of `size`, taken evenly from all: some are sorted by class.

        Raises:
            InputError: a picture is corrupt.
        """
        count = min(most, self.count)
        step = self.count // count
        for start in range(0, count, size):
            yield self.read(slice(start * step, min(start + size, count) * step, step))

    def contents(self) -> Iterator[bytes | memoryview]:
        """Yield all that makes these inputs what they are; of pictures their files, which need no decoding."""
        if self.files is not None:
            yield from self.files()
        else:
            yield from (self.load(batch).data for batch in range(self.batches))


def is_path(source: Source) -> bool:
    """Say whether calibration inputs are given as the path of a folder or zip file."""
    return isinstance(source, (str, os.PathLike))


def is_rereadable(source: Source) -> bool:
    """Say whether a source can be read again, and to its end: a path or an array, not any iterable."""
    return is_path(source) or isinstance(source, np.ndarray) or _is_tensor(source)


def from_pictures(
    path: str | os.PathLike[str], preprocessing: Preprocessing, *, samples: int, seed: int
) -> Calibration:
    """Return at most `samples` pictures, drawn by `seed` from the sorted list of those in a folder or zip file.

    Raises:
        InputError: there is no such folder or zip file, or no picture in it.
    """
    found = find_pictures(path)
    refs = sample_pictures(found, samples, seed)
    console.note(f"calibration: {len(refs):,} of {len(found):,} pictures, drawn by seed {seed}")
    return Calibration(
        count=len(refs),
        shape=(3, *preprocessing.crop),
        read=lambda rows: load_batch(refs[rows], preprocessing),
        files=lambda: (ref.read() for ref in refs),
    )


def from_arrays(source: Source, *, samples: int, seed: int) -> Calibration:
    """Return at most `samples` inputs: drawn by `seed` from an array or tensor, the first ones of an iterable of such.

    Raises:
        InputError: something is not a float32 array `[N, C, H, W]` of finite numbers, or the shapes differ.
    """
    if samples < 1:
        raise InputError(f"samples must be at least 1, got {samples}")
    if isinstance(source, np.ndarray) or _is_tensor(source):
        array = _checked(source, "the calibration array")
        if len(array) > samples:
            array = array[np.sort(np.random.default_rng(seed).permutation(len(array))[:samples])]
    elif isinstance(source, Iterable):
        array = _first_inputs(source, samples)
    else:
        raise InputError(
            "calibration must be a float32 array or tensor [N, C, H, W], an iterable of such, the path of a folder or "
            f"zip file, or None; got {type(source).__name__}"
        )
    return Calibration(count=len(array), shape=array.shape[1:], read=lambda rows: array[rows].copy())


def _first_inputs(source: Iterable[Any], samples: int) -> Floats:
    parts: list[Floats] = []
    count = 0
    for number, item in enumerate(source):
        part = _checked(item, f"calibration batch {number}")
        if parts and part.shape[1:] != parts[0].shape[1:]:
            raise InputError(
                f"calibration batch {number}: expected inputs of shape {list(parts[0].shape[1:])}, as in batch 0, "
                f"got {list(part.shape[1:])}"
            )
        parts.append(part[: samples - count])
        count += len(parts[-1])
        if count >= samples:
            break
    if not parts:
        raise InputError("calibration: the iterable gave no arrays; give at least one, or None")
    return np.concatenate(parts)


def _checked(item: Any, what: str) -> Floats:
    if not isinstance(item, np.ndarray) and not _is_tensor(item):
        raise InputError(f"{what}: expected a float32 array or tensor [N, C, H, W], got {type(item).__name__}")
    dtype = str(item.dtype).removeprefix("torch.")
    if dtype != "float32" or item.ndim != 4 or 0 in item.shape:
        raise InputError(f"{what}: expected float32 [N, C, H, W], got {dtype} {list(item.shape)}")
    array = item if isinstance(item, np.ndarray) else item.detach().cpu().numpy()
    if not np.isfinite(array).all():
        raise InputError(f"{what}: holds numbers that are not finite")
    return np.ascontiguousarray(array)


def _is_tensor(item: Any) -> bool:
    # Not isinstance: whoever has no tensor need not have PyTorch imported.
    return hasattr(item, "detach") and hasattr(item, "numpy")
