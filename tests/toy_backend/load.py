"""Opens a table."""

from __future__ import annotations

from edgecompress.errors import BundleError
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.model import CachedModel
from tests.toy_backend.table import Table

PARALLEL_SESSIONS = False


def open_model(source: OpenBundle, name: str, threads: int) -> Table:
    return Table(source.folder / source.variant(name).path)


def open_cached_model(source: OpenBundle, name: str, threads: int) -> CachedModel:
    raise BundleError("the table backend has no KV cache")


def device_of(source: OpenBundle, name: str) -> None: ...
