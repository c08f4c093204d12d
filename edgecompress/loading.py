"""Open a bundle as what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.runtime.session import check_host

if TYPE_CHECKING:
    from edgecompress.kinds.decoder.runtime import Generator

GENERATION_TASK = "text-generation"


def load(
    path: str | os.PathLike[str],
    *,
    threads: int | None = None,
    device: int | None = None,
    allow_mismatch: bool = False,
) -> Encoder | Generator:
    """Check a bundle, byte for byte, and open it: a Generator for text-generation, an Encoder for every other task.

    ``threads`` None takes the target's choice; ``device`` is the number of the GPU, for a bundle that runs on one and
    where several could be meant. Raises BundleError if the bundle is not whole, HostError if this CPU is not the one it
    was compiled for (unless ``allow_mismatch``), if a GPU, a library or a provider that it needs is not here, or if
    memory is short.
    """
    manifest, folder = open_bundle(Path(path))
    if not allow_mismatch:
        check_host(manifest)
    if manifest.task == GENERATION_TASK:
        from edgecompress.kinds.decoder.runtime import Generator

        return Generator(manifest, folder, threads, device)
    return Encoder(manifest, folder, threads, device)
