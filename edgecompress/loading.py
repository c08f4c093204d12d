"""Open a bundle as what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgecompress.backends import find_backend
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds import find_kind
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.runtime.session import check_host
from edgecompress.types.bundle import Manifest


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: int | None = None,
    allow_mismatch: bool = False,
) -> Any:
    """Check a bundle, byte for byte, and open it as its kind: a Generator for text generation, an Encoder for texts.

    ``threads`` None takes the target's choice; ``device`` is the number of the GPU, for a bundle that runs on one and
    where several could be meant. Raises BundleError if the bundle is not whole, HostError if this CPU is not the one it
    was compiled for (unless ``allow_mismatch``), if a GPU, a library or a provider that it needs is not here, or if
    memory is short.
    """
    manifest, folder = open_bundle(Path(path))
    if not allow_mismatch:
        check_host(manifest)
    return open_model(open_models(manifest, folder, threads=threads, device=device))


def open_models(
    manifest: Manifest, folder: Path, *, threads: int | None = None, device: int | None = None
) -> OpenBundle:
    """A bundle whose files were checked, with the backends that open its models; nothing is opened yet."""
    return OpenBundle(
        manifest=manifest,
        folder=folder,
        loader=lambda name: find_backend(name).load,
        wanted_threads=threads,
        device=device,
    )


def open_model(source: OpenBundle) -> Any:
    """What the bundle's kind makes of it."""
    return find_kind(source.manifest.kind).runtime.open_bundle(source)
