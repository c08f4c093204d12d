"""The one thread in which the model runs."""

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
    """Runs one call at a time, each in its turn."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="edgecompress-model")

    async def start(self, work: Callable[[], object]) -> None:
        """Begin ``work`` when it is its turn, and come back. Raises Refusal if it is no turn."""
        await self.turns.take()
        self._submit(work)

    async def run(self, work: Callable[[], T]) -> T:
        """Who stops waiting for it does not end it: the turn lasts until it is done. Raises Refusal, and as it does."""
        await self.turns.take()
        return await asyncio.wrap_future(self._submit(work))

    def close(self) -> None:
        self._executor.shutdown(wait=True)

    def _submit(self, work: Callable[[], T]) -> Future[T]:
        loop, began = asyncio.get_running_loop(), time.monotonic()

        def done(_: Future[T]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed
                loop.call_soon_threadsafe(self.turns.leave, time.monotonic() - began)

        future = self._executor.submit(work)
        future.add_done_callback(done)
        return future
