"""A checkpoint: a folder that keeps what a long job has done so far, so that the same command goes on where it stopped.

The folder holds a lock, which dies with the process that has it, and records: safetensors files with JSON values and
arrays, each with its own digest and written whole or not at all. The record `job` says what the job is: its network,
calibration and settings. A job that differs in any of these is refused, so that nothing is taken for what it is not.
Fine-tuning alone may differ: what was learnt before it serves any, and what each gave has records of its own.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from types import TracebackType
from typing import Any, Protocol
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from pyquant import console
from pyquant.container import compact_json, pack, parse_json, unpack
from pyquant.errors import FormatError, InputError
from pyquant.storage import AnyPath, check_writable, is_leftover, read_whole, reason, write_whole

FORMAT = "2"  # of the records; another one is refused
SECONDS_BETWEEN_SAVES = 60.0  # of work that goes on in small steps
SUFFIX = ".safetensors"
JOB, LOCK = "job", "lock"
MAX_RECORD_BYTES = 1 << 36
MAX_STEM = 80  # characters of a record's name that its file's name shows
SHOWN_DIFFERENCES = 5  # of one kind, such as weights
SHOWN_CHARACTERS = 80  # of a value

Arrays = Mapping[str, NDArray[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One thing that was saved: plain JSON values, and arrays (read-only) by name."""

    values: Mapping[str, Any]
    arrays: Arrays


class Records(Protocol):
    """Where a job saves what it has done, by name."""

    def has(self, name: str) -> bool:
        """Say whether anything was saved under a name, damaged or not."""

    def load(self, name: str) -> Record | None:
        """Return what was saved under a name; None: nothing was, or it is damaged and has to be done again."""

    def save(self, name: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Save, in place of what had the name before."""

    def is_due(self) -> bool:
        """Say whether work that goes on in small steps should be saved now."""

    def part(self, name: str) -> Records:
        """Return the records of a part of the job; their names do not collide with those of other parts."""


class Nowhere:
    """The records of a job that keeps none."""

    def has(self, name: str) -> bool:
        """Say no."""
        return False

    def load(self, name: str) -> Record | None:
        """Return None."""
        return None

    def save(self, name: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Do nothing."""

    def is_due(self) -> bool:
        """Say no."""
        return False

    def part(self, name: str) -> Records:
        """Return itself."""
        return self


NOWHERE = Nowhere()


class Checkpoint:
    """The records of one job in a folder, which stays locked until the context ends."""

    def __init__(self, path: AnyPath) -> None:
        """Make the folder, or take up the one that is there, and lock it.

        Raises:
            InputError: it cannot be made or written, holds other files, or belongs to a job that is running.
        """
        self._folder = Path(path)
        self._saved_at = monotonic()
        try:
            self._folder.mkdir(exist_ok=True)
            self._lock = self._locked()
        except FileExistsError as error:
            raise InputError(f"{path}: is not a folder; a checkpoint needs one of its own") from error
        except (OSError, ValueError) as error:
            raise InputError(f"{path}: cannot hold a checkpoint: {reason(error)}") from error
        try:
            check_writable(self._file(JOB))
            self._remove_leftovers()
        except BaseException:
            os.close(self._lock)
            raise

    def begin(self, job: Mapping[str, Any], circumstances: Mapping[str, Any]) -> None:
        """Begin a job, or go on with it.

        Args:
            job: plain JSON values: all that says what the result is to be.
            circumstances: what its last bits may depend on; there is a warning where they differ.

        Raises:
            InputError: the folder belongs to another job; everything that differs is named.
        """
        job, circumstances = json.loads(compact_json(job)), json.loads(compact_json(circumstances))
        path = self._file(JOB)
        if not path.exists():
            self.save(JOB, {"job": job, "circumstances": circumstances}, {})
            return
        try:
            before = _read(path, JOB).values
        except FormatError as error:
            raise InputError(f"{path}: {error}; delete {self._folder} to begin anew") from error
        if differences := _differences(before["job"], job):
            raise InputError(
                f"{self._folder}: is the checkpoint of another job: {'; '.join(differences)}. Give what that job was "
                "begun with, or another folder, or delete this one to begin anew"
            )
        if differences := _differences(before["circumstances"], circumstances):
            console.warn(
                f"{self._folder}: was begun under other circumstances, so the file will not be bit for bit what a job "
                f"without interruption gives: {'; '.join(differences)}"
            )
        console.note(f"going on with the job in {self._folder}")

    def has(self, name: str) -> bool:
        """Say whether anything was saved under a name, damaged or not."""
        return self._file(name).exists()

    def load(self, name: str) -> Record | None:
        """Return what was saved under a name; None: nothing was, or it is damaged and has to be done again."""
        path = self._file(name)
        if not path.exists():
            return None
        try:
            return _read(path, name)
        except FormatError as error:
            console.warn(f"{path}: {error}; this part of the work is done again")
            return None

    def save(self, name: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        """Save, in place of what had the name before.

        Raises:
            InputError: it cannot be written, for example because the disk is full; what had the name before is kept.
        """
        metadata = {"checkpoint": FORMAT, "record": name, "values": compact_json(values)}
        try:
            write_whole(self._file(name), pack(metadata, arrays))
        except InputError as error:
            raise InputError(f"{error}. The work saved before is kept: make room, and give the same command") from error
        self._saved_at = monotonic()

    def is_due(self) -> bool:
        """Say whether a minute has passed since anything was saved."""
        return monotonic() - self._saved_at >= SECONDS_BETWEEN_SAVES

    def part(self, name: str) -> Records:
        """Return the records of a part of the job; their names do not collide with those of other parts."""
        return _Part(self, name)

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        os.close(self._lock)

    def _locked(self) -> int:
        """Return the descriptor of the lock, which is held until it is closed; refuse a folder of something else."""
        names = sorted(entry.name for entry in self._folder.iterdir())
        foreign = [name for name in names if name != LOCK and not is_leftover(name)]
        if foreign and self._file(JOB).name not in foreign:
            raise InputError(
                f"{self._folder}: holds files that are not a checkpoint's, such as '{foreign[0]}'; give an empty "
                "folder, or one that is not there yet"
            )
        lock = os.open(self._folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            # The system lets go of it however the process ends; a file that merely exists would outlive a killed one.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
                raise
            raise InputError(
                f"{self._folder}: is the checkpoint of a job that is running; wait for it, or give another folder"
            ) from error
        return lock

    def _remove_leftovers(self) -> None:
        """Remove what a process left that was killed while it wrote: nobody else writes here, the lock is ours."""
        for entry in self._folder.iterdir():
            if is_leftover(entry.name):
                with suppress(OSError):
                    entry.unlink()

    def _file(self, name: str) -> Path:
        """Return the path of a record: readable, and unique even where the case of letters does not count."""
        stem = quote(name, safe=" ")
        if stem != name.lower() or len(stem) > MAX_STEM:
            stem = f"{stem[:MAX_STEM]}-{digest([name.encode()])}"
        return self._folder / f"{stem}{SUFFIX}"


@dataclass(frozen=True, slots=True)
class _Part:
    """Records whose names begin with that of the part."""

    whole: Records
    name: str

    def has(self, name: str) -> bool:
        return self.whole.has(f"{self.name} {name}")

    def load(self, name: str) -> Record | None:
        return self.whole.load(f"{self.name} {name}")

    def save(self, name: str, values: Mapping[str, Any], arrays: Arrays) -> None:
        self.whole.save(f"{self.name} {name}", values, arrays)

    def is_due(self) -> bool:
        return self.whole.is_due()

    def part(self, name: str) -> Records:
        return _Part(self, name)


def digest(parts: Iterable[bytes | memoryview]) -> str:
    """Return what tells sequences of bytes apart: the first 16 hexadecimal digits of a SHA-256."""
    result = hashlib.sha256()
    for part in parts:
        result.update(memoryview(part).nbytes.to_bytes(8, "little"))
        result.update(part)
    return result.hexdigest()[:16]


def digests(arrays: Arrays) -> dict[str, str]:
    """Return the digests of arrays, dtype and shape included, by name."""
    return {
        name: digest([f"{array.dtype} {array.shape}".encode(), np.ascontiguousarray(array).data])
        for name, array in arrays.items()
    }


def _read(path: Path, name: str) -> Record:
    """Return the record in a file; raise FormatError where it is damaged."""
    metadata, arrays = unpack(read_whole(path, limit=MAX_RECORD_BYTES))
    if (version := metadata.get("checkpoint")) != FORMAT:
        raise FormatError(f"format {version} of a checkpoint; this pyquant reads format {FORMAT}")
    if (found := metadata.get("record")) != name:
        raise FormatError(f"the record of '{found}' under the name of '{name}'")
    return Record(values=parse_json(metadata["values"], "the record"), arrays=arrays)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], where: str = "") -> list[str]:
    """Return in words what differs between two sets of values, nested ones entry by entry."""
    found: list[str] = []
    for key in {**before, **now}:
        old, new = before.get(key), now.get(key)
        if old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{where}{key}: ")
        else:
            found.append(f"{where}{key} is {_text(old)} in the checkpoint, {_text(new)} asked for")
    more = len(found) - SHOWN_DIFFERENCES
    return [*found[:SHOWN_DIFFERENCES], f"{where}{more} more"] if where and more > 0 else found


def _text(value: Any) -> str:
    text = "none" if value is None else value if isinstance(value, str) else compact_json(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}.."
