"""Loads the student as a PyTorch module, through transformers."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

from edgecompress.errors import StudentError
from edgecompress.types.student import Student


def load_model(student: Student, attention: str, experts: str | None = None) -> torch.nn.Module:
    """Load the checkpoint in float32 with the given attention (and experts) implementation, in evaluation mode.

    Raises StudentError if the checkpoint lacks weights for the task, and transformers' ValueError if the architecture
    does not support the implementation.
    """
    transformers.utils.logging.disable_progress_bar()
    auto = getattr(transformers, student.auto_class)
    options: dict[str, Any] = {
        "attn_implementation": attention,
        "dtype": torch.float32,
        "trust_remote_code": student.trust_remote_code,
        "use_safetensors": None if student.allow_pickle else True,
    }
    if experts is not None:
        options["experts_implementation"] = experts
    config = transformers.AutoConfig.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)
    # from_pretrained shares the config with the model: copy it, so that a second load does not see the first's changes.
    model, info = auto.from_pretrained(student.path, config=copy.deepcopy(config), output_loading_info=True, **options)
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise StudentError(
            f"the checkpoint lacks weights for task '{student.task}': {', '.join(sorted(missing)[:3])}",
            hint="transformers would fill them with random values. Give the --task that it was trained for.",
        )
    return model.eval()  # type: ignore[no-any-return]
