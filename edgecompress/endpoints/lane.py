"""The single thread in which the model runs."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from edgecompress.endpoints.turns import Turns

T = TypeVar("T")


class Lane:
    """Runs one call at a time, in order of arrival."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgecompress-model")

    async def start(self, work: Callable[[], object]) -> None:
        """Start ``work`` in its turn, and return. Raises Refusal if the queue is full or closed."""
        await self.turns.take()
        self._submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Run ``work`` in its turn; cancelling the caller does not stop it. Raises Refusal and ``work``'s errors."""
        await self.turns.take()
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        self._executor.shutdown(wait=True)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        loop, began = asyncio.get_running_loop(), time.monotonic()

        def done(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.turns.leave, time.monotonic() - began)

        future = self._executor.submit(work)
        future.add_done_callback(done)
        return future
