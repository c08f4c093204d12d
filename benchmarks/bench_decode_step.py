"""A decoder's whole step after a long context: bundles of one student, step by step in turn.

    python -m benchmarks.bench_decode_step --baseline none.bundle --bundles ours.bundle int8.bundle --out FILE

The cache is filled with the same random keys and values on every side, because a step takes as long for those as for a
text's. The logits of sides with the same cache type are compared with the baseline's before anything is timed. A row's
ratio is the baseline's time over the side's, median of the rounds with p10 and p90.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note, spread
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds.decoder.runtime import open_decoder
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.loading import open_models
from edgecompress.runtime.bundle import read_settings
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.cancellation import Cancellation

LEAST_CORRELATION = 0.98
_STEPS = 4  # of a side before the other's turn


class Side:
    """One bundle with a cache of ``context`` random tokens and room for the steps."""

    def __init__(self, bundle: Path, threads: int, context: int) -> None:
        manifest, folder = open_bundle(bundle)
        self.name = bundle.name
        self.kv_dtype = read_settings(DecoderSettings, manifest).generation.kv_dtype
        self.kernels = manifest.variant().kernels.isa if manifest.variant().kernels else "none"
        source = open_models(manifest, folder, threads=threads)
        self._decoder = open_decoder(source, read_settings(DecoderSettings, manifest).generation)
        self._cache = KVCache(self._decoder.tensors, 1, context + 64)
        self._cancel = Cancellation()
        self._past = np.array([context])
        rng = np.random.default_rng(0)
        for buffer in self._cache.buffers:
            shape = buffer[:, :, :context].shape
            if buffer.dtype == np.int8:
                buffer[:, :, :context] = rng.integers(-100, 101, shape, dtype=np.int8)
            else:
                buffer[:, :, :context] = rng.standard_normal(shape, dtype=np.float32)

    def step(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Always the same token after the same context; the next step overwrites what it appends."""
        logits, _ = self._decoder.run(
            self._cache, 0, np.array([[7]]), self._past, np.zeros(1, dtype=np.int64), self._cancel
        )
        return logits[0, 0]

    def seconds(self) -> float:
        self.step()
        started = time.perf_counter()
        for _ in range(_STEPS):
            self.step()
        return (time.perf_counter() - started) / _STEPS


def measure(baseline: Path, bundles: list[Path], threads: int, context: int, rounds: int) -> list[dict[str, Any]]:
    sides = [Side(path, threads, context) for path in (baseline, *bundles)]
    expected = sides[0].step().copy()
    alike = {}
    for side in sides:
        if side.kv_dtype != sides[0].kv_dtype:
            continue
        alike[side.name] = round(float(np.corrcoef(side.step(), expected)[0, 1]), 4)
        if alike[side.name] < LEAST_CORRELATION:
            raise SystemExit(f"{side.name}: its logits correlate with {sides[0].name}'s by {alike[side.name]}")
    times: dict[str, list[float]] = {side.name: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            times[side.name].append(side.seconds())
    rows = []
    for side in sides:
        ratios = [a / b for a, b in zip(times[sides[0].name], times[side.name], strict=True)]
        row = {"kind": "row", "bundle": side.name, "kernels": side.kernels, "kv_cache": side.kv_dtype}
        row |= {"threads": threads, "context_tokens": context, "logits_correlation": alike.get(side.name)}
        row["tokens_per_s"] = round(1 / float(np.median(times[side.name])), 2)
        rows.append(row | spread(ratios))
        note(f"{side.name}, {threads} threads, after {context}: {rows[-1]['tokens_per_s']} tok/s, {spread(ratios)}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True)
    parser.add_argument("--bundles", type=Path, nargs="+", required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--contexts", type=int, nargs="+", default=[128, 2048, 8192])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode_step.jsonl")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = [header()]
    for threads in options.threads:
        for context in options.contexts:
            lines += measure(options.baseline, options.bundles, threads, context, options.rounds)
    write(options.out, lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
