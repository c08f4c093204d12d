"""Runs graphs in ONNX Runtime on this CPU without optimizing them further, to calibrate, time and verify."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnxruntime as ort

from edgecompress.types.arrays import Array, Feed, Run
from edgecompress.types.bundle import TensorSpec

PROVIDERS = ("CPUExecutionProvider",)


def session_options(threads: int) -> ort.SessionOptions:
    """Session options for timing, calibration and verification."""
    options = ort.SessionOptions()
    options.log_severity_level = 4  # errors are raised as exceptions, so keep the log quiet
    options.intra_op_num_threads = threads
    # Worker threads of one session must not spin while another one is measured.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def make_session(path: Path, threads: int, library: Path | None = None) -> ort.InferenceSession:
    """A session without graph optimization. ``library`` holds the custom ops that the graph needs."""
    options = session_options(threads)
    if library is not None:
        options.register_custom_ops_library(str(library))
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(path), options, providers=list(PROVIDERS))


def open_session(path: Path, threads: int, library: Path | None = None) -> Run:
    """The graph as a function from a feed to its outputs; inputs that the graph does not have are ignored."""
    session = make_session(path, threads, library)
    names = {i.name for i in session.get_inputs()}

    def run(feed: Feed) -> Sequence[Array]:
        outputs: Sequence[Array] = session.run(None, {k: v for k, v in feed.items() if k in names})
        return outputs

    return run


class GraphModel:
    """A session as a :class:`~edgecompress.runtime.model.Model`."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())
        self.outputs = tuple(_spec(value) for value in session.get_outputs())
        self._names = frozenset(value.name for value in self.inputs)

    def run(self, feed: Feed, wanted: Sequence[str] | None = None) -> list[Array]:
        names = list(wanted) if wanted is not None else None
        outputs: list[Array] = self._session.run(names, {k: v for k, v in feed.items() if k in self._names})
        return outputs

    def close(self) -> None:
        """Does nothing: the session is freed with its last reference."""


def open_model(path: Path, threads: int, library: Path | None = None) -> GraphModel:
    """Open a graph without optimizing it; see :func:`make_session`."""
    return GraphModel(make_session(path, threads, library))


_DTYPES = {"float": "float32", "double": "float64"}  # ONNX Runtime's names that are not NumPy's


def _spec(value: Any) -> TensorSpec:
    dtype = str(value.type).removeprefix("tensor(").removesuffix(")")
    shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
    return TensorSpec(name=value.name, dtype=_DTYPES.get(dtype, dtype), shape=shape)
