"""Lowered MultiHeadAttention, compared with plain attention in float64."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.errors import RecipeError
from edgecompress.lower.microsoft import lower_model


def attention_graph(
    heads: int, head_size: int, *, mask: bool, window: int | None, kv_heads: int | None = None
) -> ir.Model:
    """q, k, v [B, H, T, D] go directly into the op, so that heads must be merged for it."""
    kv = kv_heads or heads
    attributes = f"scale = {head_size**-0.5}, num_heads = {heads}, head_size = {head_size}"
    if window is not None:
        attributes += f", window = {window}"
    mask_input, operand = (", int64[b,t] mask", ", keep") if mask else ("", "")
    cast = "keep = Cast<to = 9>(mask)" if mask else ""
    return ir.from_onnx_text(
        f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[b,{heads},t,{head_size}] q, float[b,{kv},t,{head_size}] k, float[b,{kv},t,{head_size}] v{mask_input})
        => (float[b,t,{heads},{head_size}] y)
        {{ {cast}
           y = edgecompress.Attention <{attributes}> (q, k, v{operand}) }}
        """
    )


def reference(q: np.ndarray, k: np.ndarray, v: np.ndarray, mask: np.ndarray | None, window: int | None) -> np.ndarray:
    """float64 [B, T, H, D]"""
    tokens = q.shape[2]
    scores = q.astype(np.float64) @ k.astype(np.float64).swapaxes(2, 3) * q.shape[3] ** -0.5
    if window is not None:
        position = np.arange(tokens)
        scores[..., np.abs(position[:, None] - position) > window] = -np.inf
    if mask is not None:
        scores = np.where(mask[:, None, None, :] > 0, scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2)


def check_against_float64(
    lower: Callable[[ir.Model], ir.Model],
    shape: tuple[int, int, int, int],
    mask: str | None,
    window: int | None,
    rng: np.random.Generator,
) -> None:
    """Lower an attention of that shape [B, H, T, D], run it, and compare; ``mask`` is None, "full" or "padded"."""
    batch, heads, tokens, head_size = shape
    model = attention_graph(heads, head_size, mask=mask is not None, window=window)
    for index, node in enumerate(model.graph):
        node.name = f"{node.op_type}_{index}"
    q, k, v = (rng.normal(size=shape).astype(np.float32) * 3 for _ in range(3))
    feeds = {"q": q, "k": k, "v": v}
    keep = None
    if mask is not None:
        keep = np.ones((batch, tokens), dtype=np.int64)
        if mask == "padded":
            keep[-1, max(1, tokens - 3) :] = 0
        feeds["mask"] = keep
    session = ort.InferenceSession(ir.to_proto(lower(model)).SerializeToString(), providers=["CPUExecutionProvider"])
    got = session.run(None, feeds)[0]
    np.testing.assert_allclose(got, reference(q, k, v, keep, window), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("window", [None, 5])
@pytest.mark.parametrize("mask", [None, "full", "padded"])
@pytest.mark.parametrize("shape", [(1, 4, 1, 8), (2, 3, 63, 20), (1, 2, 129, 64)])
def test_lowered_attention_matches_float64(
    shape: tuple[int, int, int, int], mask: str | None, window: int | None, rng: np.random.Generator
) -> None:
    check_against_float64(lower_model, shape, mask, window, rng)


def test_a_mask_becomes_a_choice_between_two_kernels() -> None:
    model = lower_model(attention_graph(2, 8, mask=True, window=None))
    choices = [node for node in model.graph if node.op_type == "If"]
    assert len(choices) == 1
    then, other = (choices[0].attributes[name].as_graph()[0] for name in ("then_branch", "else_branch"))
    assert len(then.inputs) == 3
    assert len(other.inputs) == 5


def test_grouped_heads_are_refused() -> None:
    with pytest.raises(RecipeError, match="different numbers of heads"):
        lower_model(attention_graph(4, 8, mask=False, window=None, kv_heads=2))
