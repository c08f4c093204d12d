"""Our side of the decoder benchmark: a bundle made by the command line, stepped through the runtime's own cache."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from benchmarks.cold_start import command_row
from benchmarks.ours_encoder import COMMAND
from benchmarks.peers_decoder import KV_ELEMENTS, TOKENS_RESERVED, folder_bytes, timed_steps
from edgecompress.formats.manifest import open_bundle, read_report
from edgecompress.kinds.decoder.runtime import open_decoder
from edgecompress.kinds.decoder.settings import DecoderSettings
from edgecompress.loading import open_models
from edgecompress.runtime.bundle import read_settings
from edgecompress.runtime.cache import KVCache
from edgecompress.runtime.cancellation import Cancellation
from edgecompress.version import __version__


def export_bundle(checkpoint: Path, out_dir: Path, block_size: int, target: str) -> dict[str, Any]:
    """``edgecompress export`` in a process of its own, timed, with its peak memory and the bundle's size."""
    flags = ["export", str(checkpoint), "--precision", "int4", "--block-size", str(block_size), "--target", target]
    # Random weights have no quality to keep, so the budget is opened; the figures are still in the report.
    flags += ["--max-kl", "100", "--max-perplexity-ratio", "100", "--method", "rtn", "-o", str(out_dir)]
    row = command_row(f"edgecompress export int4, block {block_size}", [*COMMAND, *flags], 1)
    if row["kind"] != "row":
        raise SystemExit(f"the export failed: {row['reason']}")
    return row | {"bundle_bytes": folder_bytes(out_dir, "*")}


LEAST_CORRELATION = 0.98


class Ours:
    """One sequence in one cache; bytes copied a token are counted by the cache itself."""

    ours = True

    def __init__(self, name: str, bundle: Path, threads: int) -> None:
        manifest, folder = open_bundle(bundle)
        self.name = name
        self.settings = {"edgecompress": __version__, "onnxruntime": ort.__version__}
        self.model_bytes = folder_bytes(folder, "model.onnx*")
        layers = read_report(folder).layers
        self.weight_bytes_per_token = sum(
            x.bytes for x in layers if x.op.startswith(("MatMul", "DecoderLayer")) and x.precision != "float32"
        )
        self.kv_bytes_per_token = 4 * KV_ELEMENTS
        self._chunk = read_settings(DecoderSettings, manifest).generation.prefill_chunk_tokens
        source = open_models(manifest, folder, threads=threads)
        self._decoder = open_decoder(source, read_settings(DecoderSettings, manifest).generation)
        self._cache = KVCache(self._decoder.tensors, 1, TOKENS_RESERVED)
        self._cancel = Cancellation()
        self._ids: list[int] = []
        self._next = 0

    def _run(self, ids: list[int], behind: int, wanted: list[int]) -> np.ndarray[Any, np.dtype[np.float32]]:
        logits, _ = self._decoder.run(
            self._cache, 0, np.array([ids]), np.array([behind]), np.array(wanted, dtype=np.int64), self._cancel
        )
        return logits[0]

    def prefill(self, ids: list[int]) -> None:
        for start in range(0, len(ids), self._chunk):
            part = ids[start : start + self._chunk]
            self._next = int(self._run(part, start, [len(part) - 1])[0].argmax())
        self._ids = list(ids)

    def step(self, count: int) -> list[int]:
        found = []
        for _ in range(count):
            found.append(self._next)
            self._ids.append(self._next)
            self._next = int(self._run(self._ids[-1:], len(self._ids) - 1, [0])[0].argmax())
        return found

    def rewind(self, length: int) -> None:
        del self._ids[length:]
        self._next = int(self._run(self._ids[-1:], length - 1, [0])[0].argmax())

    def decode(self, length: int, count: int) -> float:
        return timed_steps(self.rewind, self.step, length, count)

    def check(self, ids: list[int]) -> float:
        """Steps in the cache give what a run over the whole text from nothing gives: least correlation of their logits.

        Not the same tokens: MatMulNBits rounds its inputs to int8 at accuracy_level 4, in another way for one row than
        for many, and random weights have no favourite. A wrong position or a lost key gives a correlation near zero.
        """
        self.prefill(ids)
        whole, stepped = list(ids), []
        for token in np.random.default_rng(0).integers(10, 4000, 6).tolist():
            stepped.append(self._run([token], len(whole), [0])[0].copy())
            whole.append(token)
        logits = self._run(whole, 0, list(range(len(ids), len(whole))))
        least = min(float(np.corrcoef(a, b)[0, 1]) for a, b in zip(stepped, logits, strict=True))
        if least < LEAST_CORRELATION:
            raise RuntimeError(
                f"{self.name}: steps in the cache and a run over the whole text correlate by {least:.3f}"
            )
        if self._cache.bytes_copied:
            raise RuntimeError(f"{self.name}: {self._cache.bytes_copied} bytes of the cache were copied")
        return least
