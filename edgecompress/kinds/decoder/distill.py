"""How decoders are trained: next-token prediction on windows of concatenated texts, or on responses to prompts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgecompress.types.distill import DistillTask
from edgecompress.types.student import Student

TASKS: Mapping[str, DistillTask] = {
    "text-generation": DistillTask(
        terms=frozenset({"logits", "hidden", "relations", "cross_entropy"}),
        weights={"logits": 1.0},
        rounded_weights={"logits": 1.0, "hidden": 1.0},  # no measured gain over logits alone: ADR 0023
        next_token=True,
        blocks_tables=True,
        rounded_learning_rate=2e-5,
    )
}


def pooler(student: Student, device: Any) -> None:
    """Decoders have no pooling."""
