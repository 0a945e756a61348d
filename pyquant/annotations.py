"""COCO annotations: a JSON file of pictures, and of the boxes and masks in them, checked before anything runs."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pyquant.errors import InputError
from pyquant.pictures import PictureRef
from pyquant.storage import AnyPath, read_whole

MAX_BYTES = 1 << 31
LISTS = ("images", "annotations", "categories")
NEEDED = {  # of each entry
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox", "area"),
    "categories": ("id",),
}
SHOWN = 5  # faults in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotations:
    """The content of a file of COCO annotations."""

    source: str  # the file, for messages
    images: tuple[Mapping[str, Any], ...]
    annotations: tuple[Mapping[str, Any], ...]
    categories: tuple[Mapping[str, Any], ...]

    def pictures(self, refs: Sequence[PictureRef]) -> list[PictureRef]:
        """Return the picture of each image: the one whose path ends in its `file_name`.

        Raises:
            InputError: naming images that have none, or more than one.
        """
        by_name: dict[str, list[PictureRef]] = {}
        for ref in refs:
            by_name.setdefault(PurePosixPath(ref.name).name, []).append(ref)
        found, faults = [], []
        for image in self.images:
            wanted = PurePosixPath(image["file_name"]).parts
            same = [
                ref for ref in by_name.get(wanted[-1], []) if PurePosixPath(ref.name).parts[-len(wanted) :] == wanted
            ]
            if len(same) == 1:
                found.append(same[0])
            elif not same:
                faults.append(f"there is no picture '{image['file_name']}'")
            else:
                faults.append(f"'{image['file_name']}' may be {' or '.join(str(ref) for ref in same[:3])}")
        self._complain(faults)
        return found

    def check_labels(self, num_classes: int) -> None:
        """Check that each annotated category is a class of a network; category ids are its labels, 0 the background.

        Raises:
            InputError: naming those that are not.
        """
        used = sorted({annotation["category_id"] for annotation in self.annotations})
        if unknown := [number for number in used if not 0 < number < num_classes]:
            raise InputError(
                f"{self.source}: categories {_some(unknown)} are no classes of the network: category ids are its "
                f"labels, 1 to {num_classes - 1}"
            )

    def _complain(self, faults: Sequence[str]) -> None:
        if faults:
            raise InputError(f"{self.source}: {_some(faults, '; ')}")


def read_annotations(path: AnyPath, *, with_masks: bool) -> Annotations:
    """Return the annotations in a file, numbered anew from 1.

    Args:
        path: a JSON object with the lists `images`, `annotations` and `categories`, as COCO has them.
        with_masks: each annotation must have a `segmentation`.

    Raises:
        InputError: the file cannot be read or is not that, has no images, or an entry has not what it needs, is there
            twice, or names an image or category that is not there; such entries are named.
    """
    try:
        content = json.loads(read_whole(path, limit=MAX_BYTES))
    except (ValueError, RecursionError) as error:  # UnicodeDecodeError is a ValueError too
        raise InputError(f"{path}: not JSON: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(content.get(name), list) for name in LISTS):
        raise InputError(f"{path}: no COCO annotations; expected a JSON object with lists {', '.join(LISTS)}")
    if not content["images"]:
        raise InputError(f"{path}: has no images")
    faults = [f"{name}[{i}] {fault}" for name in LISTS for i, entry in enumerate(content[name])
              if (fault := _fault(name, entry, with_masks))]  # fmt: skip
    if not faults:
        ids = {name: [entry["id"] for entry in content[name]] for name in ("images", "categories")}
        for name, numbers in ids.items():
            faults += [f"{name}: the id {number} is there twice" for number in _repeated(numbers)]
        for key, name in (("image_id", "images"), ("category_id", "categories")):
            known = set(ids[name])
            faults += [
                f"annotations[{i}]: no entry of {name} has the id {entry[key]}"
                for i, entry in enumerate(content["annotations"])
                if entry[key] not in known
            ]
    result = Annotations(
        source=str(path),
        images=tuple(content["images"]),
        # Evaluators take an annotation called 0 for none.
        annotations=tuple({"iscrowd": 0, **a, "id": i} for i, a in enumerate(content["annotations"], start=1)),
        categories=tuple(content["categories"]),
    )
    result._complain(faults)
    return result


def _fault(name: str, entry: object, with_masks: bool) -> str:
    """Return what is wrong with an entry by itself, or an empty text."""
    if not isinstance(entry, dict):
        return "is not an object"
    needed = (*NEEDED[name], *(("segmentation",) if with_masks and name == "annotations" else ()))
    if missing := [key for key in needed if key not in entry]:
        return f"has no {', '.join(missing)}"
    if wrong := [key for key in needed if key.endswith("id") and type(entry[key]) is not int]:
        return f"has no whole number as {', '.join(wrong)}"
    if name == "images" and not (isinstance(entry["file_name"], str) and PurePosixPath(entry["file_name"]).name):
        return "has no text as file_name"
    if name == "annotations":
        box = entry["bbox"]
        if not (isinstance(box, list) and len(box) == 4 and all(_is_size(side) for side in (*box[2:], entry["area"]))):
            return "has no bbox of left, top, width and height, or no area"
        if not all(_is_number(corner) for corner in box):
            return "has no bbox of four numbers"
        if with_masks and not _is_segmentation(entry["segmentation"]):
            return "has a segmentation that is neither polygons nor run lengths"
    return ""


def _is_number(value: object) -> bool:
    return type(value) in (int, float)


def _is_size(value: Any) -> bool:
    return _is_number(value) and value >= 0


def _is_segmentation(value: Any) -> bool:
    if isinstance(value, dict):
        size, counts = value.get("size"), value.get("counts")
        sides = isinstance(size, list) and len(size) == 2 and all(type(side) is int and side > 0 for side in size)
        return sides and (isinstance(counts, str) or (isinstance(counts, list) and all(map(_is_size, counts))))
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 and all(map(_is_number, polygon))
            for polygon in value
        )
    )


def _repeated(numbers: Iterable[int]) -> list[int]:
    seen: set[int] = set()
    return sorted({number for number in numbers if number in seen or seen.add(number)})  # type: ignore[func-returns-value]


def _some(values: Sequence[object], separator: str = ", ") -> str:
    more = f" and {len(values) - SHOWN} more" if len(values) > SHOWN else ""
    return separator.join(str(value) for value in values[:SHOWN]) + more
