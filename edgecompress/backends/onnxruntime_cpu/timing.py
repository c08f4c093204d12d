"""Opens sessions that time every node with ONNX Runtime's profiler, and reads the results."""

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
    """``folder``: for ONNX Runtime's profiles."""
    return SessionTimer(folder)


class SessionTimer:
    """Opens models like :mod:`edgecompress.backends.onnxruntime_cpu.load`, each of them once."""

    PARALLEL_SESSIONS = False
    runtime = "onnxruntime"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._sessions: dict[str, ort.InferenceSession] = {}

    def open_model(self, source: OpenBundle, name: str, threads: int) -> SessionModel:
        """Raises UsageError if the caller chose a GPU."""
        return SessionModel(self._open(source, name, threads), source.variant(name))

    def open_cached_model(self, source: OpenBundle, name: str, threads: int) -> CachedSessionModel:
        """Raises UsageError if the caller chose a GPU."""
        return CachedSessionModel(self._open(source, name, threads), source.variant(name).path, KVCache)

    def device_of(self, source: OpenBundle, name: str) -> None:
        """None: this backend does not use a GPU."""

    def events(self, name: str) -> list[Event]:
        """Return ONNX Runtime's profile. The model cannot run after this."""
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
    """Return node -> microseconds for each run.

    A node with inner nodes, an If, gets its time without theirs.
    """
    bounds = sorted((e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == "model_run")
    nodes = sorted(
        ((e["ts"], -e["dur"], e["name"].removesuffix(_END)) for e in events if e.get("name", "").endswith(_END)),
    )
    found: list[Durations] = []
    at = 0
    for begin, end in bounds:
        durations: Durations = defaultdict(float)
        around: list[tuple[float, str]] = []  # (end, name) of each enclosing node
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
