"""The real student as it goes to TensorRT: how near it stays to PyTorch, and where its Q and DQ stand."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest

from edgecompress.backends.engine_layers import most_bytes, quantized_products
from tests.engines.typed import fidelity, typed

LAYERS = 6
LINEARS = 6 * LAYERS


@pytest.fixture(scope="module")
def int8(minilm_typed: Path) -> ir.Model:
    return ir.load(typed(minilm_typed, "int8-static").path)


@pytest.mark.parametrize("precision", ["fp16", "int8-static", "fp8"])
def test_fidelity_to_the_float_student(minilm_typed: Path, tmp_path: Path, precision: str) -> None:
    found = fidelity(minilm_typed, precision, tmp_path)
    assert found.mean_cosine is not None
    assert found.mean_cosine >= 0.99


def test_int4_loses_more_and_is_measured(minilm_typed: Path, tmp_path: Path) -> None:
    found = fidelity(minilm_typed, "int4-weights", tmp_path)
    assert found.mean_cosine is not None
    assert 0.97 <= found.mean_cosine < 0.999


def test_every_product_of_a_layer_is_int8_and_attention_is_one_op(int8: ir.Model) -> None:
    products = quantized_products(int8)
    assert len(products) == LINEARS
    assert {(product.weight, product.integer) for product in products} == {("Int8", True)}
    assert sum(node.op_type == "Attention" for node in int8.graph) == LAYERS
    assert {node.domain for node in int8.graph.all_nodes()} == {""}


def test_both_sides_of_every_residual_addition_and_nothing_around_norms_or_softmax(int8: ir.Model) -> None:
    norms = [node for node in int8.graph if node.op_type == "LayerNormalization"]
    assert len(norms) == 2 * LAYERS + 1
    residuals = 0
    for norm in norms:
        before = norm.inputs[0].producer() if norm.inputs[0] is not None else None
        if before is not None and before.op_type == "Cast":
            before = before.inputs[0].producer()  # type: ignore[union-attr]
        assert before is not None
        assert before.op_type == "Add", "a norm reads the sum as it is"
        residuals += all(_is_rounded(value) for value in before.inputs)
    assert residuals == 2 * LAYERS, "all but the norm of the embeddings"
    for node in int8.graph:
        if node.op_type == "Attention":
            assert not any(_is_rounded(value) for value in node.inputs)


def _is_rounded(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    if node is not None and node.op_type == "Mul":  # a factor a channel behind a balanced or smoothed side
        node = node.inputs[0].producer()  # type: ignore[union-attr]
    return node is not None and node.op_type == "DequantizeLinear"


def test_fewer_bits_are_stored(minilm_typed: Path) -> None:
    stored = {p: most_bytes(ir.load(typed(minilm_typed, p).path))[0] for p in ("fp16", "int8-static", "int4-weights")}
    assert stored["int8-static"] <= 0.51 * stored["fp16"]
    assert stored["int4-weights"] <= 0.8 * stored["int8-static"]  # the table of words is int8 in both
