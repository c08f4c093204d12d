"""The student as a PyTorch module, as transformers loads it."""

from __future__ import annotations

import copy
from typing import Any

import torch
import transformers

from edgecompress.errors import StudentError
from edgecompress.types.student import Student


def load_model(student: Student, attention: str, experts: str | None = None) -> torch.nn.Module:
    """Load the checkpoint in float32 with the given attention (and experts) implementation, in evaluation mode.

    Raises ValueError from transformers if the architecture does not take that implementation.
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
    # from_pretrained shares the config object with the model: a second load must not see the first one's choice.
    model, info = auto.from_pretrained(student.path, config=copy.deepcopy(config), output_loading_info=True, **options)
    missing = [key for key in info["missing_keys"] if "pooler" not in key]
    if missing:
        raise StudentError(
            f"the checkpoint lacks weights for task '{student.task}': {', '.join(sorted(missing)[:3])}",
            hint="Transformers would fill them with random numbers. Give --task for the head it was trained with.",
        )
    return model.eval()  # type: ignore[no-any-return]
