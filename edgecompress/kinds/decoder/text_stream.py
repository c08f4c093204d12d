"""Passes a text from the model's thread to the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from edgecompress.endpoints.lane import Lane
from edgecompress.kinds.decoder.runtime import Session
from edgecompress.runtime.prompts import Options, Single
from edgecompress.runtime.results import Generated, Piece, Statistics
from edgecompress.runtime.stream import Stream


@dataclass(frozen=True, kw_only=True)
class Ended:
    """The last event of a text."""

    text: Generated
    statistics: Statistics


class Text:
    """Written in the model's thread, read in the event loop that created it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Piece | Ended | BaseException | None] = asyncio.Queue()
        self._stream: Stream | None = None
        self._cancelled = False

    def cancel(self) -> None:
        """End the text early. Thread-safe."""
        self._cancelled = True
        if self._stream is not None:
            self._stream.cancel()

    def write(self, session: Session, prompt: Single, options: Options) -> None:
        try:
            with session.stream(prompt, **options) as stream:
                self._stream = stream
                if self._cancelled:
                    stream.cancel()
                self._tell(None)
                for piece in stream:
                    self._tell(piece)
            self._tell(Ended(text=stream.result, statistics=stream.statistics))
        except BaseException as error:
            self._tell(error)

    def _tell(self, event: Piece | Ended | BaseException | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)

    async def begun(self) -> None:
        """Wait until the prompt is accepted and the model runs. Raises the errors of the model's thread."""
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event

    async def parts(self) -> AsyncIterator[list[Piece | Ended]]:
        """Yield all new events together: sending a fast model's pieces in groups costs less."""
        found: list[Piece | Ended] = []
        while not (found and isinstance(found[-1], Ended)):
            found, event = [], await self._events.get()
            while event is not None:
                if isinstance(event, BaseException):
                    if found:
                        yield found
                    raise event
                found.append(event)
                event = None if self._events.empty() else self._events.get_nowait()
            yield found


async def write(lane: Lane, session: Session, prompt: Single, options: Options) -> Text:
    """Start a text in its turn. Raises Refusal if it cannot get a turn, EdgeCompressError for an invalid request."""
    text = Text()
    await lane.start(lambda: text.write(session, prompt, options))
    try:
        await text.begun()
    except BaseException:
        text.cancel()
        raise
    return text
