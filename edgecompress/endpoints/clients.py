"""Clients that disconnect before they get a response."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from edgecompress.endpoints.refusals import Refusal

T = TypeVar("T")

CLIENT_GONE = 499
"""Status of a response that no client receives."""


class ClientGoneError(Exception):
    """The client has disconnected."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """The result of ``work``. If the client disconnects, cancels the work and raises ClientGoneError."""
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, gone):
            if not task.done():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError, Refusal):
                    await task


async def _gone(request: Request) -> None:
    """Wait for the disconnect; the body has been read already."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
