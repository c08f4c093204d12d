"""Scales of an int8 KV cache, from the graph's own cache and over the whole context."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.errors import CalibrationError
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.check import text_feed
from edgecompress.lower.microsoft import lower
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.quantize.texts import affordable_texts
from edgecompress.types.recipe import StudentRecipe
from tests.captured import capture
from tests.decoders import tiny_decoder

pytestmark = pytest.mark.slow

CONTEXT = 8192
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"


def identity_session() -> ort.InferenceSession:
    """A graph whose present is its past."""
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,2,c,3] k, float[b,2,c,3] v) => (float[b,2,c,3] pk, float[b,2,c,3] pv)
        { pk = Identity(k)
          pv = Identity(v) }
    """
    model = ir.from_onnx_text(text)
    names = {"k": KEY, "v": VALUE, "pk": "present.0.key", "pv": "present.0.value"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names[value.name or ""]
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])


def test_a_scale_is_the_largest_magnitude_of_its_channel(rng: np.random.Generator) -> None:
    feeds = [{name: rng.normal(size=(1, 2, n, 3)).astype(np.float32) for name in (KEY, VALUE)} for n in (5, 9, 2)]
    scales = cache_scales(identity_session(), iter(feeds))
    assert sorted(scales) == [KEY, VALUE]
    for name, scale in scales.items():
        whole = np.concatenate([feed[name][0] for feed in feeds], axis=1)
        assert scale.dtype == np.float32
        np.testing.assert_allclose(scale, np.abs(whole).max(axis=1) / 127, rtol=1e-6)


def test_a_channel_that_is_always_zero_does_not_clip_later_values(rng: np.random.Generator) -> None:
    values = rng.normal(size=(1, 2, 4, 3)).astype(np.float32)
    values[:, 0, :, 1] = 0
    values[:, 1] = 0
    scales = cache_scales(identity_session(), [{KEY: values, VALUE: np.ones_like(values)}])
    assert scales[KEY][0, 1] == scales[KEY][0].max() > 0
    assert (scales[KEY][1] == 1).all()


def test_values_that_are_not_finite_are_refused() -> None:
    values = np.ones((1, 2, 4, 3), dtype=np.float32)
    broken = values.copy()
    broken[0, 1, 2, 0] = np.nan
    with pytest.raises(CalibrationError, match=r"'present.0.value' are not finite"):
        cache_scales(identity_session(), [{KEY: values, VALUE: broken}])
    with pytest.raises(CalibrationError, match="no calibration text"):
        cache_scales(identity_session(), [])


def test_texts_span_the_context() -> None:
    places = list(spread_positions([10, 10, 10, 4], 100))
    assert places == [0, 30, 60, 96]
    assert list(spread_positions([7], 100)) == [0]
    assert list(spread_positions([8, 8], 8)) == [0, 0]


def test_a_large_student_is_calibrated_on_fewer_texts() -> None:
    assert affordable_texts(4_000_000, 256, 128) == 128
    assert affordable_texts(1_780_000_000, 256, 128) == 21
    assert affordable_texts(70_000_000_000, 256, 128) == 16
    assert affordable_texts(70_000_000_000, 256, 3) == 3


def test_keys_stay_in_range_at_any_position(tmp_path: Path, rng: np.random.Generator) -> None:
    """The rotary embedding rotates slow channels out of their initial range."""
    source = tiny_decoder(tmp_path / "s", "qwen2", max_position_embeddings=CONTEXT)
    student = load_student(StudentRecipe(source=str(source)))
    session = ort.InferenceSession(str(lower(capture(student, tmp_path, opset=21), tmp_path).path))
    past = {v.name: (v.shape[1], v.shape[3]) for v in session.get_inputs() if v.name.startswith("past_key_values.")}
    texts = [rng.integers(3, 120, size=48) for _ in range(24)]
    one = np.zeros(1, dtype=np.int64)

    def scales(places: list[int]) -> np.ndarray:
        feeds = [text_feed(ids, past, one, first_position=p) for ids, p in zip(texts, places, strict=True)]
        return cache_scales(session, feeds)[KEY]

    spread = scales(list(spread_positions([len(ids) for ids in texts], CONTEXT)))
    beginning = scales([0] * len(texts))
    elsewhere = scales(rng.integers(0, CONTEXT - 48, size=len(texts)).tolist())
    assert (elsewhere / beginning).max() > 1.5, "the beginning shows everything: nothing is tested"
    assert (elsewhere / spread).max() < 1.1
