"""Turns class logits into labels with scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import UsageError


def check_counts(*, batch_size: int, top_k: int = 1) -> None:
    """Raises UsageError unless both are at least 1."""
    for name, value in (("batch_size", batch_size), ("top_k", top_k)):
        if value < 1:
            raise UsageError(f"{name} must be at least 1, not {value}", hint="Omit it to use the default.")


def softmax(x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    shifted = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return np.asarray(shifted / shifted.sum(-1, keepdims=True))


def label_of(labels: Sequence[str], index: int) -> str:
    """The checkpoint's name for the class, or its number."""
    return labels[index] if index < len(labels) else f"LABEL_{index}"


def top_labels(logits: npt.NDArray[Any], labels: Sequence[str], top_k: int) -> list[dict[str, Any]]:
    """The ``top_k`` most probable classes of logits [C], as label and softmax score."""
    scores = softmax(logits)
    best = np.argsort(-scores, kind="stable")[:top_k]
    return [{"label": label_of(labels, int(i)), "score": round(float(scores[i]), 6)} for i in best]
