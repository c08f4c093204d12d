"""Decoders lowered to standard ops: prefill and decode match eager PyTorch."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.errors import RecipeError
from edgecompress.graph.model import write_model
from edgecompress.lower import standard
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.types.graph import Graph
from tests.conftest import CapturedDecoder
from tests.decoders import CAPACITY, largest_difference

pytestmark = pytest.mark.slow

# Grouped heads, norms of heads, windows, soft-caps, part of a head turned, one product for all, biases, no rotation.
KINDS = (
    "qwen2", "qwen3", "qwen2-window", "gemma2", "partial-rotary", "phi3", "llama-biases", "llama-tied", "gpt2",
)  # fmt: skip
POISON = 1e4  # behind what was written: a key that is seen too early is not overlooked


@pytest.mark.parametrize("kind", KINDS)
def test_standard_ops_compute_what_pytorch_does(tmp_path: Path, kind: str, captured_decoder: CapturedDecoder) -> None:
    checkpoint, graph = captured_decoder(kind)
    model = standard.to_standard_ops(ir.load(graph.path), capacity_tokens=CAPACITY)
    assert {node.domain for node in model.graph.all_nodes()} == {""}
    write_model(model, tmp_path / "standard.onnx")
    assert largest_difference(checkpoint, tmp_path / "standard.onnx", poison=POISON) <= 2e-4
    half = rounded_graph(standard.lower(Graph(path=graph.path, stage="quantized", precision="fp16"), tmp_path,
                                        capacity_tokens=CAPACITY), tmp_path)  # fmt: skip
    assert largest_difference(checkpoint, half.path, poison=POISON) <= 0.05


def test_the_cache_is_float16_of_fixed_capacity_and_other_types_stay(
    captured_decoder: CapturedDecoder,
) -> None:
    _, graph = captured_decoder("qwen2")
    model = standard.lower_model(ir.load(graph.path), capacity_tokens=CAPACITY)
    caches = [
        v for v in (*model.graph.inputs, *model.graph.outputs) if "key" in (v.name or "") or "value" in (v.name or "")
    ]
    assert len(caches) == 8
    for value in caches:
        assert value.dtype == ir.DataType.FLOAT16
        assert list(value.shape or ())[1:] == [2, CAPACITY, 16]
    assert model.graph.outputs[0].name == "logits"
    assert model.graph.outputs[0].dtype == ir.DataType.FLOAT
    assert {v.dtype for v in model.graph.inputs if v not in caches} == {ir.DataType.INT64}
    kinds = [node.op_type for node in model.graph]
    assert [kinds.count(op) for op in ("TensorScatter", "Attention", "RotaryEmbedding", "RMSNormalization")] == [
        4,
        2,
        4,
        5,
    ]
    norms = {node.outputs[0].dtype for node in model.graph if node.op_type == "RMSNormalization"}
    assert norms == {ir.DataType.FLOAT}
    tables = {value for node in model.graph if node.op_type == "RotaryEmbedding" for value in node.inputs[1:3]}
    assert {tuple(value.shape or ()) for value in tables if value is not None} == {(CAPACITY, 8)}
    # One mask, and one place to write at, serve every layer.
    assert len({node.inputs[3] for node in model.graph if node.op_type == "Attention"}) == 1
    assert len({node.inputs[2] for node in model.graph if node.op_type == "TensorScatter"}) == 1


@pytest.mark.parametrize(
    ("kind", "message"),
    [("qwen3_moe", "cannot lower"), ("gpt_oss", "has no sinks")],
)
def test_unsupported_decoders_are_refused(kind: str, message: str, captured_decoder: CapturedDecoder) -> None:
    _, graph = captured_decoder(kind)
    with pytest.raises(RecipeError, match=message):
        standard.lower_model(ir.load(graph.path), capacity_tokens=CAPACITY)
