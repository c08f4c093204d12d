"""Captured decoders match eager PyTorch: prefill, chunks after a past, and decoding of rows of unequal length."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from edgecompress.backends.contents import expert_notes
from edgecompress.capture.lazy_weights import skeleton
from edgecompress.errors import EdgeCompressError, StudentError
from edgecompress.kinds.architectures import architectures
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.generation import chat_template, generation_settings
from edgecompress.lower.microsoft import lower
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import StudentRecipe
from edgecompress.types.student import Student
from tests.captured import capture
from tests.conftest import CapturedDecoder
from tests.decoders import VARIANTS, largest_difference, tiny_decoder

pytestmark = pytest.mark.slow

TOLERANCE = 1e-4
DECODERS = {a.name: a for kind, a in architectures().values() if kind == "decoder"}
ROPES = [name for name, (kind, _) in VARIANTS.items() if name != kind]


def student_of(folder: Path) -> Student:
    return load_student(StudentRecipe(source=str(folder)))


def captured(folder: Path, name: str) -> Graph:
    return capture(student_of(tiny_decoder(folder, name)), folder, opset=21)


def ops(path: Path) -> dict[str, int]:
    counts: dict[str, int] = {}
    for node in ir.load(path).graph:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


@pytest.mark.parametrize("name", [*(n for n, a in DECODERS.items() if a.refused is None), *ROPES])
def test_supported_decoders_match_eager(name: str, tmp_path: Path, captured_decoder: CapturedDecoder) -> None:
    """Texts exceed every window, rows differ in length, and unwritten cache entries are NaN."""
    checkpoint, graph = captured_decoder(name)
    lowered = lower(graph, tmp_path)
    assert ops(lowered.path)["GroupQueryAttention"] == 2
    assert largest_difference(checkpoint, lowered.path) <= TOLERANCE


@pytest.mark.parametrize(
    ("name", "layers"),
    [*((n, 2) for n in ("gpt_oss", "mixtral", "olmoe", "phimoe", "qwen2_moe", "qwen3_moe")), ("ernie4_5_moe", 1)],
)
def test_a_mixture_s_experts_are_one_op(
    name: str, layers: int, tmp_path: Path, captured_decoder: CapturedDecoder
) -> None:
    """Captured and lowered as one op; no expert's weights are gathered."""
    _, graph = captured_decoder(name)
    assert ops(graph.path)["Experts"] == layers
    lowered = ir.load(lower(graph, tmp_path).path)
    assert sum(node.op_type == "MoE" for node in lowered.graph) == layers
    assert expert_notes(lowered) == ()


@pytest.mark.parametrize(
    ("name", "reason"), [("gelu-experts", "gated by gelu_tanh"), ("mish-experts", "their gate is unknown")]
)
def test_experts_with_another_gate_are_gathered_and_named(
    name: str, reason: str, tmp_path: Path, captured_decoder: CapturedDecoder
) -> None:
    """The test above checks that they match eager PyTorch."""
    lowered = ir.load(lower(captured_decoder(name)[1], tmp_path).path)
    assert not any(node.op_type == "MoE" for node in lowered.graph)
    (note,) = expert_notes(lowered)
    assert reason in note


@pytest.mark.parametrize("name", [n for n, a in DECODERS.items() if a.refused is not None])
def test_refused_decoders_are_refused_by_name(name: str, tmp_path: Path) -> None:
    reason = DECODERS[name].refused
    assert reason is not None
    with pytest.raises(EdgeCompressError) as refusal:
        lower(captured(tmp_path, name), tmp_path)
    assert reason in refusal.value.message
    assert refusal.value.hint


def test_a_llama_is_captured_as_single_ops(tmp_path: Path, captured_decoder: CapturedDecoder) -> None:
    """Two layers: packed projections, norms and rotations as single ops, and no cosine left in the graph."""
    _, graph = captured_decoder("llama")
    portable = ops(graph.path)
    assert (portable["CachedAttention"], portable["RMSNorm"], portable["Rotary"]) == (2, 5, 4)
    assert not {"Cos", "Sin", "Softmax", "Pow", "Where"} & set(portable)
    lowered = ir.load(lower(graph, tmp_path).path)
    attention = [node for node in lowered.graph if node.op_type == "GroupQueryAttention"]
    assert all(node.attributes["do_rotary"].as_int() == 1 for node in attention)
    assert all(node.inputs[1] is None and node.inputs[2] is None for node in attention)
    counts = ops(lower(graph, tmp_path).path)
    assert counts["SimplifiedLayerNormalization"] == 5
    assert counts["MatMul"] == 2 * 4 + 1  # qkv, o, gate and up, down; and the head
    assert "RotaryEmbedding" not in counts
    assert {"edgecompress"}.isdisjoint({node.domain for node in lowered.graph})


def test_inputs_and_outputs_are_the_documented_ones(tmp_path: Path, captured_decoder: CapturedDecoder) -> None:
    graph = ir.load(lower(captured_decoder("qwen2")[1], tmp_path).path).graph
    shapes = {value.name: [str(size) for size in value.shape or ()] for value in (*graph.inputs, *graph.outputs)}
    assert shapes == {
        "input_ids": ["batch", "tokens"],
        "attention_mask": ["batch", "total_tokens"],
        "position_ids": ["batch", "tokens"],
        "logits_positions": ["wanted"],
        "logits": ["batch", "wanted", "128"],
    } | {
        f"{side}.{layer}.{part}": ["batch", "2", "capacity", "16"]
        for side in ("past_key_values", "present")
        for layer in (0, 1)
        for part in ("key", "value")
    }


@pytest.mark.parametrize("name", ["llama", "llama-tied"])
def test_weights_stay_in_the_checkpoint_until_they_are_written(name: str, tmp_path: Path) -> None:
    """A bfloat16 checkpoint; every weight of the graph is one of its tensors, as float32."""
    from safetensors.torch import load_file

    folder = tiny_decoder(tmp_path, name, torch.bfloat16)
    made = skeleton(student_of(folder), "sdpa", "batched_mm")
    assert set(made.stored) == {n for n, _ in made.model.named_parameters(remove_duplicate=False)}
    stored = load_file(folder / "model.safetensors")
    graph = ir.load(capture(student_of(folder), tmp_path, opset=21).path).graph
    head = graph.initializers["model.lm_head.weight.transposed"]
    source = "lm_head.weight" if name == "llama" else "model.embed_tokens.weight"
    assert head.const_value is not None
    np.testing.assert_array_equal(head.const_value.numpy(), stored[source].float().numpy().T)
    lowered = lower(Graph(path=tmp_path / "captured.onnx", stage="captured"), tmp_path)
    assert largest_difference(tmp_path, lowered.path) <= TOLERANCE


def test_a_text_beyond_the_original_context_of_longrope_is_refused(tmp_path: Path) -> None:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
        "original_max_position_embeddings": 48,
    }
    VARIANTS["longrope"] = ("phi3", {"rope_parameters": rope, "original_max_position_embeddings": 48})
    try:
        folder = tiny_decoder(tmp_path, "longrope")
    finally:
        del VARIANTS["longrope"]
    with pytest.raises(StudentError, match="longrope"):
        capture(student_of(folder), tmp_path, opset=21)
    student = load_student(StudentRecipe(source=str(folder), max_length_tokens=48))
    lowered = lower(capture(student, tmp_path, opset=21), tmp_path)
    assert largest_difference(tmp_path, lowered.path) <= TOLERANCE


def test_generation_settings_come_from_the_checkpoint(tmp_path: Path) -> None:
    graph = captured(tmp_path, "qwen2")
    said = {"eos_token_id": [2, 7], "temperature": 0.6, "top_p": 0.95, "do_sample": True, "bos_token_id": 1}
    (tmp_path / "generation_config.json").write_text(json.dumps(said))
    tokenizer = json.loads((tmp_path / "tokenizer_config.json").read_text())
    tokenizer |= {"chat_template": [{"name": "default", "template": "{{ messages }}"}], "model_max_length": 50}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    for index, tag in enumerate(("<think>", "</think>")):
        vocabulary["added_tokens"].append(vocabulary["added_tokens"][0] | {"id": 120 + index, "content": tag})
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    student = student_of(tmp_path)
    assert chat_template(student) == "{{ messages }}"
    settings = generation_settings(student, graph, tmp_path / "tokenizer.json")
    # The model's own positions count: tokenizers carry limits of the models that they were made for.
    assert (settings.context_length_tokens, settings.layers, settings.kv_heads, settings.head_size) == (96, 2, 2, 16)
    assert (settings.vocab_size, settings.bos_token_id, settings.eos_token_ids) == (128, 1, (2, 7))
    assert (settings.temperature, settings.top_p, settings.top_k, settings.do_sample) == (0.6, 0.95, 0, True)
    assert (settings.think_start, settings.think_end) == ("<think>", "</think>")
    assert settings.chat_template == "chat_template.jinja"


def test_the_table_lists_enough_architectures() -> None:
    supported = [a for a in DECODERS.values() if a.refused is None]
    assert len(supported) >= 20
