"""Interrupts that got lost: what a signal handler raises inside a weak reference's callback is printed and dropped.

torch's modules have such callbacks by the thousand, and they run whenever a graph is let go.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """While this is open, what the handlers of SIGINT and SIGTERM raise is remembered.

    Handlers belong to the main thread: opened in another one, this does nothing.
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
        """Raise what a handler raised and nobody saw."""
        if self._raised is not None:
            raise self._raised
