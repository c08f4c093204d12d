"""Sampling against plain NumPy that sorts the whole vocabulary, and against transformers' own processors."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import BundleError, UsageError
from edgecompress.runtime.lookup import PromptLookup
from edgecompress.runtime.sampling import (
    Sampler,
    Sampling,
    _candidates,
    _draw_from_all,
    _weights,
    draw,
    likeliest,
    sampling_for,
)
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
    for values in (logits, logits.round(1), np.zeros_like(logits)):  # with ties of many too
        np.testing.assert_array_equal(likeliest(values, count), np.argsort(-values, kind="stable")[:count])


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
def test_what_may_be_drawn_is_transformers(sampling: Sampling, rng: np.random.Generator) -> None:
    """Each token is asked for by the number that falls on it among all: it comes back if it is allowed, else another.

    With top-k the weights are at hand, and are held against transformers' probabilities themselves.
    """
    logits = (rng.standard_normal(5000) * 3).astype(np.float32)
    expected = reference(logits, sampling)
    if sampling.top_k:
        ids, weights = _candidates(logits, logits.max(), sampling)
        ours = np.zeros(len(logits))
        ours[ids] = weights / weights.sum(dtype=np.float64)
        np.testing.assert_allclose(ours, expected, atol=1e-6)
        return
    middles = middle_of_each(logits, sampling)
    for token in rng.choice(len(logits), 400):
        numbers = iter([middles[token], *rng.random(50)])
        drawn = _draw_from_all(
            logits, _weights(logits, logits.max(), sampling), sampling, lambda numbers=numbers: next(numbers)
        )
        assert (drawn == token) == (expected[token] > 0)
        assert expected[drawn] > 0


def middle_of_each(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """For each token the uniform number in the middle of its share of what is drawn from first."""
    weights = np.exp((logits - logits.max()) * np.float32(1 / sampling.temperature)).astype(np.float64)
    weights[weights < sampling.min_p] = 0.0
    return (np.cumsum(weights) - weights / 2) / weights.sum()


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


def test_a_token_without_weight_is_never_drawn() -> None:
    for size in (3, 2500):
        weights = np.zeros(size, dtype=np.float32)
        weights[1] = 0.1
        for uniform in (0.0, 0.5, 1 - 2**-53, 1.0):  # 1.0 is what rounding may make of a number below it
            assert draw(weights, uniform) == 1


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
    assert error.value.hint


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
    assert PromptLookup(8, [7, 8, 7, 8, 7, 8]).draft(5) == [7, 8, 7, 8, 7]
    assert PromptLookup(8, [1]).draft(5) == []


def test_drafts_are_as_long_as_they_pay() -> None:
    lookup = PromptLookup(8, [7, 8] * 9)
    lookup.learn(0, 0, 1.0)
    assert len(lookup.draft(10)) == 8  # what was never tried may be free
    for _ in range(20):
        lookup.learn(8, 8, 1.1)  # the memory is what takes the time
    assert len(lookup.draft(10)) == 8
    for _ in range(20):
        lookup.learn(8, 8, 9.9)  # each token takes a step, and a little more
        lookup.learn(4, 4, 5.2)
    assert lookup.draft(10) == []
    for _ in range(20):
        lookup.learn(3, 3, 1.2)  # four rows at once are nearly free
    assert len(lookup.draft(10)) == 3
    for _ in range(20):
        lookup.learn(3, 0, 1.2)  # and are of no use where the text goes on otherwise
    assert lookup.draft(10) == []


def full_sort_nucleus(logits: np.ndarray, sampling: Sampling) -> np.ndarray:
    """Ids of the nucleus by its definition: sort everything, likeliest and then smallest id first, and sum up."""
    cool = np.float32(1.0 / sampling.temperature)
    weights = np.exp((logits - logits.max()) * cool)
    order = np.lexsort((np.arange(len(logits)), -logits))
    sums = np.cumsum(weights[order], dtype=np.float64)
    return np.sort(order[: int(np.searchsorted(sums, sampling.top_p * sums[-1], side="left")) + 1])


SPREADS = {
    "flat": lambda rng, size: rng.standard_normal(size) * 0.8,
    "nearly even": lambda rng, size: rng.standard_normal(size) * 1e-3,
    "peaked": lambda rng, size: rng.standard_normal(size) * 5,
    "between": lambda rng, size: rng.standard_normal(size) * 2,
    "one far ahead": lambda rng, size: np.where(np.arange(size) == size // 3, 9.0, rng.standard_normal(size) * 0.5),
    "of few values": lambda rng, size: rng.integers(0, 4, size) * 0.7,
    "all the same": lambda rng, size: np.zeros(size),
    "mostly ruled out": lambda rng, size: np.where(rng.random(size) < 0.9, -np.inf, rng.standard_normal(size)),
    "in the sample's own step": lambda rng, size: np.where(np.arange(size) % (size // 2048 or 1) == 0, -9.0, 0.0),
    "only there": lambda rng, size: np.where(np.arange(size) % (size // 2048 or 1) == 0, 3.0, 0.0),
    "by id": lambda rng, size: np.linspace(0, 6, size),
}


def plain_draw(logits: np.ndarray, sampling: Sampling, random: np.random.Generator) -> int:
    """As the runtime draws, by a full sort: from all, again from those before it as long as it is outside."""
    weights = np.exp((logits - logits.max()) * np.float32(1.0 / sampling.temperature)).astype(np.float64)
    order = np.lexsort((np.arange(len(logits)), -logits))
    rank = np.argsort(order)
    nucleus = set(full_sort_nucleus(logits, sampling).tolist())
    while True:
        cumulative = np.cumsum(weights)
        token = int(np.searchsorted(cumulative, random.random() * cumulative[-1], side="right"))
        if token in nucleus:
            return token
        weights = np.where(rank < rank[token], weights, 0.0)


@pytest.mark.parametrize("size", [5, 1000, 151_936])
@pytest.mark.parametrize("spread", SPREADS)
def test_top_p_draws_what_a_full_sort_draws(size: int, spread: str) -> None:
    logits = SPREADS[spread](np.random.default_rng(size), size).astype(np.float32)
    if not np.isfinite(logits).any():
        logits[0] = 0.0
    for seed, (top_p, temperature) in enumerate(((0.05, 1.0), (0.5, 0.6), (0.95, 0.6), (0.95, 3.0), (0.999, 1.0))):
        sampling = Sampling(temperature=temperature, top_p=top_p)
        sampler, random = Sampler(sampling, size, seed), np.random.default_rng([seed, 0])
        assert [sampler.choose(logits) for _ in range(3)] == [plain_draw(logits, sampling, random) for _ in range(3)]


def test_the_nucleus_ends_where_the_sum_reaches_the_share() -> None:
    """Powers of two, so that every sum is exact: half of all is reached by the first, three quarters by the second."""
    logits = np.log2(np.array([0.125, 0.5, 0.125, 0.25])).astype(np.float32) * np.float32(np.log(2))
    for top_p, nucleus in ((0.4, {1}), (0.6, {1, 3}), (0.8, {1, 3, 0}), (0.95, {1, 3, 0, 2})):
        sampler = Sampler(Sampling(temperature=1.0, top_p=top_p), 4, seed=0)
        assert {sampler.choose(logits) for _ in range(300)} == nucleus
