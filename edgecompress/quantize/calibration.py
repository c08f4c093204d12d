"""Streaming calibration: statistics of each linear layer's input, in bounded memory.

ONNX Runtime's calibrators stack the activations of all batches, so they need batches of one length, and memory grows
with the text. Here each batch is reduced at once to a histogram, per-channel extremes and a small sample of rows;
memory is :func:`calibration_bytes` plus the activations of one batch, however long the text is.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from edgecompress.errors import CalibrationError
from edgecompress.quantize.parts import calibration_session
from edgecompress.types.arrays import Feed, FloatArray, IntArray

HISTOGRAM_BINS = 2048
SAMPLE_ROWS = 64


@dataclass(kw_only=True)
class ActivationStatistics:
    """Running statistics of one tensor [..., K], of constant size however many batches are merged."""

    channels: int
    low: float = 0.0
    high: float = 0.0
    rows_seen: int = 0
    absmax: FloatArray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))  # [K]
    total: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(0))  # [K]
    histogram: IntArray = field(default_factory=lambda: np.zeros(HISTOGRAM_BINS, dtype=np.int64))
    reach: float = 0.0  # the histogram covers [-reach, reach]
    sample: FloatArray = field(default_factory=lambda: np.zeros((0, 0), dtype=np.float32))  # [<= SAMPLE_ROWS, K]

    def __post_init__(self) -> None:
        self.absmax = np.zeros(self.channels, dtype=np.float32)
        self.total = np.zeros(self.channels, dtype=np.float64)
        self.sample = np.zeros((0, self.channels), dtype=np.float32)

    @property
    def mean(self) -> FloatArray:
        """[K]"""
        return (self.total / max(self.rows_seen, 1)).astype(np.float32)

    def add(self, x: FloatArray, rng: np.random.Generator) -> None:
        """Merge a batch x [rows, K]."""
        self.low = min(self.low, float(x.min()))
        self.high = max(self.high, float(x.max()))
        np.maximum(self.absmax, np.abs(x).max(axis=0), out=self.absmax)
        self.total += x.sum(axis=0, dtype=np.float64)
        self._widen(max(abs(self.low), abs(self.high)))
        counts, _ = np.histogram(x, bins=HISTOGRAM_BINS, range=(-self.reach, self.reach))
        self.histogram += counts
        self._sample(x, rng)
        self.rows_seen += len(x)

    def _widen(self, needed: float) -> None:
        if self.reach == 0.0:
            self.reach = max(needed, 1e-6)
        while self.reach < needed:
            # Double the range: merge every two bins, on each side of zero.
            half = HISTOGRAM_BINS // 2
            merged = self.histogram.reshape(-1, 2).sum(axis=1)
            self.histogram = np.zeros(HISTOGRAM_BINS, dtype=np.int64)
            self.histogram[half // 2 : half // 2 + half] = merged
            self.reach *= 2

    def _sample(self, x: FloatArray, rng: np.random.Generator) -> None:
        # Reservoir sampling: keep uniformly chosen old and new rows, in proportion to the rows seen.
        wanted = min(SAMPLE_ROWS, self.rows_seen + len(x))
        from_new = round(wanted * len(x) / (self.rows_seen + len(x)))
        from_new = min(max(from_new, wanted - len(self.sample)), len(x))
        keep = wanted - from_new
        old = self.sample[rng.permutation(len(self.sample))[:keep]]
        new = x[rng.permutation(len(x))[:from_new]]
        self.sample = np.concatenate([old, new]).astype(np.float32)

    def clipped_range(self, method: str, percentile: float) -> tuple[float, float]:
        """The range that 8 bits should cover, by method "minmax", "percentile" or "entropy"."""
        if method == "minmax":
            return self.low, self.high
        edges = np.linspace(-self.reach, self.reach, HISTOGRAM_BINS + 1)
        if method == "percentile":
            share = np.cumsum(self.histogram) / max(self.histogram.sum(), 1)
            tail = (1 - percentile / 100) / 2
            first = int(np.searchsorted(share, tail, side="right"))
            last = int(np.searchsorted(share, 1 - tail, side="left"))
            return max(float(edges[first]), self.low), min(float(edges[min(last + 1, HISTOGRAM_BINS)]), self.high)
        limit = _least_entropy_limit(self.histogram, self.reach)
        return max(-limit, self.low), min(limit, self.high)


def _least_entropy_limit(histogram: IntArray, reach: float) -> float:
    """The symmetric clipping limit whose 256 levels have the smallest KL divergence from the histogram."""
    half = HISTOGRAM_BINS // 2
    folded = histogram[half:] + histogram[:half][::-1]
    best, best_divergence = half, np.inf
    for kept in range(128, half + 1, 16):
        p = folded[:kept].astype(np.float64)
        p[-1] += folded[kept:].sum()
        groups = np.array_split(folded[:kept].astype(np.float64), 128)
        q = np.concatenate([np.where(g > 0, g.sum() / max((g > 0).sum(), 1), 0.0) for g in groups])
        if p.sum() == 0 or q.sum() == 0:
            continue
        p, q = p / p.sum(), q / q.sum()
        nonzero = p > 0
        divergence = float(np.sum(p[nonzero] * np.log(p[nonzero] / np.maximum(q[nonzero], 1e-12))))
        if divergence < best_divergence:
            best, best_divergence = kept, divergence
    return reach * best / half


def calibration_bytes(channels: Iterable[int]) -> int:
    """Upper bound, in bytes, of the statistics of layers with these input widths."""
    return sum(HISTOGRAM_BINS * 8 + k * (4 + 8 + SAMPLE_ROWS * 4) for k in channels)


def collect_statistics(
    runnable: ir.Model,
    tensors: Mapping[str, int],
    batches: Iterable[Feed],
    *,
    seed: int = 0,
) -> dict[str, ActivationStatistics]:
    """Run float32 batches of any length through ``runnable`` and summarize the named tensors.

    ``tensors`` maps a value's name to its number of channels; a batch maps input names to arrays (its
    ``attention_mask`` excludes padding). Raises CalibrationError if there is no batch or a value is not finite.
    """
    probed = _with_outputs(runnable, list(tensors))
    session = calibration_session(probed, packed=True)
    wanted = {i.name for i in session.get_inputs()}
    statistics = {name: ActivationStatistics(channels=channels) for name, channels in tensors.items()}
    rng = np.random.default_rng(seed)
    seen = 0
    for batch in batches:
        outputs = session.run(list(tensors), {k: v for k, v in batch.items() if k in wanted})
        mask = batch.get("attention_mask")
        for name, x in zip(tensors, outputs, strict=True):
            real = x[mask.astype(bool)] if mask is not None and x.shape[:2] == mask.shape else x
            rows = np.ascontiguousarray(real.reshape(-1, statistics[name].channels), dtype=np.float32)
            if not np.isfinite(rows).all():
                raise CalibrationError(
                    f"the student's values at '{name}' are not finite on the calibration text",
                    hint="Give another checkpoint or another calibration text; one of the two is broken.",
                )
            statistics[name].add(rows, rng)
        seen += 1
    if not seen:
        raise CalibrationError("there is no calibration text", hint="Give --calibration FILE, with one text per line.")
    return statistics


def _with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    copy = model.clone()
    present = {value.name for value in copy.graph.outputs}
    values = {o.name: o for node in copy.graph for o in node.outputs}
    values.update({i.name: i for i in copy.graph.inputs})
    for name in names:
        if name not in present:
            value = values[name]
            value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
            copy.graph.outputs.append(value)
    return copy
