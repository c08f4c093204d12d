"""Recovers lost interrupts: Python prints and drops what a signal handler raises inside a weak reference's callback.

torch's modules have thousands of such callbacks, which run whenever a graph is freed.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While open, remembers what the handlers of SIGINT and SIGTERM raise.

    Does nothing outside the main thread, which alone runs signal handlers.
    """

    def __init__(self) -> None:
        self._previous: dict[int, Any] = {}
        self._raised: BaseException | None = None

    def __enter__(self) -> Interrupts:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                if callable(handler := signal.getsignal(number)):
                    self._previous[number] = handler
                    signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        try:
            self._previous[number](number, frame)
        except BaseException as error:
            self._raised = error
            raise

    def raise_lost(self) -> None:
        """Raise again what a handler raised, in case it was dropped."""
        if self._raised is not None:
            raise self._raised
