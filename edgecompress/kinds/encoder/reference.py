"""What PyTorch gives: the reference that every compressed graph is held against."""

from __future__ import annotations

from collections.abc import Sequence

from edgecompress.capture.eager import run_module
from edgecompress.capture.model import load_model
from edgecompress.kinds.encoder.capture import Encoder, takes_token_types
from edgecompress.types.arrays import Feed, FloatArray
from edgecompress.types.student import Student


def reference_outputs(student: Student, feeds: Sequence[Feed]) -> list[list[FloatArray]]:
    """Run the student eagerly, one feed at a time; a list of its outputs for each feed."""
    model = Encoder(load_model(student, "eager"), student).eval()
    if not takes_token_types(student, model.model):
        feeds = [{name: value for name, value in feed.items() if name != "token_type_ids"} for feed in feeds]
    return run_module(model, feeds)
