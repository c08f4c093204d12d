"""Lowered GroupQueryAttention with an int8 cache, compared with NumPy on the same integers in float64."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from edgecompress.errors import RecipeError
from edgecompress.lower.kv_cache import quantize_cache
from edgecompress.lower.microsoft import lower_model
from tests.graphs import graph_with_weights
from tests.lower.test_cached_attention import CAPACITY, HIDDEN, decoder_graph, shaped, weights_for

POISON = 99
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"
PRESENT = {KEY: "present.0.key", VALUE: "present.0.value"}
Arrays = dict[str, np.ndarray]


def lowered(text: str, weights: Arrays) -> ir.Model:
    """The graph with the documented names of the cache."""
    model = lower_model(shaped(graph_with_weights(text, weights)))
    names = {"past_key": KEY, "past_value": VALUE, "key": PRESENT[KEY], "value": PRESENT[VALUE]}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name or "", value.name)
    return model


def keys_and_values(x: np.ndarray, weights: Arrays, kv_heads: int, size: int) -> Arrays:
    """x [B, T, 24] -> keys and values before rounding, float32 [B, Hk, T, D] each."""
    made = {KEY: x @ weights["wk"] + weights.get("bk", np.float32(0)), VALUE: x @ weights["wv"]}
    return {name: a.reshape(*x.shape[:2], kv_heads, size).transpose(0, 2, 1, 3) for name, a in made.items()}


def attention(
    x: np.ndarray,
    weights: Arrays,
    cache: Arrays,
    scales: Arrays,
    heads: int,
    start: int,
    window: int | None = None,
    softcap: float | None = None,
) -> np.ndarray:
    """Queries x [T, 24] from position ``start`` on, over the integers of the cache, [Hk, S, D] each; float64."""
    tokens, (kv_heads, seen, size) = len(x), cache[KEY].shape
    q = (x.astype(np.float64) @ weights["wq"].astype(np.float64)).reshape(tokens, heads, size)
    k, v = (
        (cache[name].astype(np.float64) * scales[name][:, None]).repeat(heads // kv_heads, axis=0)
        for name in (KEY, VALUE)
    )
    scores = np.einsum("ihd,hjd->hij", q, k) * 0.3
    if softcap is not None:
        scores = softcap * np.tanh(scores / softcap)
    distance = np.arange(start, start + tokens)[:, None] - np.arange(seen)[None]
    scores[:, (distance < 0) | (distance > window if window is not None else False)] = -np.inf
    largest = scores.max(-1, keepdims=True)
    powers = np.exp(scores - largest)
    total = powers.sum(-1, keepdims=True)
    if "sinks" in weights:
        total = total + np.exp(weights["sinks"][:, None, None] - largest)
    return np.einsum("hij,hjd->ihd", powers / total, v).reshape(tokens, heads * size)


def run(session: ort.InferenceSession, x: np.ndarray, mask: np.ndarray, cache: Arrays) -> np.ndarray:
    """Run with ``cache`` as past and present; return y."""
    binding = session.io_binding()
    binding.bind_cpu_input("x", np.ascontiguousarray(x))
    binding.bind_cpu_input("mask", mask)
    for name, buffer in cache.items():
        binding.bind_input(name, "cpu", 0, np.int8, buffer.shape, buffer.ctypes.data)
        binding.bind_output(PRESENT[name], "cpu", 0, np.int8, buffer.shape, buffer.ctypes.data)
    binding.bind_output("y")
    session.run_with_iobinding(binding)
    y: np.ndarray = binding.copy_outputs_to_cpu()[-1]
    return y


def rounded(x: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Quantize float32 [B, Hk, T, D] with scales [Hk, D], as the cache stores it."""
    return np.clip(np.rint(x * (np.float32(1) / scale)[:, None]), -128, 127)


def require_rounded(found: np.ndarray, expected: np.ndarray) -> None:
    """Equal integers, except where a value near .5 rounds differently because of the order of float32 sums."""
    difference = np.abs(found.astype(int) - expected)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.99


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
@pytest.mark.parametrize("clipped", [False, True])
def test_an_int8_cache_matches_numpy(
    heads: int, kv_heads: int, size: int, options: dict[str, float], clipped: bool, rng: np.random.Generator
) -> None:
    """A prefill of 13 tokens, then 6, then one; then two rows of unequal length decode together."""
    numbers = {name: options[name] for name in ("window", "softcap") if name in options}
    extra = "".join(f", {name} = {value}" for name, value in numbers.items())
    flags = {name: bool(options.get(name)) for name in ("sinks", "bias")}
    text = decoder_graph(heads, kv_heads, size, extra, **flags)
    weights = weights_for(text, rng)
    weights["wk"] *= np.exp(rng.normal(size=kv_heads * size)).astype(np.float32)  # channels of very unequal size
    x = rng.normal(size=(2, 20, HIDDEN)).astype(np.float32)
    exact = keys_and_values(x, weights, kv_heads, size)
    share = 0.5 if clipped else 1.0
    scales = {name: (np.abs(a).max(axis=(0, 2)) * share / 127).astype(np.float32) for name, a in exact.items()}
    model = lowered(text, weights)
    quantize_cache(model, scales)
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    cache = {name: np.full((2, kv_heads, CAPACITY, size), POISON, dtype=np.int8) for name in (KEY, VALUE)}
    window = int(options["window"]) if "window" in options else None

    def compare(row: int, start: int, y: np.ndarray) -> None:
        end = start + len(y)
        held = {name: buffer[row, :, :end] for name, buffer in cache.items()}
        expected = attention(x[row, start:end], weights, held, scales, heads, start, window, options.get("softcap"))
        np.testing.assert_allclose(y, expected, rtol=1e-4, atol=2e-5)

    lengths = (19, 7)
    for row, chunks in enumerate([(13, 6), (7,)]):
        start = 0
        for tokens in chunks:
            part = {name: buffer[row : row + 1] for name, buffer in cache.items()}
            y = run(session, x[row : row + 1, start : start + tokens], np.ones((1, start + tokens), np.int64), part)
            compare(row, start, y[0])
            start += tokens
    mask = (np.arange(20)[None] < np.array(lengths)[:, None] + 1).astype(np.int64)
    y = run(session, np.stack([x[row, n : n + 1] for row, n in enumerate(lengths)]), mask, cache)
    for row, length in enumerate(lengths):
        compare(row, length, y[row])
        for name, buffer in cache.items():
            require_rounded(buffer[row, :, : length + 1], rounded(exact[name], scales[name])[row, :, : length + 1])
            assert (buffer[row, :, length + 1 :] == POISON).all()


def test_another_reader_of_the_cache_is_refused(rng: np.random.Generator) -> None:
    text = decoder_graph(4, 2, 8)
    model = lowered(text, weights_for(text, rng))
    past = next(value for value in model.graph.inputs if value.name == KEY)
    model.graph.append(ir.node("Abs", [past], name="spy"))
    before = [value.dtype for value in model.graph.inputs]
    scales = {name: np.ones((2, 8), dtype=np.float32) for name in (KEY, VALUE)}
    with pytest.raises(RecipeError, match=r"'past_key_values.0.key' is read by Abs 'spy'") as error:
        quantize_cache(model, scales)
    assert error.value.hint == "Use --kv-cache fp32."
    assert [value.dtype for value in model.graph.inputs] == before


def test_another_writer_of_the_cache_is_refused(rng: np.random.Generator) -> None:
    text = decoder_graph(4, 2, 8)
    model = lowered(text, weights_for(text, rng))
    present = next(value for value in model.graph.outputs if value.name == PRESENT[VALUE])
    copied = ir.node("Identity", [present], name="copy")
    model.graph.append(copied)
    present.name, copied.outputs[0].name = "inner", PRESENT[VALUE]
    model.graph.outputs[list(model.graph.outputs).index(present)] = copied.outputs[0]
    with pytest.raises(RecipeError, match=r"'present.0.value' is made by Identity 'copy'"):
        quantize_cache(model, {name: np.ones((2, 8), dtype=np.float32) for name in (KEY, VALUE)})


def test_a_graph_without_a_cache_is_refused() -> None:
    model = ir.from_onnx_text('<ir_version: 10, opset_import: ["" : 21]> g (float[n] x) => (float[n] y) { y = Abs(x) }')
    with pytest.raises(RecipeError, match="no KV cache"):
        quantize_cache(model, {})
