"""A pool of threads whose results do not depend on how many there are.

Every task is one fixed piece of the work, computed by a single thread from beginning to end, and results come back in
the order of the tasks. So a sum over them is the same sum whatever the number of threads. The tasks spend their time in
PyTorch, faiss and our core, which release the interpreter's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")
Total = TypeVar("Total")


class Workers:
    """`threads` threads for one piece of work; leaving the context restores the caller's number of PyTorch threads."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._torch_threads = torch.get_num_threads()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pyquant", initializer=_run_alone)

    def map(self, function: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
        """Return `function` of each item, in the order of the items; the first exception is raised here."""
        futures = [self._pool.submit(function, item) for item in items]
        try:
            return [future.result() for future in futures]
        finally:
            for future in futures:
                future.cancel()

    def fold(
        self, function: Callable[[Item], Result], items: Iterable[Item], add: Callable[[Total | None, Result], Total]
    ) -> Total:
        """Return what `add` makes of the total so far (at first None) and each result, in the order of the items.

        Only a few results, as many as there are threads, wait to be added at any time: they may be large.
        """
        total: Total | None = None
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                if len(waiting) > self._threads:
                    total = add(total, waiting.popleft().result())
                waiting.append(self._pool.submit(function, item))
            while waiting:
                total = add(total, waiting.popleft().result())
        finally:
            for future in waiting:
                future.cancel()
        assert total is not None, "nothing to fold"
        return total

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown(cancel_futures=True)
        torch.set_num_threads(self._torch_threads)


def _run_alone() -> None:
    # Both settings belong to the thread that makes them, except that PyTorch also remembers the number of threads as
    # the default of threads to come: `Workers` restores that one.
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
