"""The request queue: one call at a time, first come, first served, with limited length."""

from __future__ import annotations

import asyncio
from collections import deque

from edgecompress.endpoints.refusals import busy, closing

_OLD, _NEW = 0.8, 0.2  # weights of the running mean of a call's time
_LONGEST_S = 60.0  # of Retry-After


class Turns:
    """For one event loop. Every ``take`` needs exactly one ``leave``, in every case."""

    def __init__(self, most_waiting: int) -> None:
        self._most = most_waiting
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._taken = self._closed = False
        self._call_s = 1.0

    @property
    def running(self) -> bool:
        return self._taken

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def closed(self) -> bool:
        return self._closed

    async def take(self) -> None:
        """Raises Refusal: 429 if too many are waiting, 503 once the server shuts down."""
        if self._closed:
            raise closing()
        if not self._taken:
            self._taken = True
            return
        if len(self._waiting) >= self._most:
            raise busy(len(self._waiting), min(self._call_s * (len(self._waiting) + 1), _LONGEST_S))
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():  # the turn was granted just now
                self._next()
            elif mine in self._waiting:
                self._waiting.remove(mine)
            raise

    def leave(self, seconds: float) -> None:
        """``seconds``: duration of the call."""
        self._call_s = _OLD * self._call_s + _NEW * seconds
        self._next()

    def close(self) -> None:
        """Refuse waiting requests; the running one continues."""
        self._closed = True
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_exception(closing())

    def _next(self) -> None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return
        self._taken = False
