"""Pictures in a folder or a zip file: found, sampled, opened, and matched with the classes of a network."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NoReturn, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from pyquant.classes import ClassName, parse_classes
from pyquant.errors import InputError
from pyquant.preprocessing import Preprocessing
from pyquant.storage import read_whole, reason

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".gif"})
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "PPM", "GIF")  # what Pillow may try: its rarer decoders stay out of reach
MAX_PICTURE_BYTES = 1 << 28


class _Source(Protocol):
    """Where pictures lie: gives the bytes of a file by its name; `label` begins its error messages."""

    label: str

    def read(self, name: str) -> bytes: ...


@dataclass(frozen=True, slots=True)
class PictureRef:
    """A picture that has been found but not yet opened."""

    source: _Source
    name: str  # the path inside the folder or zip file, with "/" on every system

    @property
    def folder(self) -> str:
        """The folder that holds the picture, taken as its class; "" where pictures lie flat."""
        return PurePosixPath(self.name).parent.name

    def __str__(self) -> str:
        return f"{self.source.label}/{self.name}"

    def open(self) -> NDArray[np.uint8]:
        """Return the picture's RGB pixels, uint8 `[H, W, 3]`.

        Raises:
            InputError: the picture cannot be read, or is corrupt.
        """
        return _decode(self.read(), str(self))

    def read(self) -> bytes:
        """Return the bytes of the picture's file.

        Raises:
            InputError: it cannot be read.
        """
        return self.source.read(self.name)


class _Folder:
    """Pictures below a folder."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)

    def names(self) -> Iterator[str]:
        """Yield the files below the folder, following links to folders once each (links may form circles).

        Raises:
            OSError: a folder cannot be listed; passing over it would change results silently.
        """

        def fail(error: OSError) -> NoReturn:
            raise error

        seen: set[str] = set()
        for parent, folders, files in os.walk(self.path, onerror=fail, followlinks=True):
            real = os.path.realpath(parent)
            if real in seen:
                folders.clear()
                continue
            seen.add(real)
            folders.sort()  # which of two links to one folder counts must not depend on the file system
            yield from (Path(parent, file).relative_to(self.path).as_posix() for file in files)

    def read(self, name: str) -> bytes:
        return read_whole(self.path / name, limit=MAX_PICTURE_BYTES)


class _Zip:
    """Pictures in a zip file; reading is safe from several threads, and after a fork."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.label = str(path)
        self._process = -1
        self._zip = self._opened()

    def _opened(self) -> zipfile.ZipFile:
        # Parent and child of a fork share one file position, so a child needs a handle of its own.
        if self._process != os.getpid():
            self._zip, self._process = zipfile.ZipFile(self.path), os.getpid()
        return self._zip

    def names(self) -> Iterator[str]:
        """Yield the files in the archive."""
        return (info.filename for info in self._zip.infolist() if not info.is_dir())

    def read(self, name: str) -> bytes:
        try:
            archive = self._opened()
            if (size := archive.getinfo(name).file_size) > MAX_PICTURE_BYTES:
                raise InputError(f"{self.label}/{name}: {size:,} bytes are too many for a picture")
            return archive.read(name)
        except InputError:
            raise
        except Exception as error:  # a damaged entry surfaces as BadZipFile, zlib.error, NotImplementedError, ...
            raise InputError(f"{self.label}/{name}: cannot be read from the zip file: {reason(error)}") from error


def find_pictures(data: str | os.PathLike[str]) -> list[PictureRef]:
    """Return the pictures in a folder or `.zip` file, in class folders or flat, sorted by name.

    Pictures are told by their suffix; hidden files and what macOS adds to zip files are passed over.

    Raises:
        InputError: `data` is missing or neither, the zip file is damaged, or there is no picture in it.
    """
    path = Path(data)
    try:
        source: _Folder | _Zip
        if path.is_dir():
            source = _Folder(path)
        elif path.is_file():
            source = _Zip(path)
        else:
            raise InputError(f"{path}: no such folder or zip file")
        names = sorted({name for name in source.names() if _is_picture(name)})
    except zipfile.BadZipFile as error:
        raise InputError(f"{path}: not a zip file of pictures, or a damaged one: {reason(error)}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, NotImplementedError) as error:  # odd names, unknown zip versions
        raise InputError(f"{path}: not usable as a folder or zip file of pictures: {reason(error)}") from error
    if not names:
        suffixes = ", ".join(sorted(SUFFIXES))
        raise InputError(f"{path}: no picture found; expected files that end in {suffixes}")
    return [PictureRef(source, name) for name in names]


def sample_pictures(refs: Sequence[PictureRef], count: int, seed: int) -> list[PictureRef]:
    """Return `count` pictures (all, where there are fewer) in an order drawn by `seed`: any prefix is a fair sample."""
    if count < 1:
        raise InputError(f"expected at least 1 picture to use, got {count}")
    order = np.random.default_rng(seed).permutation(len(refs))[:count]
    return [refs[index] for index in order]


def load_batch(refs: Iterable[PictureRef], preprocessing: Preprocessing) -> NDArray[np.float32]:
    """Return pictures as one input batch, float32 `[N, 3, H, W]`.

    Raises:
        InputError: naming the picture that is corrupt, or smaller than the crop.
    """
    batch = []
    for ref in refs:
        pixels = ref.open()
        try:
            batch.append(preprocessing(pixels))
        except InputError as error:
            raise InputError(f"{ref}: {error}") from error
    return np.stack(batch) if batch else np.empty((0, 3, *preprocessing.crop), np.float32)


def read_picture(path: str | os.PathLike[str]) -> NDArray[np.uint8]:
    """Return the RGB pixels of a picture file, uint8 `[H, W, 3]`; a rotation noted in its EXIF data is not applied.

    Raises:
        InputError: the file is missing or unreadable, or is not a picture, or is corrupt.
    """
    return _decode(read_whole(path, limit=MAX_PICTURE_BYTES), str(path))


def read_classes(path: str | os.PathLike[str]) -> tuple[ClassName, ...]:
    """Return the classes listed in a text file, one a line, in order: folder name, blank, name to show.

    Raises:
        InputError: the file cannot be read, or naming the line that is not as expected.
    """
    try:
        return parse_classes(read_whole(path, limit=MAX_PICTURE_BYTES).decode("utf-8-sig"))
    except ValueError as error:
        raise InputError(f"{path}: {error}") from error


def match_folders(folders: Iterable[str], classes: Sequence[ClassName], num_outputs: int) -> dict[str, int]:
    """Return the class index of each class folder.

    Folders are matched by name, and may be any subset of the classes. Where the network has no class names, their
    sorted order counts, provided that there are as many folders as outputs.

    Raises:
        InputError: a folder is no class, or there are no names and the numbers disagree.
    """
    found = sorted(set(folders))
    if "" in found:
        raise InputError("pictures lie outside of class folders, so their classes are not known; put them in folders")
    if classes:
        index = {name.folder: position for position, name in enumerate(classes)}
        if unknown := [folder for folder in found if folder not in index]:
            raise InputError(
                f"{_some(unknown)}: no class of the network is called so; its {len(classes)} classes begin with "
                f"{_some([name.folder for name in classes])}"
            )
        return {folder: index[folder] for folder in found}
    if len(found) != num_outputs:
        raise InputError(
            f"the file has no class names, and {len(found)} class folders do not fit {num_outputs} outputs; "
            f"give the classes in a text file"
        )
    return {folder: position for position, folder in enumerate(found)}


def _is_picture(name: str) -> bool:
    parts = PurePosixPath(name).parts
    if any(part.startswith(".") or part == "__MACOSX" for part in parts):
        return False
    return PurePosixPath(name).suffix.lower() in SUFFIXES


def _decode(data: bytes, name: str) -> NDArray[np.uint8]:
    try:
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            return np.asarray(image.convert("RGB"))
    except UnidentifiedImageError as error:
        raise InputError(f"{name}: not a picture in a known format ({', '.join(_FORMATS)})") from error
    except Exception as error:  # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, EOFError, ...
        raise InputError(f"{name}: the picture is corrupt: {reason(error)}") from error


def _some(names: Sequence[str], limit: int = 5) -> str:
    """Return a few names, quoted, for a message."""
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return shown if len(names) <= limit else f"{shown} and {len(names) - limit} more"
