"""Ending a run from another thread."""

from __future__ import annotations

import threading

import onnxruntime as ort


class CancelledError(Exception):
    """A generation was cancelled from outside; it never reaches the user."""


class Cancellation:
    """Set from any thread; the run that is under way ends at its next node."""

    def __init__(self) -> None:
        self.options = ort.RunOptions()
        # onnxruntime asks for this entry at each run, and takes a fifth of a millisecond to find that it is not there.
        self.options.add_run_config_entry("gpu_graph_id", "-1")
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()
        self.options.terminate = True

    def is_set(self) -> bool:
        return self._event.is_set()
