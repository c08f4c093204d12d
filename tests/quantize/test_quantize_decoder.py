"""Decoder weights in a graph: the head and the table, tied or not, and the float weights."""

from __future__ import annotations

import gc
import weakref

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_embeddings, find_linears
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.head_and_tables import QuantizedWeights, find_head, quantize_every_weight
from edgecompress.quantize.hessians import StreamedHessians
from edgecompress.quantize.weights import block_that_divides, quantize_weights, tied_to
from edgecompress.types.recipe import QuantizeRecipe
from tests.graphs import graph_with_weights
from tests.quantize.test_quantize_graph import run

V, H, F = 1200, 64, 96


def decoder(rng: np.random.Generator, *, tied: bool = False, capped: bool = False) -> ir.Model:
    """ids -> table -> a layer of two linears with a residual -> logits, soft-capped if asked."""
    table = rng.normal(size=(V, H)).astype(np.float32)
    head = np.ascontiguousarray(table.T) if tied else rng.normal(size=(H, V)).astype(np.float32)
    end = "t = Tanh(l)  logits = Mul(t, cap)" if capped else "logits = Identity(l)"
    return graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (int64[b,t] ids, float[{V},{H}] table, float[{H},{F}] up, float[{F}] up_bias, float[{F},{H}] down,
           float[{H},{V}] head, float cap) => (float[b,t,{V}] logits)
        {{ x = Gather<axis=0>(table, ids)  m = MatMul(x, up)  a = Add(m, up_bias)  r = Relu(a)
           d = MatMul(r, down)  h = Add(x, d)  l = MatMul(h, head)  {end} }}
        """,
        {
            "table": table,
            "up": rng.normal(size=(H, F)).astype(np.float32),
            "up_bias": rng.normal(size=F).astype(np.float32),
            "down": (rng.normal(size=(F, H)) / 10).astype(np.float32),
            "head": head,
            "cap": np.array(30.0, dtype=np.float32),
        },
    )


def by_hand(arrays: dict[str, np.ndarray], ids: np.ndarray) -> np.ndarray:
    x = arrays["table"][ids]
    hidden = x + np.maximum(x @ arrays["up"] + arrays["up_bias"], 0) @ arrays["down"]
    return hidden @ arrays["head"]


def arrays_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items() if v.const_value is not None}


def rounded(weight: np.ndarray, bits: int, block: int, symmetric: bool) -> np.ndarray:
    return quantize_blocks(weight, BlockFormat(bits=bits, block_size=block, symmetric=symmetric)).dequantize()


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 8])
def test_the_graph_computes_with_the_rounded_weights(
    rng: np.random.Generator, bits: int, symmetric: bool, tied: bool
) -> None:
    model = decoder(rng, tied=tied)
    floats = arrays_of(model)
    recipe = QuantizeRecipe(method="rtn", symmetric=symmetric, accuracy_level=0, block_size=64)
    assert quantize_every_weight(model, find_linears(model), recipe, bits=bits) == QuantizedWeights(
        layers=3, head="MatMul_6", tables=1, tied=tied
    )
    assert not set(floats) & set(arrays_of(model)) - {"up_bias", "cap"}
    expected = floats | {name: rounded(floats[name], bits, 64, symmetric) for name in ("up", "down", "head")}
    expected["table"] = rounded(floats["table"].T, bits, 64, symmetric).T
    ids = rng.integers(0, V, (2, 7))
    want = by_hand(expected, ids)
    np.testing.assert_allclose(run(model, ids=ids)[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def stored_bytes(model: ir.Model) -> int:
    return sum(array.nbytes for array in arrays_of(model).values())


def test_a_tied_head_and_table_are_stored_once(rng: np.random.Generator) -> None:
    recipe = QuantizeRecipe(method="rtn", block_size=64)
    sizes = {}
    for tied in (True, False):
        model = decoder(rng, tied=tied)
        quantize_every_weight(model, find_linears(model), recipe, bits=8)
        lowered = lower_model(model)
        kinds = [node.op_type for node in lowered.graph]
        assert kinds.count("GatherBlockQuantized") == 1
        assert kinds.count("MatMulNBits") == 3
        sizes[tied] = stored_bytes(lowered)
    # The packed table is shared; its scales are there twice, in the two shapes that the two ops want.
    assert sizes[False] - sizes[True] == V * H


def test_head_and_table_may_have_their_own_bits(rng: np.random.Generator) -> None:
    model = decoder(rng, tied=True)
    made = quantize_every_weight(
        model, find_linears(model), QuantizeRecipe(method="rtn", head_bits=8, block_size=32), bits=4
    )
    assert not made.tied
    bits = {node.name: node.attributes["bits"].as_int() for node in model.graph if "bits" in node.attributes}
    assert sorted(bits.values()) == [4, 4, 4, 8]
    assert next(b for name, b in bits.items() if name.startswith("MatMul_6")) == 8


def test_a_head_behind_soft_capping_is_found(rng: np.random.Generator) -> None:
    model = decoder(rng, capped=True)
    head = find_head(model, find_linears(model))
    assert head is not None
    assert head.weight.name == "head"


def test_a_last_layer_before_an_activation_is_not_a_head(rng: np.random.Generator) -> None:
    model = decoder(rng)
    relu = next(node for node in model.graph if node.op_type == "Relu")
    model.graph.outputs[:] = [relu.outputs[0]]
    assert find_head(model, find_linears(model)) is None


def test_only_equal_weights_are_tied(rng: np.random.Generator) -> None:
    model = decoder(rng, tied=True)
    (table,), head = find_embeddings(model), find_linears(model)[-1]
    assert tied_to(table, head)
    weight = head.weight.const_value.numpy().copy()  # type: ignore[union-attr]
    weight[-1, -1] += 1e-6
    head.weight.const_value = ir.tensor(weight)
    assert not tied_to(table, head)
    assert not tied_to(table, find_linears(model)[0])


@pytest.mark.parametrize(("width", "asked", "block"), [(1536, 128, 128), (192, 128, 64), (96, 256, 32), (40, 32, 8)])
def test_a_table_s_block_divides_its_rows(width: int, asked: int, block: int) -> None:
    assert block_that_divides(width, asked) == block


def test_float_weights_are_read_once_and_freed_one_by_one(rng: np.random.Generator) -> None:
    model = decoder(rng)
    reads: list[str] = []
    alive: list[weakref.ref[np.ndarray]] = []

    def lazily(name: str, array: np.ndarray) -> ir.LazyTensor:
        def read() -> ir.Tensor:
            assert not any(ref() is not None for ref in alive), "the weight before is still held"
            copy = array.copy()
            reads.append(name)
            alive.append(weakref.ref(copy))
            return ir.tensor(copy, name=name)

        return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(array.shape), name=name)

    for name in ("up", "down", "head"):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = lazily(name, value.const_value.numpy())
    linears = find_linears(model)
    assert quantize_weights(model, linears, bits=4, block_size=32, method="hqq") == 3
    assert reads == ["up", "down", "head"]
    assert not {"up", "down", "head"} & set(model.graph.initializers)
    assert all(linear.weight.const_value is None for linear in linears)
    gc.collect()
    assert not any(ref() is not None for ref in alive)


def test_a_weight_that_two_layers_read_stays_until_the_second(rng: np.random.Generator) -> None:
    weight = rng.normal(size=(H, H)).astype(np.float32)
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        g (float[b,t,{H}] x, float[{H},{H}] w) => (float[b,t,{H}] y) {{ m = MatMul(x, w)  y = MatMul(m, w) }}
        """,
        {"w": weight},
    )
    first, second = find_linears(model)
    quantize_weights(model, [first], bits=8, block_size=32, accuracy_level=0)
    assert "w" in model.graph.initializers
    quantize_weights(model, [second], bits=8, block_size=32, accuracy_level=0)
    assert "w" not in model.graph.initializers
    x = rng.normal(size=(1, 3, H)).astype(np.float32)
    back = rounded(weight, 8, 32, True)
    np.testing.assert_allclose(run(model, x=x)[0], x @ back @ back, rtol=1e-3, atol=1e-3)


def test_gptq_beats_rounding_on_the_graph_s_own_inputs(rng: np.random.Generator) -> None:
    seed = int(rng.integers(1 << 30))
    ids, unseen = rng.integers(0, V, (2, 4, 100))
    errors = {}
    for method in ("rtn", "gptq"):
        model = decoder(np.random.default_rng(seed))
        exact = run(model, ids=unseen)[0]
        tensors = {linear.x.name or "": linear.width for linear in find_linears(model)}
        hessians = StreamedHessians(lower_model(model.clone()), tensors, lambda: [{"ids": ids}])
        recipe = QuantizeRecipe(method=method, block_size=32, accuracy_level=0, quantize_embeddings=False)
        quantize_every_weight(model, find_linears(model), recipe, bits=4, hessians=hessians)
        errors[method] = np.linalg.norm(run(model, ids=unseen)[0] - exact)
    assert errors["gptq"] < 0.97 * errors["rtn"]
