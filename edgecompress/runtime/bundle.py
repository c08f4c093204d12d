"""A bundle whose files have been checked, ready for the runtime of its kind."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from edgecompress.errors import BundleError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import require_listed
from edgecompress.runtime.cuda.device import Device
from edgecompress.runtime.model import CachedModel, Loader, Model
from edgecompress.runtime.session import thread_count
from edgecompress.types.bundle import MODEL, Manifest, Variant

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class OpenBundle:
    """``loader`` maps a backend's name to its ``load`` module. ``device`` is the GPU's index, for a GPU bundle."""

    manifest: Manifest
    folder: Path
    loader: Callable[[str], Loader]
    wanted_threads: int | None = None
    device: int | None = None

    @property
    def threads(self) -> int:
        """Threads per model. Raises UsageError if the requested number is below 1."""
        return thread_count(next(iter(self.manifest.variants)), self.wanted_threads)

    @property
    def lanes(self) -> int:
        """Batches that run in parallel, one thread each."""
        parallel = all(self.loader(variant.backend).PARALLEL_SESSIONS for variant in self.manifest.variants)
        return self.threads if parallel else 1

    def gpu(self) -> Device | None:
        """The models' GPU, or None for a CPU bundle. Raises HostError if this machine does not have it."""
        found = (self.loader(self.variant(name).backend).device_of(self, name) for name in sorted(self.manifest.models))
        return next((device for device in found if device is not None), None)

    def variant(self, name: str = MODEL) -> Variant:
        """Raises BundleError if the bundle has no such model."""
        if name not in self.manifest.models:
            raise BundleError(f"{self.manifest.name} has no model '{name}'", hint="Export it again with this version.")
        return self.manifest.variant(name)

    def open(self, name: str = MODEL, *, threads: int | None = None) -> Model:
        """Open a model. Raises HostError if it cannot run on this machine; there is no fallback."""
        return self.loader(self.variant(name).backend).open_model(self, name, threads or self.threads)

    def open_cached(self, name: str = MODEL) -> CachedModel:
        """Open a model that updates its KV cache in place. Raises HostError; BundleError if it has no cache."""
        return self.loader(self.variant(name).backend).open_cached_model(self, name, self.threads)


def read_settings(cls: type[T], manifest: Manifest) -> T:
    """Read the kind's settings from the manifest. Raises BundleError if they are invalid or name an unlisted file."""
    try:
        settings = from_jsonable(cls, dict(manifest.settings), "settings")
    except ValueError as error:
        raise BundleError(
            f"the manifest of {manifest.name} is not valid: {error}", hint="Export the student again with this version."
        ) from error
    require_listed(manifest, getattr(settings, "files", ()))
    return settings
