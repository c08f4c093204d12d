"""Losses against the formulas, written out in NumPy; padding counts nowhere."""

from __future__ import annotations

import numpy as np
import torch

from edgecompress.distill.losses import (
    hidden_difference,
    logits_divergence,
    next_token,
    relation_divergence,
    similarity_difference,
    vector_distance,
)
from edgecompress.distill.recording import Heads


def rand(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def test_logits_are_held_against_each_other_with_a_temperature() -> None:
    near, far = rand(2, 3, 7), rand(2, 3, 7, seed=1)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    got = logits_divergence(near, far, mask, temperature=2.0)
    p, q = softmax(far.numpy() / 2), softmax(near.numpy() / 2)
    expected = (p * np.log(p / q)).sum(-1)[mask.numpy().astype(bool)].mean() * 4
    np.testing.assert_allclose(got.item(), expected, rtol=1e-5)
    assert logits_divergence(far, far, mask, 1.0).item() == 0


def test_states_count_relative_to_the_teachers() -> None:
    near, far = rand(2, 3, 4), rand(2, 3, 4, seed=1)
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    kept = mask.numpy().astype(bool)
    expected = ((near - far).numpy()[kept] ** 2).sum() / (far.numpy()[kept] ** 2).sum()
    np.testing.assert_allclose(hidden_difference(near, far, mask).item(), expected, rtol=1e-5)
    np.testing.assert_allclose(hidden_difference(near * 9, far * 9, mask).item(), expected, rtol=1e-5)


def test_relations_are_those_of_minilm() -> None:
    """A student of another width and another number of heads; the padded token is nobody's relation."""
    near = Heads(*(rand(1, 2, 3, 4, seed=n) for n in range(3)))
    far = Heads(*(rand(1, 4, 3, 6, seed=n + 9) for n in range(3)))
    mask = torch.tensor([[1, 1, 0]])
    expected = []
    for a, b in zip(near, far, strict=True):
        total = 0.0
        for head in range(2):
            rows = []
            for x in (a, b):
                flat = x[0].permute(1, 0, 2).reshape(3, -1).numpy()
                part = flat[:2, head * flat.shape[1] // 2 : (head + 1) * flat.shape[1] // 2]
                rows.append(softmax(part @ part.T / np.sqrt(part.shape[1])))
            total += (rows[1] * np.log(rows[1] / rows[0])).sum(-1).sum()
        expected.append(total / 4)
    np.testing.assert_allclose(relation_divergence(near, far, mask, 2).item(), np.mean(expected), rtol=1e-4)
    assert abs(relation_divergence(far, far, mask, 2).item()) < 1e-6


def test_relations_have_a_gradient_where_texts_are_padded() -> None:
    near = Heads(*(rand(2, 2, 3, 4, seed=n).requires_grad_() for n in range(3)))
    far = Heads(*(rand(2, 2, 3, 4, seed=n + 9) for n in range(3)))
    relation_divergence(near, far, torch.tensor([[1, 0, 0], [1, 1, 1]]), 2).backward()
    for x in near:
        assert x.grad is not None
        assert torch.isfinite(x.grad).all()
        assert x.grad[0, :, 1:].abs().sum() == 0


def test_vectors() -> None:
    near, far = rand(3, 5), rand(3, 5, seed=1)
    cosine = (near * far).sum(1) / near.norm(dim=1) / far.norm(dim=1)
    np.testing.assert_allclose(vector_distance(near, far, "cosine").item(), (1 - cosine).mean().item(), rtol=1e-5)
    np.testing.assert_allclose(vector_distance(near, far, "mse").item(), ((near - far) ** 2).mean().item(), rtol=1e-5)
    turned = far @ torch.linalg.qr(rand(5, 5, seed=2)).Q
    assert similarity_difference(turned, far).item() < 1e-10  # cosines do not see a rotation
    assert similarity_difference(near[:, :4], far).item() > 1e-3


def test_the_next_token_is_scored_where_it_has_a_label() -> None:
    logits = rand(1, 4, 6)
    labels = torch.tensor([[-100, -100, 3, 2]])
    chosen = torch.log_softmax(logits, -1)[0, [1, 2], [3, 2]]
    np.testing.assert_allclose(next_token(logits, labels).item(), -chosen.mean().item(), rtol=1e-5)
