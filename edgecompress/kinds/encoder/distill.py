"""How text encoders are trained: on vectors, hidden states or head outputs, one text at a time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgecompress.types.distill import DistillTask
from edgecompress.types.student import Student

if TYPE_CHECKING:
    import torch

_STATES = frozenset({"hidden", "relations"})
_HEAD = DistillTask(terms=_STATES | {"logits"}, weights={"logits": 1.0, "hidden": 1.0})

TASKS: Mapping[str, DistillTask] = {
    "sentence-similarity": DistillTask(terms=_STATES | {"embedding", "similarity"}, weights={"embedding": 1.0}),
    "feature-extraction": DistillTask(terms=_STATES, weights={"hidden": 1.0, "relations": 1.0}),
    "text-classification": _HEAD,
    "text-ranking": _HEAD,
    "token-classification": _HEAD,
    "fill-mask": _HEAD,
    "question-answering": DistillTask(terms=_STATES, weights={"hidden": 1.0}),
}


def pooler(student: Student, device: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None:
    """sentence-transformers' pooling, as in the bundle."""
    import torch

    from edgecompress.kinds.encoder.capture import Encoder

    pooling = student.pooling
    if pooling is None:
        return None
    encoder = Encoder(torch.nn.Identity(), student).to(device)
    return lambda hidden, mask: encoder.pool(pooling, hidden, mask)
