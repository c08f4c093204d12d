"""Decoder fidelity on logits with known figures."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.kinds.decoder.metric import DecoderFidelity, measure, shortfall
from edgecompress.runtime import metrics
from edgecompress.types.recipe import QualityRecipe

P = np.array([[0.7, 0.2, 0.1], [0.1, 0.6, 0.3], [0.25, 0.25, 0.5]])
Q = np.array([[0.6, 0.3, 0.1], [0.5, 0.4, 0.1], [0.25, 0.25, 0.5]])
IDS = np.array([2, 0, 1])  # position 0 is scored on token 0, position 1 on token 1, position 2 on nothing


def logits(p: np.ndarray, shift: float = 0.0) -> np.ndarray:
    return (np.log(p) + shift).astype(np.float32)


def test_known_distributions_give_known_figures() -> None:
    found = measure([(logits(P, 5.0), logits(Q, -3.0), IDS)])
    assert found.samples == 1
    assert found.perplexity_ratio == pytest.approx(np.sqrt((0.7 * 0.6) / (0.6 * 0.4)), abs=1e-5)
    assert found.mean_kl == pytest.approx((P * np.log(P / Q)).sum() / 3, abs=1e-5)
    assert found.top1_agreement == pytest.approx(2 / 3, abs=1e-6)


def test_equal_logits_are_perfect(rng: np.random.Generator) -> None:
    x = rng.normal(size=(40, 300)).astype(np.float32) * 10
    found = measure([(x, x + np.float32(2.0), rng.integers(0, 300, 40))])
    assert found.perplexity_ratio == pytest.approx(1.0, abs=2e-6)
    assert found.mean_kl == pytest.approx(0.0, abs=2e-6)
    assert found.top1_agreement == 1.0
    assert shortfall(found, QualityRecipe()) is None


def test_perplexities_are_those_of_the_tokens() -> None:
    running = DecoderFidelity()
    running.add(logits(P), logits(Q), IDS[1:])
    assert running.reference_perplexity == pytest.approx((0.7 * 0.6) ** -0.5, abs=1e-5)
    assert running.perplexity == pytest.approx((0.6 * 0.4) ** -0.5, abs=1e-5)


def test_slices_and_sequences_add_up(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = rng.normal(size=(2, 50, 64)).astype(np.float32)
    ids = rng.integers(0, 64, 50)
    whole = measure([(a, b, ids)])
    monkeypatch.setattr(metrics, "_SLICE_ELEMENTS", 7 * 64)
    assert measure([(a, b, ids)]) == whole
    running = DecoderFidelity()
    running.add(a[:20], b[:20], ids[1:21])
    running.add(a[20:], b[20:], ids[21:])
    parts = running.fidelity()
    assert parts.samples == 2
    assert (parts.perplexity_ratio, parts.mean_kl) == (whole.perplexity_ratio, whole.mean_kl)


def test_a_model_that_gives_nan_or_infinity_never_passes(rng: np.random.Generator) -> None:
    reference = rng.normal(size=(30, 500)).astype(np.float32) * 5
    ids = np.concatenate([[0], reference.argmax(1)[:-1]])
    for value in (np.nan, np.inf, -np.inf):
        broken = reference.copy()
        broken[:, 3] = value
        found = measure([(reference, broken, ids)])
        assert found.top1_agreement == 0.0
        assert found.max_abs_difference is None
        assert shortfall(found, QualityRecipe()) is not None


def test_the_gate_is_the_perplexity_and_the_divergence() -> None:
    found = measure([(logits(P), logits(Q), IDS)])
    assert "KL divergence" in (shortfall(found, QualityRecipe()) or "")
    loose = QualityRecipe(max_kl=1.0)
    assert shortfall(found, loose) == "perplexity ratio 1.3229 is above 1.05"
    assert shortfall(found, QualityRecipe(max_kl=1.0, max_perplexity_ratio=1.33)) is None


def test_far_worse_is_still_a_number(rng: np.random.Generator) -> None:
    reference = np.zeros((2, 2), dtype=np.float32)
    wrong = np.array([[0.0, 3e3], [0.0, 0.0]], dtype=np.float32)
    found = measure([(reference, wrong, np.array([0, 0]))])
    assert found.perplexity_ratio == 1e300


def test_wrong_shapes_are_refused() -> None:
    running = DecoderFidelity()
    with pytest.raises(ValueError, match="cannot be compared"):
        running.add(np.zeros((2, 3)), np.zeros((2, 4)))
    with pytest.raises(ValueError, match="3 targets for 2 positions"):
        running.add(np.zeros((2, 3)), np.zeros((2, 3)), np.zeros(3, dtype=np.int64))
    running.add(np.zeros((1, 3)), np.zeros((1, 3)))
    with pytest.raises(ValueError, match="perplexity needs a sequence"):
        running.fidelity()
