"""Loss terms between student and teacher. Padding is excluded; every loss is a mean."""

from __future__ import annotations

import torch
from torch.nn import functional

from edgecompress.distill.recording import Heads


def logits_divergence(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor, temperature: float
) -> torch.Tensor:
    """KL(teacher ‖ student) in nats per position, times the temperature squared (Hinton, arXiv 1503.02531).

    Logits [..., V]; ``mask`` [...] selects the positions that count.
    """
    kept = mask.bool()
    # Softmax over selected positions only: the vocabulary is large, and padding is often half of a batch.
    near = functional.log_softmax(student[kept] / temperature, dim=-1)
    far = functional.log_softmax(teacher[kept] / temperature, dim=-1)
    return functional.kl_div(near, far, reduction="sum", log_target=True) / kept.sum().clamp(min=1) * temperature**2


def hidden_difference(student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Squared difference of states [B, T, H], relative to the teacher's square, so layers of any scale count alike."""
    weights = mask.unsqueeze(-1).to(teacher.dtype)
    return ((student - teacher).square() * weights).sum() / (teacher.square() * weights).sum().clamp(min=1e-9)


def relation_divergence(student: Heads, teacher: Heads, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """KL of query-query, key-key and value-value relations (MiniLMv2, arXiv 2012.15828), the mean of the three."""
    parts = [
        _relation(near, mask, heads, far) for near, far in zip(student, teacher, strict=True)
    ]  # fmt: skip
    return torch.stack(parts).mean()


def _relation(student: torch.Tensor, mask: torch.Tensor, heads: int, teacher: torch.Tensor) -> torch.Tensor:
    near, far = (_log_relation(x, mask, heads) for x in (student, teacher))
    divergence = (far.exp() * (far - near)).masked_fill(~mask.bool()[:, None, None, :], 0.0).sum(-1)  # [B, R, T]
    rows = mask[:, None, :].to(divergence.dtype)
    return (divergence * rows).sum() / (rows.sum() * heads).clamp(min=1)


def _log_relation(x: torch.Tensor, mask: torch.Tensor, heads: int) -> torch.Tensor:
    """Log of softmax(x xᵀ / √d), [B, R, T, T] for R relation heads, from x [B, H, T, D]."""
    batch, _, tokens, _ = x.shape
    split = x.transpose(1, 2).reshape(batch, tokens, heads, -1).transpose(1, 2)
    scores = split @ split.transpose(-1, -2) / split.shape[-1] ** 0.5
    scores = scores.masked_fill(~mask.bool()[:, None, None, :], torch.finfo(scores.dtype).min)
    return functional.log_softmax(scores, dim=-1)


def vector_distance(student: torch.Tensor, teacher: torch.Tensor, distance: str) -> torch.Tensor:
    """Of pooled vectors [B, D]: one minus the cosine, or the mean squared difference."""
    if distance == "mse":
        return functional.mse_loss(student, teacher)
    return (1 - functional.cosine_similarity(student, teacher, dim=-1)).mean()


def similarity_difference(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Squared difference of the cosines between the texts of a batch; vectors [B, D], whose D may differ."""
    near, far = (functional.normalize(x, dim=-1) for x in (student, teacher))
    return functional.mse_loss(near @ near.T, far @ far.T)


def next_token(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy in nats per position of logits [B, T, V] against the next label, without IGNORED labels."""
    return functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
