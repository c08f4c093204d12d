"""Adds an int8 KV cache to a compiled graph, and reports its cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from edgecompress.graph.sessions import make_session
from edgecompress.kinds.decoder.check import Ids, text_feed
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.types.graph import Graph
from edgecompress.types.job import Job
from edgecompress.types.report import Fidelity, QuantizedCache

_DTYPE = np.dtype(np.int8)


@dataclass(kw_only=True)
class Int8Cache:
    """The int8 cache of one export."""

    job: Job
    past: Mapping[str, tuple[int, int]]  # cache input -> (heads, head size)
    texts: Sequence[Ids]  # for calibrating the scales
    context_tokens: int
    beside: dict[str, Fidelity] = field(default_factory=dict)  # candidate -> its fidelity with a float32 cache

    def put_in(self, graph: Graph) -> Graph:
        """Return the compiled graph with an int8 cache and calibrated per-channel scales."""
        one = np.zeros(1, dtype=np.int64)  # no logits are needed
        places = spread_positions([len(ids) for ids in self.texts], self.context_tokens)
        feeds = (
            text_feed(ids, self.past, one, first_position=place) for ids, place in zip(self.texts, places, strict=True)
        )
        scales = cache_scales(make_session(graph.path, self.job.threads), feeds)
        return lower_cache(graph, scales, graph.path.parent)

    def report(self, precision: str, fidelity: Fidelity) -> QuantizedCache:
        """Report on the chosen candidate; ``fidelity`` is the one with the int8 cache."""
        beside = self.beside[precision]
        numbers = sum(heads * size for heads, size in self.past.values())  # per token
        assert fidelity.perplexity_ratio is not None
        assert beside.perplexity_ratio is not None
        return QuantizedCache(
            dtype=_DTYPE.name,
            calibration_tokens=sum(map(len, self.texts)),
            bytes_per_token=numbers * _DTYPE.itemsize,
            float_bytes_per_token=numbers * 4,
            float_fidelity=beside,
            perplexity_ratio=round(fidelity.perplexity_ratio / beside.perplexity_ratio, 6),
        )
