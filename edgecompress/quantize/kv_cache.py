"""Calibrates an int8 KV cache: the largest magnitude of each channel of keys and values, read from the cache itself.

Keys in the cache have passed the rotary embedding, which rotates pairs of channels by an angle that grows with the
position. A slow pair hardly rotates within one text, so if all texts started at position 0, their keys would not show
the magnitudes that its channels reach later in the context. So the texts start at positions spread over the whole
context; the rotary embedding is relative, so the model computes the same as at position 0.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import onnxruntime as ort

from edgecompress.errors import CalibrationError
from edgecompress.runtime.cache import PAST, PRESENT
from edgecompress.types.arrays import Feed, FloatArray

_LEVELS = 127


def spread_positions(lengths: Sequence[int], context_tokens: int) -> Iterator[int]:
    """Start position of each text, so that together the texts span the context from its first position to its last.

    ``lengths`` are the texts' lengths in tokens, at most ``context_tokens`` each.
    """
    for index, tokens in enumerate(lengths):
        yield (context_tokens - tokens) * index // max(len(lengths) - 1, 1)


def cache_scales(session: ort.InferenceSession, feeds: Iterable[Feed]) -> dict[str, FloatArray]:
    """Run the feeds through a graph with a float32 cache; return cache input -> scale, float32 [Hk, D], above 0.

    A scale is the largest magnitude of its channel, divided by 127. A channel that is always 0 gets the largest scale
    of its head, so that later values are not clipped. One feed's cache is in memory at a time. Raises CalibrationError
    if there is no feed or a value is not finite.
    """
    names = [output.name for output in session.get_outputs() if output.name.startswith(PRESENT)]
    wanted = {value.name for value in session.get_inputs()}
    largest: dict[str, FloatArray] = {}
    for feed in feeds:
        present = session.run(names, {name: array for name, array in feed.items() if name in wanted})
        for name, array in zip(names, present, strict=True):
            found = np.abs(array).max(axis=(0, 2)).astype(np.float32)
            if not np.isfinite(found).all():
                raise CalibrationError(
                    f"the student's values at '{name}' are not finite on the calibration text",
                    hint="Give another checkpoint or another calibration text; one of the two is broken.",
                )
            largest[name] = np.maximum(largest[name], found) if name in largest else found
    if not largest:
        raise CalibrationError("there is no calibration text", hint="Give --calibration FILE, with one text per line.")
    return {PAST + name.removeprefix(PRESENT): _scales(found) for name, found in largest.items()}


def _scales(largest: FloatArray) -> FloatArray:
    """float32 [Hk, D] from the largest magnitudes [Hk, D]."""
    tiny = np.float32(np.finfo(np.float32).tiny * _LEVELS)  # keeps 1 / scale finite
    of_head = largest.max(axis=1, keepdims=True)
    known = np.where(largest > tiny, largest, np.where(of_head > tiny, of_head, np.float32(_LEVELS)))
    return (known / np.float32(_LEVELS)).astype(np.float32)
