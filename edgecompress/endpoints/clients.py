"""Clients that hang up before they are answered."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from typing import TypeVar

from fastapi import Request

from edgecompress.endpoints.refusals import Refusal

T = TypeVar("T")

CLIENT_GONE = 499
"""Status of an answer that nobody reads."""


class ClientGoneError(Exception):
    """Nobody waits for the answer."""


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Its result, or ClientGoneError, with the work cancelled, as soon as the client hung up."""
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
    """The body was read before, so what comes now is the end."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
