"""Files appear whole or not at all: checked before the work, written beside their place, then renamed."""

from __future__ import annotations

import os
import re
import secrets
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import BinaryIO

from pyquant.errors import InputError

AnyPath = str | os.PathLike[str]

_BESIDE = re.compile(r"\.pyquant-[0-9a-f]{16}\.tmp")  # files that are being written


def check_writable(path: AnyPath, *, inputs: Iterable[AnyPath] = ()) -> None:
    """Check that a file can be written at `path`, so that long work fails before it starts.

    Raises:
        InputError: its folder is missing or takes no files, something other than a file has its name, or it is one of
            `inputs`, which would be destroyed.
    """
    target = _target(path)
    for other in inputs:
        if os.path.exists(other) and target.exists() and os.path.samefile(other, target):
            raise InputError(f"{path}: is an input of this work, and would be overwritten; choose another name")
    try:
        temporary, descriptor = _create_beside(target)
        os.close(descriptor)
        temporary.unlink()
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error


def write_whole(path: AnyPath, data: bytes) -> None:
    """Write a file so that, whatever happens, `path` holds all of `data` or what it held before.

    Raises:
        InputError: it cannot be written, for example because the disk is full; nothing is left behind.
    """
    target = _target(path)
    try:
        temporary, descriptor = _create_beside(target)
        try:
            # A full disk may show only when the data is forced out or the file is closed.
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}; nothing was changed") from error
    _sync_folder(target.parent)


def is_leftover(name: str) -> bool:
    """Say whether a file of this name is one that is being written, or that a killed process left half written."""
    return _BESIDE.fullmatch(name) is not None


@contextmanager
def checked_before_use(path: AnyPath) -> Iterator[Path]:
    """Give the path of a file of the same name in a folder beside `path`; when the context ends, it takes its place.

    Where the context ends with an exception, `path` keeps what it held before, and nothing is left behind.

    Raises:
        InputError: the folder cannot be made, or the file not be renamed.
    """
    target = _target(path)
    try:
        folder = TemporaryDirectory(prefix=".pyquant-", dir=target.parent)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    with folder:
        unchecked = Path(folder.name) / target.name
        yield unchecked
        try:
            os.replace(unchecked, target)
        except OSError as error:
            raise InputError(f"{path}: cannot be written: {reason(error)}; nothing was changed") from error
    _sync_folder(target.parent)


@contextmanager
def open_input(path: AnyPath) -> Iterator[BinaryIO]:
    """Open a file for reading.

    Raises:
        InputError: it is missing, not a file, or cannot be read.
    """
    try:
        if not os.path.exists(path):
            raise InputError(f"{path}: no such file")
        if not os.path.isfile(path):  # opening a pipe would wait for somebody to write into it
            raise InputError(f"{path}: is not a file")
        with open(path, "rb") as file:
            yield file
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error


def read_whole(path: AnyPath, *, limit: int) -> bytes:
    """Return the contents of a file of at most `limit` bytes.

    Raises:
        InputError: it is missing, not a file, too large, or cannot be read.
    """
    with open_input(path) as file:
        if (size := os.fstat(file.fileno()).st_size) > limit:
            raise InputError(f"{path}: {size:,} bytes are too many; expected {limit:,} at most")
        return file.read()


def _target(path: AnyPath) -> Path:
    """Return where the file really goes, links followed; raise InputError where no file can be."""
    try:
        target = Path(os.path.realpath(path))
        if not target.parent.is_dir():
            raise InputError(f"{path}: there is no folder '{target.parent}'")
        mode = os.stat(target).st_mode
    except FileNotFoundError:
        return target
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be written: {reason(error)}") from error
    if stat.S_ISDIR(mode):
        raise InputError(f"{path}: is a folder; give the name of a file")
    if not stat.S_ISREG(mode):  # a rename would put our file in the place of a device or pipe
        raise InputError(f"{path}: is not an ordinary file")
    return target


def _create_beside(target: Path) -> tuple[Path, int]:
    """Create a new file in the folder of `target`, where a rename is one step; return its path and descriptor."""
    temporary = target.with_name(f".pyquant-{secrets.token_hex(8)}.tmp")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    return temporary, os.open(temporary, flags, 0o666)


def _sync_folder(folder: Path) -> None:
    """Force the rename out too, where the system can: the file is whole either way."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def reason(error: BaseException) -> str:
    """Return what went wrong, without the path that our message names already."""
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__
