"""From logits to a token: repetition penalty, temperature, top-k, top-p, min-p, in transformers' order.

The vocabulary is never sorted: top-k narrows it first, and top-p is asked of the token that was drawn.
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
_DRAWN = 1024  # weights that are summed up before one of them is drawn: long rows are summed faster than short ones


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
        raise UsageError(f"{name} is {rule}, not {value}", hint="Leave it out for the checkpoint's own.")


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
            raise UsageError(f"{name} is a number, not a {type(value).__name__}", hint="Leave it out.")
    return Sampling(
        temperature=own if temperature is None else temperature,
        top_k=settings.top_k if top_k is None else top_k,
        top_p=settings.top_p if top_p is None else top_p,
        min_p=0.0 if min_p is None else min_p,
        repetition_penalty=settings.repetition_penalty if repetition_penalty is None else repetition_penalty,
    )


def check_seed(seed: int | None) -> None:
    if seed is not None and (isinstance(seed, bool) or not isinstance(seed, int) or seed < 0):
        raise UsageError(f"seed is a whole number, 0 or more, not {seed!r}", hint="Leave it out for a new one.")


class Sampler:
    """Chooses the tokens of one text. Row ``r`` of a batch draws from its own stream, (seed, r); a text alone is 0."""

    def __init__(self, sampling: Sampling, vocab_size: int, seed: int | None = None, row: int = 0) -> None:
        self.sampling = sampling
        self._greedy = sampling.temperature == 0 or sampling.top_k == 1
        if not self._greedy:  # NumPy's generators take their time to be imported
            self._random = np.random.default_rng() if seed is None else np.random.default_rng([seed, row])
        self._scratch: FloatArray | None = None  # of a whole vocabulary: new memory each time would cost more than exp
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
                "the model gave logits that are not numbers", hint="Check the bundle with `edgecompress verify`."
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
    """Probabilities of ``logits``, not normalized: the likeliest has 1."""
    cool = np.float32(1.0 / sampling.temperature) if sampling.temperature > 1e-6 else np.float32(1e6)
    weights: FloatArray = np.subtract(logits, peak, out=out)
    weights *= cool
    np.exp(weights, out=weights)
    return weights


def _candidates(logits: FloatArray, peak: np.float32, sampling: Sampling) -> tuple[IntArray, FloatArray]:
    """The top-k tokens that top-p and min-p leave, the likeliest first, and their weights."""
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
    """One token of the whole vocabulary, top-p and min-p kept to without the nucleus ever being made.

    ``weights`` are those of ``logits``, and are used up.

    The nucleus is the fewest tokens, the likeliest first and of equal ones the smaller id, that reach the share top-p
    of all. So a token is in it if those before it weigh less than that share: one is drawn from all and asked. If it is
    outside, so are all behind it: they are left out, and another is drawn. Mostly the first is inside.
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
    """The index that ``uniform`` in [0, 1) falls on, the weights lying side by side."""
    return _pick(weights, _block_sums(weights), uniform)


def _block_sums(weights: FloatArray) -> npt.NDArray[np.float64]:
    """float64 sums of each _DRAWN weights, and of those that are left over."""
    whole = len(weights) // _DRAWN * _DRAWN
    sums = weights[:whole].reshape(-1, _DRAWN).sum(axis=1, dtype=np.float64)
    return np.append(sums, weights[whole:].sum(dtype=np.float64))


def _pick(weights: FloatArray, sums: npt.NDArray[np.float64], uniform: float) -> int:
    """:func:`draw` with the sums at hand: the block first, then within it."""
    cumulative = np.cumsum(sums)
    wanted = uniform * cumulative[-1]
    block = _falls_on(cumulative, wanted)
    start = block * _DRAWN
    inner = np.cumsum(weights[start : start + _DRAWN], dtype=np.float64)
    return start + _falls_on(inner, wanted - (cumulative[block - 1] if block else 0.0))


def _falls_on(cumulative: npt.NDArray[np.float64], wanted: float) -> int:
    """The place whose share ``wanted`` lies in; never one without a share, however the sums were rounded."""
    last = np.searchsorted(cumulative, cumulative[-1], side="left")
    return int(min(np.searchsorted(cumulative, wanted, side="right"), last))


def likeliest(logits: FloatArray, count: int) -> IntArray:
    """Ids of the ``count`` largest of ``logits`` [V], the largest first, and of equal ones the smallest id.

    The count-th largest of the blocks' maxima is a threshold that at least ``count`` values reach: what is below it is
    never looked at again, and the selection works on hundreds of values, not on a vocabulary.
    """
    whole = len(logits) // _BLOCK
    ids: IntArray
    if 0 < count <= whole // 4:
        maxima = logits[: whole * _BLOCK].reshape(_BLOCK, whole).max(axis=0)  # any blocks do; these are quick
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
