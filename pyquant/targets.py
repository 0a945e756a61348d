"""Sizes as a user asks for them, in bytes or as ratios, one or several, and the name of the file of each."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pyquant.allocate import TOLERANCE
from pyquant.errors import ConfigError
from pyquant.graph import Graph
from pyquant.report import dense_bytes

BYTES, RATIO = "{bytes}", "{ratio}"  # what a name may hold in place of the size that was asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The size of one file: in bytes, and as the ratio that was asked for, where it was one."""

    bytes: int
    ratio: float | None = None

    def named(self, out: str | os.PathLike[str]) -> Path:
        """Return the path that `out` stands for, with the size in it."""
        ratio = "" if self.ratio is None else f"{self.ratio:g}"
        return Path(os.fspath(out).replace(BYTES, str(self.bytes)).replace(RATIO, ratio))


def targets_of(graph: Graph, sizes: Sequence[int], ratios: Sequence[float]) -> list[Target]:
    """Return the targets that are asked for: file sizes in bytes, or how many times smaller than the network in fp32.

    Raises:
        ConfigError: one is not positive, or two are the same.
    """
    for name, values in (("size", sizes), ("ratio", ratios)):
        if wrong := [value for value in values if not value > 0]:
            raise ConfigError(f"the target {name} must be positive, got {wrong[0]}")
    dense = dense_bytes(graph)
    targets = [Target(bytes=size) for size in sizes] + [Target(bytes=int(dense / r), ratio=r) for r in ratios]
    if twice := [size for size, count in Counter(target.bytes for target in targets).items() if count > 1]:
        raise ConfigError(f"a file of {twice[0]:,} bytes is asked for more than once")
    return targets


def check_possible(targets: Sequence[Target], least: int, most: int) -> None:
    """Raise ConfigError, naming all of them, where targets are below the smallest file or above the largest."""
    wrong = [size for size in (t.bytes for t in targets) if not (least <= size and most >= size - TOLERANCE * size)]
    if wrong:
        sizes = ", ".join(f"{size:,}" for size in wrong)
        raise ConfigError(
            f"a file of {sizes} bytes is not possible for this network with these rules: the smallest has {least:,} "
            f"bytes, the largest {most:,}"
        )


def check_names(out: str | os.PathLike[str], ratios: bool) -> None:
    """Raise ConfigError unless `out` gives each of several sizes a name of its own.

    Args:
        out: holds `{bytes}`, or `{ratio}`.
        ratios: whether sizes are asked for as ratios.
    """
    name = os.fspath(out)
    if BYTES not in name and not (ratios and RATIO in name):
        places = f"{BYTES} or {RATIO}" if ratios else BYTES
        example = Path(name).with_name(f"{Path(name).stem or 'network'}-{BYTES}.pqmodel")
        raise ConfigError(f"{name}: several sizes need a file each; put {places} into the name, such as {example}")
