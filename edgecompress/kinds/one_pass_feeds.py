"""Groups feeds of one sample each into batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.types.arrays import Feed


def in_batches(feeds: Sequence[Feed], size: int, pad_token_id: int) -> list[tuple[list[int], Feed]]:
    """Sort feeds of one sample by length and pad them together; return each batch with its feeds' original indices.

    The runtime batches in the same way, so per-batch quantization ranges include the same padding and neighbours.
    """
    if "input_ids" not in feeds[0]:
        order = list(range(len(feeds)))
    else:
        order = sorted(range(len(feeds)), key=lambda i: -feeds[i]["input_ids"].shape[1])
    batches = []
    for start in range(0, len(order), size):
        positions = order[start : start + size]
        batches.append((positions, stack([feeds[i] for i in positions], pad_token_id)))
    return batches


def stack(feeds: Sequence[Feed], pad_token_id: int, *, at_least: int = 0) -> Feed:
    """Stack feeds [1, …] to one feed [N, …]; pad texts on the right to the longest, or to ``at_least`` tokens."""
    if "input_ids" not in feeds[0]:
        return {name: np.concatenate([feed[name] for feed in feeds]) for name in feeds[0]}
    width = max(at_least, *(feed["input_ids"].shape[1] for feed in feeds))
    stacked = {}
    for name in feeds[0]:
        fill = pad_token_id if name == "input_ids" else 0
        rows = [np.pad(f[name], ((0, 0), (0, width - f[name].shape[1])), constant_values=fill) for f in feeds]
        stacked[name] = np.concatenate(rows)
    return stacked
