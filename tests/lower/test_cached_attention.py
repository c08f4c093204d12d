"""Lowered GroupQueryAttention with packed projections, compared with plain attention in float64."""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx_ir.passes.common import ShapeInferencePass

from edgecompress.errors import RecipeError
from edgecompress.graph.packing import pack_linears
from edgecompress.lower.microsoft import lower_model
from tests.graphs import graph_with_weights

HIDDEN, CAPACITY = 24, 40


def decoder_graph(
    heads: int, kv_heads: int, size: int, extra: str = "", *, sinks: bool = False, bias: bool = False, width: int = 0
) -> str:
    """x [B, T, 24] through q, k and v projections into the op; ``width`` is the values' width, if it differs."""
    width = width or size

    def projection(name: str, count: int, last: int) -> str:
        out = f"{name}_raw" if name == "k" and bias else f"{name}_rows"
        steps = f"{out} = MatMul(x, w{name})\n"
        if out == "k_raw":
            steps += "k_rows = Add(k_raw, bk)\n"
        steps += f"{name}_shape = Constant<value_ints = [0, 0, {count}, {last}]>()\n"
        steps += f"{name}_heads = Reshape({name}_rows, {name}_shape)\n"
        return steps + f"{name} = Transpose<perm = [0, 2, 1, 3]>({name}_heads)\n"

    weights = f"float[{HIDDEN},{heads * size}] wq, float[{HIDDEN},{kv_heads * size}] wk"
    weights += f", float[{HIDDEN},{kv_heads * width}] wv"
    weights += f", float[{heads}] sinks" if sinks else ""
    weights += f", float[{kv_heads * size}] bk" if bias else ""
    return f"""
        <ir_version: 10, opset_import: ["" : 21, "edgecompress" : 1]>
        g (float[b,t,{HIDDEN}] x, int64[b,s] mask, float[b,{kv_heads},c,{size}] past_key,
           float[b,{kv_heads},c,{width}] past_value, {weights})
        => (float[b,t,{heads * size}] y, float[b,{kv_heads},c,{size}] key, float[b,{kv_heads},c,{width}] value)
        {{ {projection("q", heads, size)} {projection("k", kv_heads, size)} {projection("v", kv_heads, width)}
           out, key, value = edgecompress.CachedAttention
             <scale = 0.3, num_heads = {heads}, kv_num_heads = {kv_heads}, head_size = {size} {extra}>
             (q, k, v, past_key, past_value, mask {", sinks" if sinks else ""})
           merged = Constant<value_ints = [0, 0, {heads * width}]>()
           y = Reshape(out, merged) }}
        """


def weights_for(text: str, rng: np.random.Generator) -> dict[str, np.ndarray]:
    found = re.findall(r"float\[(\d+)(?:,(\d+))?\] (w[qkv]|sinks|bk)", text)
    return {name: rng.normal(size=[int(n) for n in (a, b) if n]).astype(np.float32) * 0.4 for a, b, name in found}


def shaped(model: ir.Model) -> ir.Model:
    """Shapes as the exporter gives them."""
    for node in model.graph:
        if node.op_type == "CachedAttention":
            heads, size = (node.attributes[n].as_int() for n in ("num_heads", "head_size"))
            node.outputs[0].shape = ir.Shape(["b", "t", heads, size])
            node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    for node in list(model.graph):
        if node.op_type == "Constant":
            value = node.outputs[0]
            value.const_value = ir.tensor(np.array(node.attributes["value_ints"].as_ints()), name=value.name)
    ShapeInferencePass()(model)
    return model


def reference(
    x: np.ndarray,
    weights: dict[str, np.ndarray],
    heads: int,
    kv_heads: int,
    size: int,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    """One row x [T, 24] -> [T, heads * size], in float64, causal."""
    tokens = x.shape[0]
    w = {name: array.astype(np.float64) for name, array in weights.items()}
    q = (x @ w["wq"]).reshape(tokens, heads, size)
    k = (x @ w["wk"] + w.get("bk", 0)).reshape(tokens, kv_heads, size).repeat(heads // kv_heads, 1)
    v = (x @ w["wv"]).reshape(tokens, kv_heads, size).repeat(heads // kv_heads, 1)
    scores = np.einsum("ihd,jhd->hij", q, k) * 0.3
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(tokens)[:, None] - np.arange(tokens)[None]
    hidden = (distance < 0) | (distance > window if window is not None else False)
    scores[:, hidden] = -np.inf
    powers = np.exp(scores - scores.max(-1, keepdims=True))
    total = powers.sum(-1, keepdims=True)
    if "sinks" in w:
        total = total + np.exp(w["sinks"][:, None, None] - scores.max(-1, keepdims=True))
    return np.einsum("hij,jhd->ihd", powers / total, v).reshape(tokens, heads * size)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "size", "options"),
    [
        (4, 2, 8, {}),
        (6, 1, 16, {"bias": True}),
        (3, 3, 64, {"window": 5}),
        (4, 4, 24, {"softcap": 1.5}),
        (8, 2, 16, {"sinks": True, "window": 3}),
    ],
)
def test_lowered_attention_matches_float64(
    heads: int, kv_heads: int, size: int, options: dict[str, float], rng: np.random.Generator
) -> None:
    """A prefill of 13 tokens, then 6 more, then one; the cache is one buffer, NaN where unwritten."""
    numbers = {name: options[name] for name in ("window", "softcap") if name in options}
    extra = "".join(f", {name} = {value}" for name, value in numbers.items())
    flags = {name: bool(options.get(name)) for name in ("sinks", "bias")}
    text = decoder_graph(heads, kv_heads, size, extra, **flags)
    weights = weights_for(text, rng)
    model = lower_model(shaped(graph_with_weights(text, weights)))
    (attention,) = [node for node in model.graph if node.op_type == "GroupQueryAttention"]
    assert attention.inputs[1] is None
    assert attention.inputs[2] is None
    assert sum(node.op_type == "MatMul" for node in model.graph) == 1
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    x = rng.normal(size=(20, HIDDEN)).astype(np.float32)
    cache = [np.full((1, kv_heads, CAPACITY, size), np.nan, dtype=np.float32) for _ in range(2)]
    got, start = [], 0
    for tokens in (13, 6, 1):
        binding = session.io_binding()
        binding.bind_cpu_input("x", np.ascontiguousarray(x[None, start : start + tokens]))
        binding.bind_cpu_input("mask", np.ones((1, start + tokens), dtype=np.int64))
        for past, present, buffer in zip(("past_key", "past_value"), ("key", "value"), cache, strict=True):
            binding.bind_input(past, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
            binding.bind_output(present, "cpu", 0, np.float32, buffer.shape, buffer.ctypes.data)
        binding.bind_output("y")
        session.run_with_iobinding(binding)
        got.append(binding.copy_outputs_to_cpu()[-1][0])
        start += tokens
    window = int(options["window"]) if "window" in options else None
    expected = reference(x, weights, heads, kv_heads, size, window, options.get("softcap"))
    np.testing.assert_allclose(np.concatenate(got), expected, rtol=1e-4, atol=2e-5)
    assert np.isnan(cache[0][:, :, 20:]).all()


def test_unsupported_shapes_are_refused(rng: np.random.Generator) -> None:
    for graph, message in (
        (decoder_graph(4, 2, 12), "12 wide"),
        (decoder_graph(4, 2, 16, width=8), "its values are 8 wide and its queries 16"),
    ):
        with pytest.raises(RecipeError, match=message):
            lower_model(shaped(graph_with_weights(graph, weights_for(graph, rng))))


def test_packing_reads_no_weight(rng: np.random.Generator) -> None:
    text = decoder_graph(4, 2, 8, bias=True)
    weights = weights_for(text, rng)
    model = shaped(graph_with_weights(text, weights))
    reads = []

    def lazy(name: str) -> ir.LazyTensor:
        def read() -> ir.TensorProtocol:
            reads.append(name)
            return ir.tensor(weights[name], name=name)

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(weights[name].shape), name=name)

    for name in ("wq", "wk", "wv"):
        model.graph.initializers[name].const_value = lazy(name)
    (made,) = pack_linears(model)
    assert made.endswith("qkv_proj")
    assert reads == []
    assert not {"wq", "wk", "wv"} & set(model.graph.initializers)
    packed = model.graph.initializers[f"{made}.weight"].const_value
    assert packed is not None
    np.testing.assert_array_equal(packed.numpy(), np.concatenate([weights["wq"], weights["wk"], weights["wv"]], axis=1))
    assert reads == ["wq", "wk", "wv"]
    bias = model.graph.initializers[f"{made}.bias"].const_value
    assert bias is not None
    np.testing.assert_array_equal(bias.numpy(), np.concatenate([np.zeros(32), weights["bk"], np.zeros(16)]))


def test_only_siblings_of_one_shape_are_packed(rng: np.random.Generator) -> None:
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[t,8] x, float[8,6] gate, float[8,6] up, float[8,3] router) => (float[t,6] y, float[t,3] z)
        { a = MatMul(x, gate)
          z = MatMul(x, router)
          b = MatMul(x, up)
          y = Mul(a, b) }
    """
    shapes = {"gate": (8, 6), "up": (8, 6), "router": (8, 3)}
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    model = graph_with_weights(text, weights)
    assert len(pack_linears(model)) == 1
    assert [node.op_type for node in model.graph] == ["MatMul", "Split", "MatMul", "Mul"]
    x = rng.normal(size=(5, 8)).astype(np.float32)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    y, z = session.run(None, {"x": x})
    np.testing.assert_allclose(y, (x @ weights["gate"]) * (x @ weights["up"]), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(z, x @ weights["router"], rtol=1e-4, atol=1e-5)
