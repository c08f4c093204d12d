"""Runs many batches in parallel, one thread each, on a second model with one thread per call."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from edgecompress.errors import UsageError
from edgecompress.runtime.model import Model
from edgecompress.types.arrays import Array, Feed

Outputs = list[Array]

# Throughput of threads that share one batch, relative to the same number of lanes.
_SHARED_EFFICIENCY = 0.75


class Lanes:
    """Opens its model on first use, so a process that embeds one text at a time never loads it."""

    def __init__(self, open_model: Callable[[], Model], threads: int) -> None:
        self._open_model, self._threads = open_model, threads
        self._lock = threading.Lock()
        self._opened: tuple[Model, ThreadPoolExecutor] | None = None
        self._closed = False

    def pay(self, tokens: Sequence[int]) -> bool:
        """Whether lanes are faster than running the batches one by one on all threads; ``tokens``: of each batch."""
        if self._threads == 1 or len(tokens) < 2:
            return False
        return max(tokens) * self._threads * _SHARED_EFFICIENCY <= sum(tokens)

    def run(self, feeds: Iterable[Feed]) -> Iterator[Outputs]:
        """Yield outputs in the order of the feeds. At most two feeds per thread are running or waiting."""
        model, pool = self._open()
        waiting: deque[Future[Outputs]] = deque()
        try:
            for feed in feeds:
                waiting.append(pool.submit(model.run, feed))
                if len(waiting) == 2 * self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """Let running batches finish, and free the model."""
        with self._lock:
            opened, self._opened, self._closed = self._opened, None, True
        if opened is not None:
            opened[1].shutdown()
            opened[0].close()

    def _open(self) -> tuple[Model, ThreadPoolExecutor]:
        with self._lock:
            if self._closed:
                raise UsageError("this bundle was closed", hint="Load it again.")
            if self._opened is None:
                pool = ThreadPoolExecutor(self._threads, thread_name_prefix="edgecompress")
                self._opened = self._open_model(), pool
            return self._opened
