"""The classes of a network: for each, the folder of its pictures and the name to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassName:
    """One class: the folder that its pictures lie in (no blanks), and the name to show."""

    folder: str
    name: str


def parse_classes(text: str) -> tuple[ClassName, ...]:
    """Return the classes of a text with a line a class: folder name, blank, name to show (which may have blanks).

    Raises:
        ValueError: naming each line that is empty, has no name to show, or repeats a folder.
    """
    classes: dict[str, ClassName] = {}
    faults = []
    lines = text.replace("\r\n", "\n").removesuffix("\n").split("\n")
    for number, line in enumerate(lines, start=1):
        folder, name = (*line.split(maxsplit=1), "", "")[:2]
        name = name.rstrip()
        if not name:
            faults.append(f"line {number}: expected a folder name, a blank and a name to show, got {line[:80]!r}")
        elif not (folder + name).isprintable():
            faults.append(f"line {number}: has characters that cannot be shown: {line[:80]!r}")
        elif folder in classes:
            faults.append(f"line {number}: '{folder}' is there already")
        else:
            classes[folder] = ClassName(folder=folder, name=name)
    if faults:
        more = f"; and {len(faults) - 5} more" if len(faults) > 5 else ""
        raise ValueError("; ".join(faults[:5]) + more)
    return tuple(classes.values())


def format_classes(classes: Sequence[ClassName]) -> str:
    """Return the text that `parse_classes` reads.

    Raises:
        ValueError: a class cannot be written so.
    """
    text = "".join(f"{name.folder} {name.name}\n" for name in classes)
    if text and parse_classes(text) != tuple(classes):
        raise ValueError("a class's folder must have no blanks, and its name no blanks at its ends")
    return text
