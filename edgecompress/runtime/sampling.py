"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in transformers' order.

No full sort of the vocabulary: candidates are narrowed first, and only they are sorted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from edgecompress.errors import BundleError, UsageError
from edgecompress.types.bundle import GenerationSettings

FloatArray = npt.NDArray[np.float32]

_BLOCK = 64
_FIRST_NUCLEUS = 512
_BINS = 4096


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen. Raises UsageError, naming the value, for one without sense."""

    temperature: float = 0.0  # 0: the likeliest token
    top_k: int = 0  # 0: no limit
    top_p: float = 1.0
    min_p: float = 0.0  # tokens less likely than this share of the likeliest are left out
    repetition_penalty: float = 1.0  # of tokens in the prompt or the new text (Keskar et al., arXiv:1909.05858)

    def __post_init__(self) -> None:
        _check("temperature", self.temperature, 0.0 <= self.temperature < math.inf, "0 (greedy) or more")
        whole = isinstance(self.top_k, int) and not isinstance(self.top_k, bool)
        _check("top_k", self.top_k, whole and self.top_k >= 0, "a whole number, 0 (no limit) or more")
        _check("top_p", self.top_p, 0.0 < self.top_p <= 1.0, "more than 0 and at most 1")
        _check("min_p", self.min_p, 0.0 <= self.min_p <= 1.0, "from 0 to 1")
        penalty = self.repetition_penalty
        _check("repetition_penalty", penalty, 0.0 < penalty < math.inf, "more than 0; 1 is none")


def _check(name: str, value: float, good: bool, rule: str) -> None:
    if not good:
        raise UsageError(f"{name} is {rule}, not {value}", way_out="Leave it out for the checkpoint's own.")


def sampling_for(
    settings: GenerationSettings,
    *,
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    repetition_penalty: float | None,
) -> Sampling:
    """What was asked for; where nothing was, what the checkpoint's generation_config.json says. Raises UsageError."""
    own = settings.temperature if settings.do_sample else 0.0
    given = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    for name, value in {**given, "top_k": top_k}.items():
        if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise UsageError(f"{name} is a number, not a {type(value).__name__}", way_out="Leave it out.")
    return Sampling(
        temperature=own if temperature is None else temperature,
        top_k=settings.top_k if top_k is None else top_k,
        top_p=settings.top_p if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=settings.repetition_penalty if repetition_penalty is None else repetition_penalty,
    )


def check_seed(seed: int | None) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise UsageError(f"seed is a whole number, 0 or more, not {seed!r}", way_out="Leave it out for a new one.")


class Sampler:
    """Chooses the tokens of one text. Row ``r`` of a batch draws from its own stream, (seed, r); a text alone is 0."""

    def __init__(self, sampling: Sampling, vocab_size: int, seed: int | None = None, row: int = 0) -> None:
        self.sampling = sampling
        self._greedy = sampling.temperature == 0 or sampling.top_k == 1
        if not self._greedy:  # NumPy's generators take their time to be imported
            self._random = np.random.default_rng() if seed is None else np.random.default_rng([seed, row])
        self._seen: npt.NDArray[np.bool_] | None = None
        if sampling.repetition_penalty != 1.0:
            self._seen = np.zeros(vocab_size, dtype=np.bool_)
            self._seen_ids = np.empty(vocab_size, dtype=np.int64)
            self._seen_count = 0

    def observe(self, tokens: Iterable[int]) -> None:
        """Tokens that are in the text now, for the repetition penalty."""
        if self._seen is None:
            return
        for token in tokens:
            if not self._seen[token]:
                self._seen[token] = True
                self._seen_ids[self._seen_count] = token
                self._seen_count += 1

    def choose(self, logits: FloatArray) -> int:
        """One token for ``logits`` float32 [V]. Raises BundleError if they hold a NaN."""
        sampling = self.sampling
        if self._seen is not None:
            logits = logits.copy()
            seen = self._seen_ids[: self._seen_count]
            scores, penalty = logits[seen], np.float32(sampling.repetition_penalty)
            logits[seen] = np.where(scores < 0, scores * penalty, scores / penalty)
        best = int(logits.argmax())
        if not math.isfinite(logits[best]):
            raise BundleError(
                "the model gave logits that are not numbers", way_out="Check the bundle with `edgecompress verify`."
            )
        if self._greedy:
            return best
        ids, weights = _candidates(logits, float(logits[best]), sampling)
        drawn = draw(weights, self._random.random())
        return drawn if ids is None else int(ids[drawn])


def _candidates(
    logits: FloatArray, peak: float, sampling: Sampling
) -> tuple[npt.NDArray[np.int64] | None, npt.NDArray[np.floating]]:
    """Tokens that may be drawn (None: all, by id), and their weights, not normalized; 0 for those left out."""
    cool = np.float32(1.0 / sampling.temperature) if sampling.temperature > 1e-6 else np.float32(1e6)
    ids: npt.NDArray[np.int64] | None = None
    weights: FloatArray
    if 0 < sampling.top_k < len(logits):
        ids = likeliest(logits, sampling.top_k)
        weights = np.exp((logits[ids] - np.float32(peak)) * cool)
        if sampling.top_p < 1.0:
            kept = _reach(weights, sampling.top_p * float(weights.sum(dtype=np.float64)))
            ids, weights = ids[:kept], weights[:kept]
    else:
        weights = np.exp((logits - np.float32(peak)) * cool)
        if sampling.top_p < 1.0:
            ids, weights = _nucleus(logits, weights, sampling.top_p * float(weights.sum(dtype=np.float64)))
    if sampling.min_p > 0.0:
        kept_by_min_p = np.flatnonzero(weights >= sampling.min_p)
        ids = kept_by_min_p if ids is None else ids[kept_by_min_p]
        weights = weights[kept_by_min_p]
    return ids, weights


def _nucleus(logits: FloatArray, weights: FloatArray, mass: float) -> tuple[npt.NDArray[np.int64] | None, FloatArray]:
    """The fewest tokens, the likeliest first to go in, whose weights reach ``mass``; the weights of all others are 0.

    Mostly a few hundred are enough. Where they are not, the weights are summed up in bins by their logarithm, and only
    the bin in which the mass is reached is sorted.
    """
    ids = likeliest(logits, _FIRST_NUCLEUS)
    few = weights[ids]
    if float(few.sum(dtype=np.float64)) >= mass:
        kept = _reach(few, mass)
        return ids[:kept], few[:kept]
    with np.errstate(divide="ignore"):
        depth = np.minimum(np.log(weights) * np.float32(-_BINS / 32), np.float32(_BINS - 1)).astype(np.int64)
    sums = np.cumsum(np.bincount(depth, weights=weights, minlength=_BINS))
    edge = min(int(np.searchsorted(sums, mass, side="left")), _BINS - 1)
    within = np.flatnonzero(depth == edge)
    within = within[np.argsort(-logits[within], kind="stable")]
    within = within[: _reach(weights[within], mass - (float(sums[edge - 1]) if edge else 0.0))]
    chosen = weights * (depth < edge)
    chosen[within] = weights[within]
    return None, chosen


def _reach(weights: npt.NDArray[np.floating], mass: float) -> int:
    """How many of ``weights``, taken from the front, it takes to reach ``mass``; at least one."""
    return int(np.searchsorted(np.cumsum(weights, dtype=np.float64), mass, side="left")) + 1


def draw(weights: npt.NDArray[np.floating], uniform: float) -> int:
    """The index that ``uniform`` in [0, 1) falls on: block by block first, then within one."""
    whole = len(weights) // _BLOCK * _BLOCK
    sums = weights[:whole].reshape(-1, _BLOCK).sum(axis=1, dtype=np.float64)
    cumulative = np.cumsum(np.append(sums, weights[whole:].sum(dtype=np.float64)))
    wanted = uniform * cumulative[-1]
    block = min(int(np.searchsorted(cumulative, wanted, side="right")), len(cumulative) - 1)
    inner = np.cumsum(weights[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    rest = wanted - (cumulative[block - 1] if block else 0.0)
    return block * _BLOCK + min(int(np.searchsorted(inner, rest, side="right")), len(inner) - 1)


def likeliest(logits: FloatArray, count: int) -> npt.NDArray[np.int64]:
    """Ids of the ``count`` largest of ``logits`` [V], the largest first.

    The count-th largest of the blocks' maxima is a threshold that at least ``count`` values reach: what is below it is
    never looked at again, and the selection works on hundreds of values, not on a vocabulary.
    """
    whole = len(logits) // _BLOCK
    ids: npt.NDArray[np.int64]
    if 0 < count <= whole // 4:
        maxima = logits[: whole * _BLOCK].reshape(_BLOCK, whole).max(axis=0)  # any blocks do; these are quick
        threshold = np.partition(maxima, whole - count)[whole - count]
        ids = np.flatnonzero(logits >= threshold)
    else:
        ids = np.arange(len(logits))
    values = logits[ids]
    if len(ids) > count:
        kept = np.argpartition(values, len(ids) - count)[len(ids) - count :]
        ids, values = ids[kept], values[kept]
    return ids[np.lexsort((ids, -values))]
