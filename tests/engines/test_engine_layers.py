"""What the builder says of an engine is read right, and an engine that kept a weight wide is not taken for int8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.backends.engine_layers import most_bytes, quantized_products, read_layers, require_claimed
from edgecompress.errors import EngineError
from edgecompress.lower.standard import OPSET
from tests.graphs import graph_with_weights

K = 128


def tensor(dims: str, dtype: str) -> str:
    return f"{{ Name: t, Dimensions: [{dims}], Strides: [1], StrideOrder: [0], Datatype: {dtype}, Format: (Linear) }}"


def account(x: str, weight: str, kind: str = "gemm") -> str:
    """As TensorRT-RTX writes it: a rounding, and a product whose scale stands beside its weight."""
    return (
        "Name: __mye279_0_myl0_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , "
        "StreamId: 0, Metadata: \n"
        f"Name: __myl_MulMinMax_myl0_1, LayerType: kgen, Inputs: [ {tensor('-1,-1,128', 'Half')}], "
        f"Constants: [ {tensor('1', 'Half')}], Outputs: [ {tensor('-1,-1,128', x)}], TacticName: t, StreamId: 0, "
        "Metadata: [ONNX Layer: x/QuantizeLinear]\n"
        f"Name: MatMul_2_myl0_2, LayerType: {kind}, Inputs: [ {tensor('-1,128', x)}], Constants: [ "
        f"{tensor('128,128', weight)}, {tensor('1,128', 'Half')}], Outputs: [ {tensor('-1,128', 'Half')}], "
        "TacticName: t, StreamId: 0, Metadata: [ONNX Layer: MatMul_2][ONNX Layer: x/DequantizeLinear]\n"
        "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Half, Dimensions: [-1,-1,128], Location: Device\n"
    )


def int8_graph() -> ir.Model:
    model = graph_with_weights(
        f"""
        <ir_version: 10, opset_import: ["" : {OPSET}]>
        g (float16[b,t,{K}] x, float16 s, int8 z, int8[{K},{K}] w, float16[{K}] ws) => (float16[b,t,{K}] y)
        {{ q = QuantizeLinear(x, s, z)  d = DequantizeLinear(q, s, z)
           wd = DequantizeLinear <axis = 1> (w, ws)  y = MatMul(d, wd) }}
        """,
        {
            "s": np.array(0.1, dtype=np.float16),
            "z": np.array(0, dtype=np.int8),
            "w": np.ones((K, K), dtype=np.int8),
            "ws": np.ones(K, dtype=np.float16),
        },
    )
    for node in model.graph:
        if node.op_type == "MatMul":
            node.name = "MatMul_2"
    return model


def test_layers_are_read_with_their_types_and_sources() -> None:
    layers = read_layers(account("Int8", "Int8"))
    assert [layer.kind for layer in layers] == ["shape_call", "kgen", "gemm"]
    product = layers[2]
    assert [(t.dims, t.dtype) for t in product.inputs] == [((-1, 128), "Int8")]
    assert [t.is_matrix for t in product.constants] == [True, False]
    assert product.sources == ("MatMul_2", "x/DequantizeLinear")


def test_an_engine_of_int8_is_taken() -> None:
    model = int8_graph()
    stored, _ = most_bytes(model)
    assert stored == K * K + 2 * K + 3
    assert require_claimed(model, read_layers(account("Int8", "Int8")), stored, "int8-static") == {"Int8": 1}


@pytest.mark.parametrize(("x", "weight"), [("Half", "Int8"), ("Int8", "Half"), ("Half", "Half")])
def test_an_engine_that_multiplies_in_half_is_not_int8(x: str, weight: str) -> None:
    model = int8_graph()
    with pytest.raises(
        EngineError, match=r"computes 1 of 1 products of the int8-static graph in a wider type: MatMul_2"
    ):
        require_claimed(model, read_layers(account(x, weight)), most_bytes(model)[0], "int8-static")


def test_a_fusion_that_widens_what_it_reads_is_not_int8() -> None:
    model = int8_graph()
    layers = read_layers(account("Int8", "Int8", "runtime_fusion"))
    with pytest.raises(EngineError, match="in a wider type: MatMul_2"):
        require_claimed(model, layers, most_bytes(model)[0], "int8-static")
    product = next(node for node in model.graph if node.op_type == "MatMul")
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    # The graph itself multiplies in float32 then: it is enough that the weight is stored in 8 bits.
    require_claimed(model, layers, most_bytes(model)[0], "int8-static")


def test_weights_that_are_stored_wider_are_noticed_by_their_size() -> None:
    model = int8_graph()
    stored, most = most_bytes(model)
    assert stored < most < 2 * K * K
    require_claimed(model, read_layers(account("Int8", "Int8")), most, "int8-static")
    with pytest.raises(EngineError, match="weights take 32_768 bytes, but only 16_643 in the int8-static graph"):
        require_claimed(model, read_layers(account("Int8", "Int8")), 2 * K * K, "int8-static")


def test_a_product_of_constants_alone_is_no_product_of_the_engine() -> None:
    model = int8_graph()
    given = model.graph.inputs[0]
    assert len(quantized_products(model)) == 1
    model.graph.inputs.remove(given)
    given.const_value = ir.tensor(np.zeros((1, 1, K), dtype=np.float16), name="x")
    model.graph.register_initializer(given)
    assert quantized_products(model) == ()
