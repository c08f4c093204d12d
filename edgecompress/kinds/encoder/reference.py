"""What PyTorch gives: the reference that every compressed graph is held against."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from edgecompress.capture.model import Encoder, load_model, takes_token_types
from edgecompress.types.student import Student


def reference_outputs(
    student: Student, feeds: Sequence[dict[str, npt.NDArray[Any]]]
) -> list[list[npt.NDArray[np.float32]]]:
    """Run the student eagerly, one feed at a time; a list of its outputs for each feed."""
    model = Encoder(load_model(student, "eager"), student).eval()
    types = takes_token_types(student, model.model)
    results = []
    with torch.no_grad():
        for feed in feeds:
            inputs = [torch.from_numpy(v) for name, v in feed.items() if name != "token_type_ids" or types]
            results.append([output.numpy() for output in model(*inputs)])
    return results
