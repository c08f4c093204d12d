"""Compares an image encoder with its reference, with the metrics of text encoders."""

from __future__ import annotations

from edgecompress.kinds.one_pass_metric import figures, quality, shortfall
from edgecompress.kinds.vision.tasks import HIDDEN_STATES
from edgecompress.runtime.metrics import Outputs, compare_heads, compare_vectors
from edgecompress.types.report import Fidelity

__all__ = ["figures", "measure", "quality", "shortfall"]


def measure(task: str, reference: Outputs, outputs: Outputs) -> Fidelity:
    """Compare outputs sample by sample, with the task's metric."""
    if task == HIDDEN_STATES:
        return compare_vectors(reference, outputs, neighbours=False)
    return compare_heads(reference, outputs)
