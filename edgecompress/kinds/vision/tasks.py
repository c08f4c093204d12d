"""The tasks of image encoders."""

from __future__ import annotations

from collections.abc import Mapping

from edgecompress.types.task import Task

HIDDEN_STATES, CLASSIFICATION = "image-feature-extraction", "image-classification"

_ALL = (
    Task(name=HIDDEN_STATES, auto_class="AutoModel", outputs=("last_hidden_state",), metric="cosine"),
    Task(
        name=CLASSIFICATION,
        auto_class="AutoModelForImageClassification",
        outputs=("logits",),
        metric="kl",
        heads=("ForImageClassification", "ForImageClassificationWithTeacher"),
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
