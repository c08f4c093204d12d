"""What ``edgecompress inspect`` shows of a decoder alone: in what its KV cache is kept, and what that costs."""

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
    line = f"{dtypes}, {sum(map(_bytes_per_token, past)):_} bytes a token"
    cost = report.kv_cache
    if cost is not None:
        line += f" (float32: {cost.float_bytes_per_token:_}); perplexity ratio of the cache alone "
        line += f"{cost.perplexity_ratio:.4f}, with a float32 cache {cost.float_fidelity.perplexity_ratio:.4f}"
        line += f"; scales from {cost.calibration_tokens:_} tokens"
    return (("KV cache", line),)


def _bytes_per_token(spec: TensorSpec) -> int:
    """Of one row of a cache [B, Hk, C, D]. An engine's has a fixed capacity C as well."""
    _, heads, _, size = spec.shape
    return np.dtype(spec.dtype).itemsize * int(heads) * int(size)
