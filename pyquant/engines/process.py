"""The parent's side of a worker process: starting it, asking it, and keeping it still while others are measured."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any

from pyquant.errors import EngineError

LOG_TAIL = 500  # characters of what an engine printed before it died


class EngineProcess:
    """One engine in a process of its own, which ends with the `with` block.

    Between requests the process is stopped, so that idle threads that spin, as those of OpenMP and of ONNX Runtime do
    for a while after each run, take nothing from the engine being measured.
    """

    def __init__(self, engine: str, threads: int, log: Path) -> None:
        self.engine = engine
        self._log = log
        # OpenMP reads its number of threads when the library is loaded.
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "pyquant.engines.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
            )

    def __enter__(self) -> EngineProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        """Send a request and return its answer; see `pyquant.engines.worker`.

        Raises:
            EngineError: the engine reported an error, or its process died.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal("SIGCONT")
        try:
            self._process.stdin.write(json.dumps({"do": do, **arguments}).encode() + b"\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = b""
        if not line:
            raise EngineError(f"{self.engine}: its process ended: {self._last_words()}")
        self._signal("SIGSTOP")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise EngineError(f"{self.engine}: {answer['error']}")
        return answer

    def _signal(self, name: str) -> None:
        if hasattr(signal, name):  # not on Windows
            self._process.send_signal(getattr(signal, name))

    def _last_words(self) -> str:
        code = self._process.wait()
        text = self._log.read_text(errors="replace")[-LOG_TAIL:].strip()
        return f"exit code {code}" + (f": {text}" if text else "")
