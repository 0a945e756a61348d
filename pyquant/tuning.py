"""Which kernel was the fastest for a layer, remembered in the user's cache directory.

There is a file for each build of the core, processor, instruction set, number of threads and precision; in it, a kernel
for each layer and input shape. The folder is PYQUANT_CACHE, else `pyquant` in XDG_CACHE_HOME or ~/.cache. What is in it
may be deleted at any time; what cannot be read counts as not there.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from hashlib import sha256
from pathlib import Path

from pyquant import _core
from pyquant.errors import InputError
from pyquant.graph import Node
from pyquant.machine import processor_name
from pyquant.shapes import Shape
from pyquant.storage import check_writable, read_whole, reason, write_whole

MAX_CACHE_BYTES = 16 << 20

Kernels = dict[str, str]  # of layers, by `layer_key`


def layer_key(node: Node, inputs: Sequence[Shape]) -> str:
    """Return what the speed of a layer's kernels depends on: operation, weight, codec, attributes and input shapes."""
    assert node.weight is not None
    codec = node.weight.codec
    described = {"op": node.op, "weight": node.weight.shape, "codec": node.weight.codec_name, **asdict(codec)}
    return json.dumps([described, dict(node.attributes), inputs], sort_keys=True)


def remembered(isa: str, threads: int, precision: str) -> Kernels:
    """Return what has been remembered for this machine."""
    if not cache_folder().is_dir():  # the usual case of whoever never tuned: nothing to hash the core for
        return {}
    try:
        found = json.loads(read_whole(_cache_file(isa, threads, precision), limit=MAX_CACHE_BYTES))
    except (InputError, ValueError, RecursionError):
        return {}
    if not isinstance(found, dict):
        return {}
    return {key: kernel for key, kernel in found.items() if isinstance(kernel, str)}


def remember(isa: str, threads: int, precision: str, kernels: Mapping[str, str]) -> None:
    """Keep kernels for later processes, beside those that are kept already.

    Two processes may do so at once: the file is always whole, and holds at least what one of them added.

    Raises:
        InputError: the file cannot be written.
    """
    check_folder()
    known = {**remembered(isa, threads, precision), **kernels}
    write_whole(_cache_file(isa, threads, precision), json.dumps(known, indent=1, sort_keys=True).encode())


def check_folder() -> None:
    """Make the folder that choices are kept in, and check that files can be written there.

    Raises:
        InputError: they cannot.
    """
    folder = cache_folder()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made: {reason(error)}; name another folder in PYQUANT_CACHE") from error
    check_writable(folder / "kernels")


def cache_folder() -> Path:
    """Return the folder that choices are kept in, whether it exists or not."""
    if folder := os.environ.get("PYQUANT_CACHE"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "pyquant"


def _cache_file(isa: str, threads: int, precision: str) -> Path:
    machine = f"{_build()} {processor_name()} {isa} {threads} {precision}"
    return cache_folder() / f"kernels-{sha256(machine.encode()).hexdigest()[:32]}.json"


@cache
def _build() -> str:
    """Return the digest of the core: another build may have other kernels, or faster ones."""
    return sha256(Path(_core.__file__).read_bytes()).hexdigest()
