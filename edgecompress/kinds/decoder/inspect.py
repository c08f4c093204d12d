"""Additional lines of ``edgecompress inspect`` for a decoder: the KV cache's dtype and its cost."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edgecompress.types.bundle import Manifest, TensorSpec
from edgecompress.types.report import Report

_PAST = "past_key_values."


def rows(manifest: Manifest, report: Report) -> Sequence[tuple[str, str]]:
    past = [spec for spec in manifest.variant().inputs if spec.name.startswith(_PAST)]
    if not past:
        return ()
    dtypes = ", ".join(dict.fromkeys(spec.dtype for spec in past))
    line = f"{dtypes}, {sum(map(_bytes_per_token, past)):_} bytes per token"
    cost = report.kv_cache
    if cost is not None:
        line += f" (float32: {cost.float_bytes_per_token:_}); perplexity ratio of the cache alone "
        line += f"{cost.perplexity_ratio:.4f}, with a float32 cache {cost.float_fidelity.perplexity_ratio:.4f}"
        line += f"; scales from {cost.calibration_tokens:_} tokens"
    return (("KV cache", line),)


def _bytes_per_token(spec: TensorSpec) -> int:
    """Bytes per token of one row of a cache [B, Hk, C, D]; C can be fixed (an engine's cache)."""
    _, heads, _, size = spec.shape
    return np.dtype(spec.dtype).itemsize * int(heads) * int(size)
