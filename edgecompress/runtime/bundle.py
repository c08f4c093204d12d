"""A bundle whose files were checked, as the runtime of its kind takes it."""

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
    """``loader``: a backend's name -> its ``load`` module; ``device``: the GPU, of a bundle for one."""

    manifest: Manifest
    folder: Path
    loader: Callable[[str], Loader]
    wanted_threads: int | None = None
    device: int | None = None

    @property
    def threads(self) -> int:
        """Of each model. Raises UsageError for a number that makes no sense."""
        return thread_count(next(iter(self.manifest.variants)), self.wanted_threads)

    @property
    def lanes(self) -> int:
        """Batches that are worked on side by side, one thread each."""
        parallel = all(self.loader(variant.backend).PARALLEL_SESSIONS for variant in self.manifest.variants)
        return self.threads if parallel else 1

    def gpu(self) -> Device | None:
        """The GPU that its models run on; None: they run on none. Raises HostError if it is not here."""
        found = (self.loader(self.variant(name).backend).device_of(self, name) for name in sorted(self.manifest.models))
        return next((device for device in found if device is not None), None)

    def variant(self, name: str = MODEL) -> Variant:
        """Raises BundleError if the bundle has no such model."""
        if name not in self.manifest.models:
            raise BundleError(f"{self.manifest.name} has no model '{name}'", hint="Export it again with this version.")
        return self.manifest.variant(name)

    def open(self, name: str = MODEL, *, threads: int | None = None) -> Model:
        """Raises HostError if it cannot run here: nothing else runs in its place."""
        return self.loader(self.variant(name).backend).open_model(self, name, threads or self.threads)

    def open_cached(self, name: str = MODEL) -> CachedModel:
        """A model that keeps a cache in place. Raises HostError, BundleError if it is none."""
        return self.loader(self.variant(name).backend).open_cached_model(self, name, self.threads)


def read_settings(cls: type[T], manifest: Manifest) -> T:
    """The manifest's record of its kind. Raises BundleError if it is not valid, or names a file that is not listed."""
    try:
        settings = from_jsonable(cls, dict(manifest.settings), "settings")
    except ValueError as error:
        raise BundleError(
            f"the manifest of {manifest.name} is not valid: {error}", hint="Export it again with this version."
        ) from error
    require_listed(manifest, getattr(settings, "files", ()))
    return settings
