"""Opens a graph with ONNX Runtime's CPU provider."""

from __future__ import annotations

from edgecompress.errors import UsageError
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.session import make_session
from edgecompress.runtime.session_models import CachedSessionModel, SessionModel

PARALLEL_SESSIONS = True


def open_model(source: OpenBundle, name: str, threads: int) -> SessionModel:
    """Raises UsageError if the caller chose a GPU."""
    require_no_gpu(source)
    variant = source.variant(name)
    return SessionModel(make_session(source.folder, variant, threads), variant)


def open_cached_model(source: OpenBundle, name: str, threads: int) -> CachedSessionModel:
    """Raises UsageError if the caller chose a GPU."""
    require_no_gpu(source)
    variant = source.variant(name)
    session = make_session(source.folder, variant, threads, huge_pages=True)
    return CachedSessionModel(session, variant.path, KVCache)


def device_of(source: OpenBundle, name: str) -> None:
    """None: this backend does not use a GPU."""


def require_no_gpu(source: OpenBundle) -> None:
    """Raises UsageError if the caller chose a GPU."""
    if source.device is not None:
        manifest = source.manifest
        raise UsageError(
            f"{manifest.name} is for {manifest.target.name}, a CPU, and cannot run on a GPU",
            hint="Omit --device, or export the student for a GPU target.",
        )
