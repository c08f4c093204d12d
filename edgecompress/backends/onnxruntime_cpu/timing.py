"""Sessions in which ONNX Runtime times every node, and what it wrote down of them."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgecompress.backends.onnxruntime_cpu.load import require_no_gpu
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.session import make_session
from edgecompress.runtime.session_models import CachedSessionModel, SessionModel

_END = "_kernel_time"

Durations = dict[str, float]  # node -> microseconds
Event = Mapping[str, Any]


def node_timer(folder: Path) -> SessionTimer:
    """``folder``: where ONNX Runtime writes."""
    return SessionTimer(folder)


class SessionTimer:
    """Opens models as :mod:`edgecompress.backends.onnxruntime_cpu.load` does, each of them once."""

    PARALLEL_SESSIONS = False
    runtime = "onnxruntime"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, ort.InferenceSession] = {}

    def open_model(self, source: OpenBundle, name: str, threads: int) -> SessionModel:
        """Raises UsageError if a GPU was named."""
        return SessionModel(self._open(source, name, threads), source.variant(name))

    def open_cached_model(self, source: OpenBundle, name: str, threads: int) -> CachedSessionModel:
        """Raises UsageError if a GPU was named."""
        return CachedSessionModel(self._open(source, name, threads), source.variant(name).path, KVCache)

    def device_of(self, source: OpenBundle, name: str) -> None:
        """None: it runs on no GPU."""

    def events(self, name: str) -> list[Event]:
        """ONNX Runtime's own account. The model can be run no more."""
        found: list[Event] = json.loads(Path(self._sessions[name].end_profiling()).read_text(encoding="utf-8"))
        return found

    def runs(self, name: str) -> list[Durations]:
        return read_runs(self.events(name))

    def _open(self, source: OpenBundle, name: str, threads: int) -> ort.InferenceSession:
        require_no_gpu(source)
        session = make_session(source.folder, source.variant(name), threads, profile_to=self._folder / name)
        self._sessions[name] = session
        return session


def read_runs(events: Sequence[Event]) -> list[Durations]:
    """The nodes' times of each run, in microseconds.

    A node that holds others, an If, has only what they leave of its time.
    """
    bounds = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted(
        ((e["ts"], -e["dur"], e["name"].removesuffix(_END)) for e in events if e.get("name", "").endswith(_END)),
    )
    found: list[Durations] = []
    at = 0
    for begin, end in bounds:
        durations: Durations = defaultdict(float)
        around: list[tuple[float, str]] = []  # the end of each node that is open, and its name
        while at < len(nodes) and nodes[at][0] < begin:
            at += 1
        while at < len(nodes) and nodes[at][0] <= end:
            start, minus, name = nodes[at]
            while around and around[-1][0] <= start:
                around.pop()
            durations[name] -= minus
            if around and start - minus <= around[-1][0]:
                durations[around[-1][1]] += minus
            around.append((start - minus, name))
            at += 1
        found.append(dict(durations))
    return found
