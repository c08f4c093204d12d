"""Streamed Hessians equal those of all rows at once, and only one group is in memory."""

from __future__ import annotations

import gc
import tempfile
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import CalibrationError
from edgecompress.quantize import parts
from edgecompress.quantize.hessians import StreamedHessians, groups
from tests.graphs import graph_with_weights

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
g (float[b,t,4] x, int64[b,t] attention_mask) => (float[b,t,4] y) { h = Add(x, x)  i = Exp(h)  y = Relu(i) }
"""


def batches(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    made = []
    for length in (3, 8, 5):
        x = rng.normal(size=(2, length, 4)).astype(np.float32)
        mask = np.ones((2, length), dtype=np.int64)
        x[1, -1], mask[1, -1] = 10.0, 0
        made.append({"x": x, "attention_mask": mask})
    return made


def test_sums_cover_all_real_rows(rng: np.random.Generator) -> None:
    feeds = batches(rng)
    found = StreamedHessians(ir.from_onnx_text(MODEL), {"h": 4, "i": 4}, lambda: feeds)
    rows = np.concatenate([2 * feed["x"][feed["attention_mask"].astype(bool)] for feed in feeds])
    np.testing.assert_allclose(found["h"], rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["i"], np.exp(rows).T @ np.exp(rows) / len(rows), rtol=1e-5)


def test_a_group_is_what_fits() -> None:
    widths = {"a": 10, "b": 10, "c": 100, "d": 10}
    assert groups(widths, 800) == [("a", "b"), ("c",), ("d",)]
    assert groups(widths, 10**6) == [("a", "b", "c", "d")]
    assert groups({}, 10) == []


def test_one_group_is_in_memory_and_the_text_runs_once_per_group(rng: np.random.Generator) -> None:
    feeds, passes = batches(rng), []

    def again() -> list[dict[str, np.ndarray]]:
        passes.append(1)
        return feeds

    model = ir.from_onnx_text(MODEL)
    streamed = StreamedHessians(model, {"x": 4, "h": 4, "i": 4}, again, group_bytes=2 * 64)
    whole = StreamedHessians(model, {"x": 4, "h": 4, "i": 4}, lambda: feeds)
    assert list(streamed) == ["x", "h", "i"]
    for name, expected in (("x", 1), ("h", 1), ("x", 1), ("i", 2), ("x", 3)):
        np.testing.assert_array_equal(streamed[name], whole[name])
        assert len(passes) == expected  # {x, h} is one group, {i} the next
    with pytest.raises(KeyError):
        streamed["y"]


def test_weights_in_a_file_are_read_from_there(rng: np.random.Generator, tmp_path: Path) -> None:
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    model = ir.from_onnx_text(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,4] x, float[4,4] w) => (float[b,t,4] y) { h = MatMul(x, w)  y = Relu(h) }
        """
    )
    value = model.graph.inputs.pop()
    value.const_value = ir.tensor(weight, name="w")
    model.graph.register_initializer(value)
    ir.save(model, tmp_path / "m.onnx", external_data="m.onnx.data", size_threshold_bytes=0)
    loaded = ir.load(tmp_path / "m.onnx")
    assert isinstance(loaded.graph.initializers["w"].const_value, ir.ExternalTensor)
    x = rng.normal(size=(1, 6, 4)).astype(np.float32)
    h = (x @ weight)[0]
    np.testing.assert_allclose(
        StreamedHessians(loaded, {"h": 4}, lambda: [{"x": x}])["h"], h.T @ h / 6, rtol=1e-5, atol=1e-6
    )
    assert [o.name for o in loaded.graph.outputs] == ["y"]


def test_weights_in_memory_go_to_a_file_that_goes_away(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "_IN_MEMORY_BYTES", 0)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    weight = rng.normal(size=(4, 4)).astype(np.float32)
    model = graph_with_weights(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,4] x, float[4,4] w) => (float[b,t,4] y) { h = MatMul(x, w)  y = Relu(h) }
        """,
        {"w": weight},
    )
    x = rng.normal(size=(1, 6, 4)).astype(np.float32)
    streamed = StreamedHessians(model, {"h": 4}, lambda: [{"x": x}])
    h = (x @ weight)[0]
    np.testing.assert_allclose(streamed["h"], h.T @ h / 6, rtol=1e-5, atol=1e-6)
    (folder,) = tmp_path.iterdir()
    assert (folder / "runnable.onnx").exists()
    del streamed
    gc.collect()
    assert not folder.exists()


def test_no_text_and_broken_values_are_refused() -> None:
    model = ir.from_onnx_text(MODEL)
    with pytest.raises(CalibrationError, match="no calibration text"):
        StreamedHessians(model, {"h": 4}, lambda: [])["h"]
    bad = {"x": np.full((1, 2, 4), np.nan, dtype=np.float32), "attention_mask": np.ones((1, 2), dtype=np.int64)}
    with pytest.raises(CalibrationError, match="not finite"):
        StreamedHessians(model, {"h": 4}, lambda: [bad])["h"]
