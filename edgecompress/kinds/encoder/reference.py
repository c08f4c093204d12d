"""PyTorch's outputs: the reference for every compressed graph."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.capture.eager import run_module
from edgecompress.capture.model import load_model
from edgecompress.kinds.encoder.capture import Encoder, takes_token_types
from edgecompress.types.arrays import Feed, FloatArray
from edgecompress.types.student import Student


def reference_outputs(student: Student, feeds: Sequence[Feed]) -> list[list[FloatArray]]:
    """Run the student in eager mode, one feed at a time; return a list of outputs for each feed."""
    model = Encoder(load_model(student, "eager"), student).eval()
    if not takes_token_types(student, model.model):
        feeds = [{name: value for name, value in feed.items() if name != "token_type_ids"} for feed in feeds]
    return run_module(model, feeds)
