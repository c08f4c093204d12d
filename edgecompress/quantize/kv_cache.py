"""Calibrating an int8 KV cache: how large each channel of keys and values gets, read from the cache itself.

Keys lie in the cache behind the rotary embedding, which turns pairs of channels into each other by an angle that grows
with the position. A slow pair hardly turns within one text, so texts that all begin at position 0 would show only a
part of what its channels reach later in the context. The texts are therefore laid over the whole context, each at
another position: the rotary embedding is relative, so the model computes what it would at the beginning.
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
    """Where each of the texts begins, so that together they reach from the first position of the context to its last.

    ``lengths`` are those of the texts, in tokens, none above ``context_tokens``.
    """
    for index, tokens in enumerate(lengths):
        yield (context_tokens - tokens) * index // max(len(lengths) - 1, 1)


def cache_scales(session: ort.InferenceSession, feeds: Iterable[Feed]) -> dict[str, FloatArray]:
    """Run the feeds through a graph with a float32 cache; return cache input -> scale, float32 [Hk, D], above 0.

    A scale is the largest magnitude of its channel over 127. A channel that is never anything but 0 takes the largest
    scale of its head, so that whatever it holds later is not lost. One feed's cache is held at a time. Raises
    CalibrationError if there is no feed or a value is not finite.
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
                    f"the student gives values that are not finite in '{name}' on the calibration text",
                    hint="Its weights or the text are broken; nothing can be calibrated on them.",
                )
            largest[name] = np.maximum(largest[name], found) if name in largest else found
    if not largest:
        raise CalibrationError("there is no calibration text", hint="Give --calibration FILE with one text a line.")
    return {PAST + name.removeprefix(PRESENT): _scales(found) for name, found in largest.items()}


def _scales(largest: FloatArray) -> FloatArray:
    """float32 [Hk, D] from the largest magnitudes [Hk, D]."""
    tiny = np.float32(np.finfo(np.float32).tiny * _LEVELS)  # 1 / scale is to be finite
    of_head = largest.max(axis=1, keepdims=True)
    known = np.where(largest > tiny, largest, np.where(of_head > tiny, of_head, np.float32(_LEVELS)))
    return (known / np.float32(_LEVELS)).astype(np.float32)
