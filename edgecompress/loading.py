"""Opens a bundle with the runtime of its kind."""

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
    """Check every byte of a bundle and open it: a Generator for text generation, an Encoder for texts or images.

    ``threads``: None uses the target's setting. ``device``: the GPU's number, needed only if several GPUs qualify.
    Raises BundleError if a file is missing or altered; HostError if this CPU does not match the target (unless
    ``allow_mismatch``), if a GPU, library or execution provider is missing, or if memory is too small.
    """
    manifest, folder = open_bundle(Path(path))
    if not allow_mismatch:
        check_host(manifest)
    return open_model(open_models(manifest, folder, threads=threads, device=device))


def open_models(
    manifest: Manifest, folder: Path, *, threads: int | None = None, device: int | None = None
) -> OpenBundle:
    """Pair a checked bundle with the backends that open its models; no model is opened yet."""
    return OpenBundle(
        manifest=manifest,
        folder=folder,
        loader=lambda name: find_backend(name).load,
        wanted_threads=threads,
        device=device,
    )


def open_model(source: OpenBundle) -> Any:
    """Open the bundle with the runtime of its kind."""
    return find_kind(source.manifest.kind).runtime.open_bundle(source)
