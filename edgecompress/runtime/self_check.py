"""Checks a bundle on this machine against the reference outputs that it carries."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing

import numpy as np

from edgecompress.errors import BundleError
from edgecompress.formats.manifest import REFERENCE
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.types.arrays import Array, Feed
from edgecompress.types.report import Fidelity

Outputs = Sequence[Sequence[Array]]


def pack_samples(samples: Iterable[Feed], limit_bytes: int) -> bytes:
    """Pack the first samples, as many as fit and at least one, into an .npz file. Array names must be unique."""
    arrays: dict[str, Array] = {}
    size = 0
    for index, sample in enumerate(samples):
        size += sum(value.nbytes for value in sample.values())
        if index and size > limit_bytes:
            break
        arrays |= sample
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def check_outputs(source: OpenBundle, measure: Callable[[Outputs, Outputs], Fidelity]) -> Fidelity:
    """Run the bundle's only model on the samples that it carries; ``measure``: (reference, outputs) -> fidelity.

    Raises BundleError, or HostError if the bundle cannot run on this machine.
    """
    path = source.folder / REFERENCE
    if not path.exists():
        raise BundleError(f"the bundle has no {REFERENCE}, so its outputs cannot be checked on this machine")
    with closing(source.open()) as model, np.load(path, allow_pickle=False) as arrays:
        samples = sorted({int(name.partition("/")[0]) for name in arrays.files})
        reference, outputs = [], []
        for sample in samples:
            names = [name for name in arrays.files if name.startswith(f"{sample}/in/")]
            feed = {name.rpartition("/")[2]: arrays[name] for name in names}
            count = sum(name.startswith(f"{sample}/out/") for name in arrays.files)
            reference.append([arrays[f"{sample}/out/{i}"] for i in range(count)])
            outputs.append(model.run(feed))
    return measure(reference, outputs)
