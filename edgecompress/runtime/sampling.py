"""Chooses a token from logits: repetition penalty, temperature, top-k, top-p, min-p, in the order of transformers.

The vocabulary is never sorted: top-k narrows it first, and top-p is checked only for the token that was drawn.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecompress.errors import BundleError, UsageError
from edgecompress.types.arrays import FloatArray, IntArray
from edgecompress.types.bundle import GenerationSettings

_BLOCK = 64
_DRAWN = 1024  # weights per block in a draw: long rows are summed faster than short ones


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Raises UsageError for a value out of range."""

    temperature: float = 0.0  # 0: greedy
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0  # relative to the most probable token; less probable ones are dropped
    repetition_penalty: float = 1.0  # for tokens already in prompt or text (Keskar et al., arXiv:1909.05858)

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0 <= self.temperature < math.inf, "0 (greedy) or more")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        _check("top_k", self.top_k, whole and self.top_k >= 0, "an integer, 0 (no limit) or more")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "more than 0 and at most 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "from 0 to 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0.0 < penalty < math.inf, "more than 0 (1 disables it)")


def _check(name: str, value: float, good: bool, rule: str) -> None:
    if not good:
        raise UsageError(f"{name} must be {rule}, not {value}", hint="Omit it to use the checkpoint's setting.")


def sampling_for(
    settings: GenerationSettings,
    *,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> Sampling:
    """The given values, with defaults from the checkpoint's generation_config.json. Raises UsageError."""
    own = settings.temperature if settings.do_sample else 0.0
    given = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    for name, value in {**given, "top_k": top_k}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{name} must be a number, not {type(value).__name__}", hint="Pass a number, or omit it.")
    return Sampling(
        temperature=own if temperature is None else temperature,
        top_k=settings.top_k if top_k is None else top_k,
        top_p=settings.top_p if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=settings.repetition_penalty if repetition_penalty is None else repetition_penalty,
    )


def check_seed(seed: int | None) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise UsageError(f"seed must be an integer, 0 or more, not {seed!r}", hint="Omit it for a random seed.")


class Sampler:
    """Chooses the tokens of one text. Row ``r`` of a batch draws from its own random stream, (seed, r)."""

    def __init__(self, sampling: Sampling, vocab_size: int, seed: int | None = None, row: int = 0) -> None:
        self.sampling = sampling
        self._greedy = sampling.temperature == 0 or sampling.top_k == 1
        if not self._greedy:  # NumPy's random generators are slow to import
            self._random = np.random.default_rng() if seed is None else np.random.default_rng([seed, row])
        self._scratch: FloatArray | None = None  # one vocabulary: allocating it each time would cost more than exp
        self._seen: npt.NDArray[np.bool_] | None = None
        if sampling.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen_ids = np.empty(vocab_size, dtype=np.int64)
            self._seen_count = 0

    def observe(self, tokens: Iterable[int]) -> None:
        """Record tokens that the text now contains, for the repetition penalty."""
        if self._seen is None:
            return
        for token in tokens:
            if not self._seen[token]:
                self._seen[token] = True
                self._seen_ids[self._seen_count] = token
                self._seen_count += 1

    def choose(self, logits: FloatArray) -> int:
        """Choose a token from ``logits`` float32 [V]. Raises BundleError if they contain NaN."""
        sampling = self.sampling
        if self._seen is not None:
            logits = logits.copy()
            seen = self._seen_ids[: self._seen_count]
            scores, penalty = logits[seen], np.float32(sampling.repetition_penalty)
            logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise BundleError(
                "the model produced logits that are not numbers", hint="Check the bundle: edgecompress verify BUNDLE"
            )
        if self._greedy:
            return best
        if 0 < sampling.top_k < len(logits):
            ids, weights = _candidates(logits, logits[best], sampling)
            return int(ids[draw(weights, self._random.random())])
        if self._scratch is None or len(self._scratch) != len(logits):
            self._scratch = np.empty_like(logits)
        weights = _weights(logits, logits[best], sampling, self._scratch)
        return _draw_from_all(logits, weights, sampling, self._random.random)


def _weights(logits: FloatArray, peak: np.float32, sampling: Sampling, out: FloatArray | None = None) -> FloatArray:
    """Unnormalized probabilities of ``logits``; the most probable token has 1."""
    cool = np.float32(1.0 / sampling.temperature) if sampling.temperature > 1e-6 else np.float32(1e6)
    weights: FloatArray = np.subtract(logits, peak, out=out)
    weights *= cool
    np.exp(weights, out=weights)
    return weights


def _candidates(logits: FloatArray, peak: np.float32, sampling: Sampling) -> tuple[IntArray, FloatArray]:
    """The tokens that top-k, top-p and min-p keep, most probable first, and their weights."""
    ids = likeliest(logits, sampling.top_k)
    weights = _weights(logits[ids], peak, sampling)
    kept = len(ids)
    if sampling.top_p < 1.0:
        sums = np.cumsum(weights, dtype=np.float64)
        kept = int(np.searchsorted(sums, sampling.top_p * sums[-1], side="left")) + 1
    if sampling.min_p > 0.0:
        kept = min(kept, int((weights >= sampling.min_p).sum()))
    return ids[:kept], weights[:kept]


def _draw_from_all(logits: FloatArray, weights: FloatArray, sampling: Sampling, uniform: Callable[[], float]) -> int:
    """Draw a token from the whole vocabulary under top-p and min-p, without building the nucleus.

    ``weights`` belong to ``logits`` and are overwritten.

    The nucleus is the smallest set of most probable tokens (ties: smaller id first) that reaches the share top-p. A
    token is in it if the tokens ranked before it weigh less than that share. So a token is drawn from all and checked.
    If it is outside the nucleus, it and all tokens ranked after it are removed, and another is drawn. The first draw is
    usually inside.
    """
    sums = _block_sums(weights)
    mass = sampling.top_p * float(sums.sum())
    if sampling.min_p > 0.0:
        weights *= weights >= np.float32(sampling.min_p)
        sums = _block_sums(weights)
    while True:
        token = _pick(weights, sums, uniform())
        if sampling.top_p == 1.0:
            return token
        before = logits > logits[token]
        before[:token] |= logits[:token] == logits[token]
        weights *= before
        sums = _block_sums(weights)
        if float(sums.sum()) < mass:
            return token


def draw(weights: FloatArray, uniform: float) -> int:
    """Return the index at which the cumulative share of ``weights`` passes ``uniform``, in [0, 1)."""
    return _pick(weights, _block_sums(weights), uniform)


def _block_sums(weights: FloatArray) -> npt.NDArray[np.float64]:
    """float64 sums of blocks of _DRAWN weights, and of the rest."""
    whole = len(weights) // _DRAWN * _DRAWN
    sums = weights[:whole].reshape(-1, _DRAWN).sum(axis=1, dtype=np.float64)
    return np.append(sums, weights[whole:].sum(dtype=np.float64))


def _pick(weights: FloatArray, sums: npt.NDArray[np.float64], uniform: float) -> int:
    """:func:`draw` with known block sums: choose the block, then the weight in it."""
    cumulative = np.cumsum(sums)
    wanted = uniform * cumulative[-1]
    block = _falls_on(cumulative, wanted)
    start = block * _DRAWN
    inner = np.cumsum(weights[start : start + _DRAWN], dtype=np.float64)
    return start + _falls_on(inner, wanted - (cumulative[block - 1] if block else 0.0))


def _falls_on(cumulative: npt.NDArray[np.float64], wanted: float) -> int:
    """The index whose share contains ``wanted``; never one with share 0, however the sums were rounded."""
    last = np.searchsorted(cumulative, cumulative[-1], side="left")
    return int(min(np.searchsorted(cumulative, wanted, side="right"), last))


def likeliest(logits: FloatArray, count: int) -> IntArray:
    """Ids of the ``count`` largest ``logits`` [V], largest first; ties: smaller id first.

    At least ``count`` values reach the count-th largest of the block maxima. Values below it are dropped, so the
    selection works on hundreds of values instead of a vocabulary.
    """
    whole = len(logits) // _BLOCK
    ids: IntArray
    if 0 < count <= whole // 4:
        maxima = logits[: whole * _BLOCK].reshape(_BLOCK, whole).max(axis=0)  # any partition works; this one is fast
        threshold = np.partition(maxima, whole - count)[whole - count]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids = np.arange(len(logits))
    values = logits[ids]
    if len(ids) > count:
        least = np.partition(values, len(ids) - count)[len(ids) - count]
        kept = values > least
        kept[np.flatnonzero(values == least)[: count - int(kept.sum())]] = True
        ids, values = ids[kept], values[kept]
    return ids[np.lexsort((ids, -values))]
