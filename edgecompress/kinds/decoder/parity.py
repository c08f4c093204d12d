"""Compares the captured graph with the student: the exporter can write a graph that loads but is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from edgecompress.errors import StudentError
from edgecompress.graph.sessions import open_model
from edgecompress.kinds.decoder.check import Ids, Logits, logits_of
from edgecompress.lower.microsoft import lower
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student

_TOLERANCE = 1e-3  # relative to the largest logit
_MOST_BYTES = (
    2_000_000_000  # a larger float32 graph is not run here; the compiled graph is compared with PyTorch instead
)


def require_parity(student: Student, captured: Graph, folder: Path, threads: int, ids: Ids, reference: Logits) -> None:
    """Compare the graph's logits of a text int64 [T] with the reference's [T, V]. Raises StudentError."""
    if captured.bytes_on_disk > _MOST_BYTES:
        return
    found = logits_of(open_model(lower(captured, folder).path, threads))(ids)
    difference = float(np.abs(found - reference).max())
    if not difference <= _TOLERANCE * max(1.0, float(np.abs(reference).max())):
        raise StudentError(
            f"the captured graph of architecture '{student.architecture}' differs from PyTorch by {difference:.2g}",
            hint="This version does not support the architecture; see `edgecompress architectures` for those it does.",
        )
