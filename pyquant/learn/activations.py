"""The values of a network on all calibration pictures, in memory up to a budget and in a temporary folder beyond it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path
from threading import Lock
from types import TracebackType

import numpy as np
from numpy.typing import NDArray

from pyquant.errors import InputError
from pyquant.storage import reason

MEMORY_BYTES = 2 << 30

Key = tuple[str, int]  # a value's name, the number of a batch


class Activations:
    """float32 arrays by value and batch; several threads may read and write different ones.

    What does not fit into `memory_bytes` is written to one file per array, mapped into memory when read, and removed
    when dropped. Which arrays these are has no influence on what is read.
    """

    def __init__(self, memory_bytes: int = MEMORY_BYTES) -> None:
        self._free_bytes = memory_bytes
        self._arrays: dict[Key, NDArray[np.float32]] = {}
        self._files: dict[Key, tuple[Path, tuple[int, ...]]] = {}
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._written = 0
        self._lock = Lock()

    def put(self, value: str, batch: int, array: NDArray[np.float32]) -> None:
        """Keep an array, in place of an earlier one of the same value and batch.

        Raises:
            InputError: the temporary folder is full.
        """
        key = value, batch
        with self._lock:
            self._forget(key)
            if array.nbytes <= self._free_bytes:
                self._free_bytes -= array.nbytes
                self._arrays[key] = array
                return
            if self._folder is None:
                self._folder = tempfile.TemporaryDirectory(prefix="pyquant-")
            path = Path(self._folder.name, f"{self._written}.f32")
            self._written += 1
            self._files[key] = path, array.shape
        try:
            array.tofile(path)
        except OSError as error:
            raise InputError(
                f"{path.parent}: cannot hold the activations of the calibration pictures ({reason(error)}); use fewer "
                "samples, or name a larger temporary folder in TMPDIR"
            ) from error

    def get(self, value: str, batch: int) -> NDArray[np.float32]:
        """Return an array; writing into it may or may not change what is kept."""
        key = value, batch
        if (array := self._arrays.get(key)) is not None:
            return array
        path, shape = self._files[key]
        return np.memmap(path, np.float32, "c", shape=shape)

    def drop(self, values: Iterable[str]) -> None:
        """Forget all arrays of these values."""
        names = set(values)
        with self._lock:
            for key in [key for key in (*self._arrays, *self._files) if key[0] in names]:
                self._forget(key)

    def _forget(self, key: Key) -> None:
        if (array := self._arrays.pop(key, None)) is not None:
            self._free_bytes += array.nbytes
        if key in self._files:
            path, _ = self._files.pop(key)
            path.unlink(missing_ok=True)

    def __enter__(self) -> Activations:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._arrays.clear()
        self._files.clear()
        if self._folder is not None:
            self._folder.cleanup()


def check_room(peak_bytes: int, memory_bytes: int = MEMORY_BYTES) -> None:
    """Raise InputError unless the temporary folder has room for what will not fit into memory."""
    spilled = peak_bytes - memory_bytes
    folder = tempfile.gettempdir()
    if spilled > 0 and (free := shutil.disk_usage(folder).free) < spilled:
        raise InputError(
            f"{folder}{os.sep}: the activations of the calibration pictures need {spilled:,} bytes there, {free:,} are "
            "free; use fewer samples, or name a larger temporary folder in TMPDIR"
        )
