"""Runs a decoder's graph over whole texts: against PyTorch during export, later against the outputs in the bundle.

A bundle cannot carry the logits of a vocabulary of 150,000 tokens. For each position of a few held-out texts, it
carries the 64 most probable tokens with their probabilities, and the probability of the token that follows in the text.
That is enough for exact perplexity and top-1 agreement, and for the KL divergence with all other tokens as one class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from typing import Any

import numpy as np
import numpy.typing as npt

from edgecompress.errors import BundleError
from edgecompress.formats.manifest import REFERENCE
from edgecompress.kinds.decoder.runtime import open_decoder
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.runtime.bundle import OpenBundle, read_settings
from edgecompress.runtime.cancellation import Cancellation
from edgecompress.runtime.decoder import Decoder
from edgecompress.runtime.metrics import log_softmax
from edgecompress.runtime.model import Cache, Model
from edgecompress.runtime.self_check import pack_samples
from edgecompress.types.arrays import Feed
from edgecompress.types.bundle import TensorSpec
from edgecompress.types.report import Fidelity

KEPT_TOKENS = 64
_LEAST = -60.0  # log of a probability that is practically 0

Ids = npt.NDArray[np.int64]
Logits = npt.NDArray[np.float32]


def text_feed(
    ids: Ids,
    past: Mapping[str, tuple[int, int]],
    wanted: Ids | None = None,
    *,
    behind: int = 0,
    first_position: int | None = None,
    cache_dtype: np.dtype[Any] | type[np.float32] = np.float32,
    capacity: int | None = None,
) -> Feed:
    """Return all inputs of a decoder graph for one text int64 [T] after ``behind`` tokens of a zeroed cache.

    ``past`` maps each cache input to (heads, head size). ``wanted``: positions whose logits are returned; None: all.
    ``first_position``: position of the text's first token, default ``behind``. ``capacity``: room of the cache in
    tokens, by default just enough.
    """
    tokens = len(ids)
    total = tokens + behind
    first = behind if first_position is None else first_position
    empty: dict[tuple[int, int], npt.NDArray[Any]] = {}
    for heads, size in past.values():
        if (heads, size) not in empty:
            empty[heads, size] = np.zeros((1, heads, capacity or total, size), dtype=cache_dtype)
    return {
        "input_ids": ids[None],
        "attention_mask": np.ones((1, total), dtype=np.int64),
        "position_ids": np.arange(first, first + tokens, dtype=np.int64)[None],
        "logits_positions": np.arange(tokens, dtype=np.int64) if wanted is None else wanted,
        **{name: empty[shape] for name, shape in past.items()},
    }


def cache_of(inputs: Sequence[TensorSpec]) -> list[TensorSpec]:
    """Return the inputs that are keys or values of the cache, [B, Hk, C, D]."""
    return [spec for spec in inputs if spec.name.startswith("past_key_values.")]


def logits_of(model: Model) -> Callable[[Ids], Logits]:
    """Wrap a model as a function from token ids [T] to the logits of every position, float32 [T, V]."""
    cache = cache_of(model.inputs)
    past = {spec.name: (int(spec.shape[1]), int(spec.shape[3])) for spec in cache}
    capacity = cache[0].shape[2] if isinstance(cache[0].shape[2], int) else None

    def run(ids: Ids) -> Logits:
        feed = text_feed(ids, past, cache_dtype=np.dtype(cache[0].dtype), capacity=capacity)
        logits: Logits = model.run(feed, ["logits"])[0][0]
        return logits

    return run


def _logits(decoder: Decoder, cache: Cache, ids: Ids) -> Logits:
    """Run ``ids`` in chunks, as a prompt is; return the logits of every position, float32 [T, V]."""
    chunk, parts = decoder.settings.prefill_chunk_tokens, []
    for start in range(0, len(ids), chunk):
        part = ids[None, start : start + chunk]
        wanted, past = np.arange(part.shape[1], dtype=np.int64), np.array([start], dtype=np.int64)
        logits, _ = decoder.run(cache, 0, part, past, wanted, Cancellation())
        parts.append(logits[0].copy())
    return np.concatenate(parts)


def _log_softmax(logits: Logits) -> npt.NDArray[np.float64]:
    return log_softmax(np.nan_to_num(logits.astype(np.float64), nan=0.0))


def reference_file(texts: Sequence[Ids], logits: Sequence[Logits], limit_bytes: int) -> bytes:
    """Pack held-out texts and the reference's most probable tokens at each position, as many texts as fit."""
    each = zip(texts, logits, strict=True)
    return pack_samples((_sample(index, *one) for index, one in enumerate(each)), limit_bytes)


def _sample(index: int, ids: Ids, reference: Logits) -> Feed:
    log_p = _log_softmax(reference)
    kept = min(KEPT_TOKENS, log_p.shape[1])
    best = np.argpartition(-log_p, kept - 1, axis=1)[:, :kept]
    best = np.take_along_axis(best, np.argsort(-np.take_along_axis(log_p, best, 1), axis=1, kind="stable"), 1)
    return {
        f"{index}/ids": ids.astype(np.int32),
        f"{index}/best": best.astype(np.int32),
        f"{index}/log_p": np.take_along_axis(log_p, best, 1).astype(np.float32),
        f"{index}/next": log_p[np.arange(len(ids) - 1), ids[1:]].astype(np.float32),
    }


def check(source: OpenBundle) -> Fidelity:
    """Return the fidelity on the texts in the bundle.

    Raises BundleError, or HostError if the bundle cannot run on this machine.
    """
    path = source.folder / REFERENCE
    if not path.exists():
        raise BundleError(f"the bundle has no {REFERENCE}, so its outputs cannot be checked on this machine")
    opened = open_decoder(source, read_settings(DecoderSettings, source.manifest).generation)
    nll = reference_nll = kl = 0.0
    agreed = positions = scored = 0
    with closing(opened) as decoder, np.load(path, allow_pickle=False) as arrays:
        texts = sorted({int(name.partition("/")[0]) for name in arrays.files})
        every = {index: arrays[f"{index}/ids"].astype(np.int64) for index in texts}
        cache = decoder.make_cache(1, max(map(len, every.values())))
        for index, ids in every.items():
            best, log_p = arrays[f"{index}/best"], arrays[f"{index}/log_p"].astype(np.float64)
            log_q = _log_softmax(_logits(decoder, cache, ids))
            kept = np.take_along_axis(log_q, best, 1)
            p_rest = np.maximum(1 - np.exp(log_p).sum(1), np.exp(_LEAST))
            q_rest = np.maximum(1 - np.exp(kept).sum(1), np.exp(_LEAST))
            kl += float((np.exp(log_p) * (log_p - kept)).sum() + (p_rest * (np.log(p_rest) - np.log(q_rest))).sum())
            agreed += int((log_q.argmax(1) == best[:, 0]).sum())
            nll -= float(log_q[np.arange(len(ids) - 1), ids[1:]].sum())
            reference_nll -= float(arrays[f"{index}/next"].astype(np.float64).sum())
            positions += len(ids)
            scored += len(ids) - 1
    return Fidelity(
        samples=len(texts),
        perplexity_ratio=round(float(np.exp(min((nll - reference_nll) / scored, 700.0))), 6),
        mean_kl=round(max(kl / positions, 0.0), 6),
        top1_agreement=round(agreed / positions, 6),
    )
