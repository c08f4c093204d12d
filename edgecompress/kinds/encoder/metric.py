"""Compares an encoder with its reference: vectors by cosine, heads by KL divergence and top-1 agreement."""

from __future__ import annotations

from edgecompress.kinds.encoder.tasks import COSINE, EMBEDDING, TASKS
from edgecompress.kinds.one_pass_metric import figures, quality, shortfall
from edgecompress.runtime.metrics import Outputs, compare_heads, compare_vectors
from edgecompress.types.report import Fidelity

__all__ = ["figures", "measure", "quality", "shortfall"]


def measure(task: str, reference: Outputs, outputs: Outputs) -> Fidelity:
    """Compare outputs sample by sample, with the task's metric."""
    if TASKS[task].metric == COSINE:
        return compare_vectors(reference, outputs, neighbours=task == EMBEDDING)
    return compare_heads(reference, outputs)
