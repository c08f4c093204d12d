"""Streaming statistics equal the statistics of all data at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import CalibrationError
from edgecompress.quantize.calibration import (
    HISTOGRAM_BINS,
    SAMPLE_ROWS,
    ActivationStatistics,
    calibration_bytes,
    collect_statistics,
)
from tests.graphs import graph_with_weights

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[b,t,4] x, int64[b,t] attention_mask) => (float[b,t,4] y) { h = Add(x, x)  y = Relu(h) }
"""


def merged(parts: list[np.ndarray], rng: np.random.Generator) -> ActivationStatistics:
    statistics = ActivationStatistics(channels=parts[0].shape[1])
    for part in parts:
        statistics.add(part, rng)
    return statistics


def test_batches_of_any_length_merge_to_the_same_statistics(rng: np.random.Generator) -> None:
    data = rng.normal(size=(700, 3)).astype(np.float32) * np.array([1, 10, 0.1], dtype=np.float32)
    data[333, 1] = 250.0  # an outlier that widens the histogram late
    statistics = merged(np.split(data, [1, 8, 300, 334]), rng)
    assert statistics.low == data.min()
    assert statistics.high == data.max()
    np.testing.assert_allclose(statistics.absmax, np.abs(data).max(0))
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-4, atol=1e-5)
    assert statistics.histogram.sum() == data.size
    assert statistics.reach >= 250.0
    assert statistics.sample.shape == (SAMPLE_ROWS, 3)


def test_memory_does_not_grow_with_the_data(rng: np.random.Generator) -> None:
    statistics = merged([rng.normal(size=(100, 8)).astype(np.float32) for _ in range(50)], rng)
    held = sum(a.nbytes for a in (statistics.absmax, statistics.total, statistics.histogram, statistics.sample))
    assert held <= calibration_bytes([8])


@pytest.mark.parametrize("method", ["percentile", "entropy"])
def test_clipping_leaves_the_outlier_out_and_the_bulk_in(method: str, rng: np.random.Generator) -> None:
    data = rng.normal(size=(20_000, 2)).astype(np.float32)
    data[5, 0] = 90.0
    statistics = merged([data], rng)
    low, high = statistics.clipped_range(method, 99.9)
    assert 2.5 < high < 45.0
    assert -6.0 < low < -2.5
    assert statistics.clipped_range("minmax", 99.9) == (float(data.min()), 90.0)


def test_histogram_keeps_its_counts_when_it_widens(rng: np.random.Generator) -> None:
    statistics = ActivationStatistics(channels=1)
    statistics.add(np.full((10, 1), 0.9, dtype=np.float32), rng)
    statistics.add(np.full((1, 1), 30.0, dtype=np.float32), rng)
    centres = (np.arange(HISTOGRAM_BINS) + 0.5) / HISTOGRAM_BINS * 2 * statistics.reach - statistics.reach
    near = np.abs(centres - 0.9) < 2 * statistics.reach / HISTOGRAM_BINS * 2
    assert statistics.histogram[near].sum() == 10


def test_padding_is_left_out_and_lengths_may_differ() -> None:
    model = ir.from_onnx_text(MODEL)
    batches = []
    for length in (3, 5):
        x = np.ones((2, length, 4), dtype=np.float32)
        mask = np.ones((2, length), dtype=np.int64)
        x[1, -1], mask[1, -1] = 1000.0, 0
        batches.append({"x": x, "attention_mask": mask})
    statistics = collect_statistics(model, {"h": 4}, batches)["h"]
    assert statistics.high == 2.0
    assert statistics.rows_seen == 2 * (3 + 5) - 2


def test_no_text_and_broken_values_are_refused() -> None:
    model = ir.from_onnx_text(MODEL)
    with pytest.raises(CalibrationError, match="no calibration text"):
        collect_statistics(model, {"h": 4}, [])
    bad = {"x": np.full((1, 2, 4), np.nan, dtype=np.float32), "attention_mask": np.ones((1, 2), dtype=np.int64)}
    with pytest.raises(CalibrationError, match="not finite"):
        collect_statistics(model, {"h": 4}, [bad])


def test_weights_in_a_file_are_found(tmp_path: Path, rng: np.random.Generator) -> None:
    model = graph_with_weights(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,64] x, float[64,64] w) => (float[b,64] y) { y = MatMul(x, w) }
        """,
        {"w": rng.normal(size=(64, 64)).astype(np.float32)},
    )
    ir.save(model, tmp_path / "m.onnx", external_data="m.onnx.data", size_threshold_bytes=0)
    stored = ir.load(tmp_path / "m.onnx")
    assert isinstance(stored.graph.initializers["w"].const_value, ir.ExternalTensor)
    x = rng.normal(size=(5, 64)).astype(np.float32)
    found = collect_statistics(stored, {"y": 64}, [{"x": x}])["y"]
    assert found.rows_seen == 5
    assert found.high == pytest.approx(float((x @ model.graph.initializers["w"].const_value.numpy()).max()), rel=1e-5)
