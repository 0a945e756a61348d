"""A process that runs one engine for `bench`, asked on standard input and answering on standard output, JSON a line.

    {"do": "load", "engine", "path", "inputs", "threads", "options"}   {"load_ms", "isa"}
    {"do": "tune", "seconds"}                                            {}       of pyquant's engine alone
    {"do": "save_outputs", "path"}                                       {}
    {"do": "run", "count"}                                               {"ms": [..]}
    {"do": "peak_memory"}                                                {"bytes"}

An answer of {"error": text} ends the conversation. So does the end of standard input.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import signal
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from pyquant.engines import ENGINES, Arrays, Engine, load_engine


class Worker:
    """Holds one engine and answers requests about it."""

    def __init__(self) -> None:
        self._engine: Engine | None = None
        self._inputs: Arrays = []

    def load(self, engine: str, path: str, inputs: str, threads: int, options: dict[str, Any]) -> dict[str, Any]:
        """Load a network and run it once on the arrays in the .npz file `inputs`, which later runs are on too.

        The time is from the file to the first output, without imports.
        """
        with np.load(inputs) as arrays:
            self._inputs = [arrays[name] for name in arrays.files]
        shapes = [array.shape for array in self._inputs]
        import_module(ENGINES[engine].module)
        start = perf_counter()
        self._engine = load_engine(engine, path, shapes, threads, **options)
        self._engine.run(self._inputs)
        return {"load_ms": 1000 * (perf_counter() - start), "isa": self._engine.isa}

    def tune(self, seconds: float) -> dict[str, Any]:
        """Let pyquant's engine find its fastest kernels; a later process will load them."""
        from pyquant.engines.pyquant import PyquantEngine

        assert isinstance(self._engine, PyquantEngine)
        self._engine.tune(self._inputs, seconds)
        return {}

    def save_outputs(self, path: str) -> dict[str, Any]:
        """Write the outputs, which are the same for every engine, as an .npz file."""
        assert self._engine is not None
        np.savez(path, *self._engine.run(self._inputs))
        return {}

    def run(self, count: int) -> dict[str, Any]:
        """Run the network `count` times; return the time of each."""
        assert self._engine is not None
        run, inputs, times = self._engine.run, self._inputs, []
        gc.collect()
        gc.disable()  # a collection would count as a slow run
        for _ in range(count):
            start = perf_counter()
            run(inputs)
            times.append(1000 * (perf_counter() - start))
        gc.enable()
        return {"ms": times}

    def peak_memory(self) -> dict[str, Any]:
        """Return the most memory this process has had resident."""
        return {"bytes": peak_rss_bytes()}


def peak_rss_bytes() -> int:
    """Return the most memory this process has had resident so far, in bytes.

    `getrusage` would not do on Linux: there a process inherits the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.exists():
        lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        return 1024 * int(lines["VmHWM"].split()[0])
    import psutil

    info = psutil.Process().memory_info()
    return int(getattr(info, "peak_wset", info.rss))


def die_with_parent() -> None:
    """Ask Linux to end this process with its parent, which may be killed while this one is stopped."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of <sys/prctl.h>
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def main() -> None:
    """Answer requests until standard input ends."""
    die_with_parent()
    # What libraries print must not mix with the answers; an interrupt is for the parent, which then ends this process.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    worker = Worker()
    actions: dict[str, Callable[..., dict[str, Any]]] = {
        "load": worker.load,
        "tune": worker.tune,
        "save_outputs": worker.save_outputs,
        "run": worker.run,
        "peak_memory": worker.peak_memory,
    }
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = actions[request.pop("do")](**request)
        except Exception as error:  # whatever an engine raises, the parent reports
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
