"""Sampling against plain NumPy that sorts the whole vocabulary, and against transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import BundleError, UsageError
from edgecompress.runtime.lookup import PromptLookup
from edgecompress.runtime.sampling import Sampler, Sampling, _candidates, draw, likeliest, sampling_for
from edgecompress.types.bundle import GenerationSettings

SETTINGS = GenerationSettings(
    context_length_tokens=16,
    layers=1,
    kv_heads=1,
    head_size=8,
    vocab_size=1000,
    bos_token_id=None,
    eos_token_ids=(),
    pad_token_id=0,
    temperature=0.6,
    top_k=40,
    top_p=0.9,
    repetition_penalty=1.1,
    do_sample=True,
)
NOTHING = {"temperature": None, "top_k": None, "top_p": None, "min_p": None, "repetition_penalty": None}


def reference(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """float64 [V] of probabilities, by transformers."""
    import torch
    from transformers.generation import logits_process as theirs

    chain = theirs.LogitsProcessorList([theirs.TemperatureLogitsWarper(sampling.temperature)])
    if sampling.top_k:
        chain.append(theirs.TopKLogitsWarper(sampling.top_k))
    if sampling.top_p < 1:
        chain.append(theirs.TopPLogitsWarper(sampling.top_p))
    if sampling.min_p > 0:
        chain.append(theirs.MinPLogitsWarper(sampling.min_p))
    scores = chain(None, torch.from_numpy(logits).double()[None])
    return torch.softmax(scores[0], dim=-1).numpy()


@pytest.mark.parametrize("size", [7, 63, 1000, 20_011])
@pytest.mark.parametrize("count", [1, 2, 50, 900])
def test_the_likeliest_are_those_of_a_full_sort(size: int, count: int, rng: np.random.Generator) -> None:
    logits = rng.standard_normal(size).astype(np.float32)
    np.testing.assert_array_equal(likeliest(logits, count), np.argsort(-logits, kind="stable")[:count])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.0),
        Sampling(temperature=0.7, top_k=5),
        Sampling(temperature=0.7, top_p=0.9),
        Sampling(temperature=1.5, top_p=0.999),
        Sampling(temperature=0.9, min_p=0.05),
        Sampling(temperature=1.3, top_k=50, top_p=0.8, min_p=0.1),
        Sampling(temperature=1.3, top_p=0.95, min_p=0.02),
        Sampling(temperature=5.0, top_p=0.9),
        Sampling(temperature=100.0, top_p=0.6, min_p=0.9),
    ],
)
def test_candidates_are_transformers(sampling: Sampling, rng: np.random.Generator) -> None:
    logits = (rng.standard_normal(5000) * 3).astype(np.float32)
    ids, weights = _candidates(logits, float(logits.max()), sampling)
    ours = np.zeros(len(logits))
    ours[slice(None) if ids is None else ids] = weights / weights.sum(dtype=np.float64)
    np.testing.assert_allclose(ours, reference(logits, sampling), atol=1e-6)


def test_draws_follow_the_probabilities() -> None:
    sampling = Sampling(temperature=0.8, top_k=4)
    logits = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -9.0], dtype=np.float32)
    sampler = Sampler(sampling, len(logits), seed=0)
    counts = np.bincount([sampler.choose(logits) for _ in range(20_000)], minlength=len(logits))
    np.testing.assert_allclose(counts / counts.sum(), reference(logits, sampling), atol=0.015)


@pytest.mark.parametrize("size", [1, 63, 64, 65, 1000])
def test_a_draw_is_the_plain_inverse_of_the_sum(size: int, rng: np.random.Generator) -> None:
    weights = rng.random(size).astype(np.float32) * (rng.random(size) < 0.5)
    weights[size // 2] = 1.0
    cumulative = np.cumsum(weights, dtype=np.float64)
    for uniform in (*rng.random(200), 0.0, 1 - 2**-53):
        expected = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
        assert draw(weights, uniform) == min(expected, size - 1)


def test_seeds_reproduce_and_rows_differ(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((50, 1000)).astype(np.float32)

    def drawn(seed: int | None, row: int = 0) -> list[int]:
        sampler = Sampler(Sampling(temperature=1.0), 1000, seed, row)
        return [sampler.choose(one) for one in logits]

    assert drawn(7) == drawn(7)
    assert drawn(7) != drawn(8)
    assert drawn(7) != drawn(7, row=1)
    assert drawn(None) != drawn(None)


def test_the_repetition_penalty_is_transformers(rng: np.random.Generator) -> None:
    import torch
    from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor

    logits = rng.standard_normal(1000).astype(np.float32)
    text = [int(logits.argmax()), 5, 5, 17, int(logits.argmin())]
    expected = RepetitionPenaltyLogitsProcessor(5.0)(torch.tensor([text]), torch.from_numpy(logits.copy())[None])
    sampler = Sampler(Sampling(repetition_penalty=5.0), 1000)
    sampler.observe(text[:3])
    sampler.observe(text[3:])
    before = logits.copy()
    assert sampler.choose(logits) == int(expected.argmax()) != int(logits.argmax())
    np.testing.assert_array_equal(logits, before)


def test_what_is_left_out_is_the_checkpoints() -> None:
    own = sampling_for(SETTINGS, **NOTHING)
    assert own == Sampling(temperature=0.6, top_k=40, top_p=0.9, repetition_penalty=1.1)
    assert sampling_for(SETTINGS, **{**NOTHING, "temperature": 0.0, "top_k": 0}).temperature == 0.0


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_k", -1),
        ("top_k", 2.5),
        ("top_k", True),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("min_p", -0.1),
        ("min_p", 1.5),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", float("inf")),
    ],
)
def test_values_without_sense_are_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(UsageError, match=name) as error:
        sampling_for(SETTINGS, **{**NOTHING, name: value})
    assert "\n" not in error.value.message
    assert error.value.way_out


def test_logits_that_are_not_numbers_are_no_text() -> None:
    with pytest.raises(BundleError, match="not numbers"):
        Sampler(Sampling(), 3).choose(np.array([1.0, np.nan, 0.0], dtype=np.float32))


def test_lookup_drafts_what_followed_last_time() -> None:
    lookup = PromptLookup(4, [1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert lookup.draft(10) == [4, 5, 6, 1]
    assert lookup.draft(2) == [4, 5]
    assert lookup.draft(0) == []
    lookup.add(9)
    assert lookup.draft(10) == []
    lookup.learn(4, 0)
    for token in (1, 2, 3):
        lookup.add(token)
    assert lookup.draft(10) == [9]
    assert PromptLookup(8, [7, 8, 7, 8, 7, 8]).draft(5) == [7, 8, 7, 8, 7]
    assert PromptLookup(8, [1]).draft(5) == []
