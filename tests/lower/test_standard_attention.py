"""Lowered standard Attention, compared with plain attention in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.lower.standard import OPSET
from edgecompress.lower.standard_attention import lower_to_standard_attention
from tests.lower.test_attention import attention_graph, check_against_float64, reference


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("mask", [None, "full", "padded"])
@pytest.mark.parametrize("shape", [(1, 4, 1, 8), (2, 3, 63, 20), (3, 2, 129, 64)])
def test_it_matches_float64(
    shape: tuple[int, int, int, int], mask: str | None, window: int | None, rng: np.random.Generator
) -> None:
    check_against_float64(_lowered, shape, mask, window, rng)


def test_one_mask_serves_every_layer(rng: np.random.Generator) -> None:
    attention = "edgecompress.Attention <scale = 0.3, num_heads = 2, head_size = 8>"
    model = ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}, "edgecompress" : 1]>
        g (float[b,2,t,8] q, int64[b,t] mask) => (float[b,t,2,8] y, float[b,t,2,8] z)
        {{ keep = Cast <to = 9> (mask)
           y = {attention} (q, q, q, keep)  z = {attention} (q, q, q, keep) }}
        """
    )
    assert lower_to_standard_attention(model) == 2
    assert sum(node.op_type == "Expand" for node in model.graph) == 1
    masks = [node.inputs[3] for node in model.graph if node.op_type == "Attention"]
    assert masks[0] is masks[1]


def test_grouped_heads(rng: np.random.Generator) -> None:
    q = rng.normal(size=(2, 4, 9, 8)).astype(np.float32)
    k, v = (rng.normal(size=(2, 2, 9, 8)).astype(np.float32) for _ in range(2))
    model = _lowered(attention_graph(4, 8, mask=False, window=None, kv_heads=2))
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    expected = reference(q, k.repeat(2, axis=1), v.repeat(2, axis=1), None, None)
    np.testing.assert_allclose(session.run(None, {"q": q, "k": k, "v": v})[0], expected, rtol=1e-4, atol=2e-5)


def _lowered(model: ir.Model) -> ir.Model:
    model.opset_imports[""] = OPSET
    assert lower_to_standard_attention(model) == 1
    assert {node.domain for node in model.graph} == {""}
    del model.opset_imports["edgecompress"]
    return model
