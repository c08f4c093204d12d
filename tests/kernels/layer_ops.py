"""A decoder's layer of our ops and ONNX Runtime's norm, Add and gate, and the same as one op."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from edgecompress_kernels.cpu.build import Matmul
from edgecompress_kernels.reference import block_weights, gated, quantized_rows, rms_norm
from onnx import TensorProto, helper, numpy_helper

from edgecompress.backends.onnxruntime_cpu.decoder_layers import find_layers, join_layers
from tests.kernels.ops import model_of, place_feeds
from tests.kernels.test_attention import expected_of
from tests.kernels.test_blockwise import laid_out, weights_of

HIDDEN, HEADS, KV_HEADS, SIZE, BETWEEN = 128, 3, 1, 64, 256
KIND = Matmul(bits=4, block=32)
EIGHT = Matmul(bits=8, block=32, zero_points=True)


def layer_model(
    rng: np.random.Generator, *, int8: bool = False, layers: int = 1, kinds: Any = (KIND, EIGHT)
) -> onnx.ModelProto:
    """Feeds x [1, T, HIDDEN], the caches and places -> y and the caches, of each layer."""
    kept = TensorProto.INT8 if int8 else TensorProto.FLOAT
    nodes: list[Any] = []
    constants: dict[str, Any] = {}
    inputs = {"last": TensorProto.INT32, "total": TensorProto.INT32, "positions": TensorProto.INT64}
    inputs |= {"cos": TensorProto.FLOAT, "sin": TensorProto.FLOAT}
    outputs: dict[str, int] = {}

    def add(op: str, names: list[str], made: list[str], domain: str = "", **attributes: Any) -> str:
        nodes.append(helper.make_node(op, names, made, name=made[0], domain=domain, **attributes))
        return made[0]

    def norm(x: str, name: str) -> str:
        constants[f"{name}.weight"] = (1 + 0.1 * rng.standard_normal(HIDDEN)).astype(np.float32)
        return add("SimplifiedLayerNormalization", [x, f"{name}.weight"], [name], axis=-1, epsilon=1e-6)

    def product(x: str, name: str, k: int, n: int, kind: Matmul, *, bias: bool = False) -> str:
        arrays = laid_out(kind, *weights_of(kind, n, k, rng))
        names = [f"{name}.{part}" if part in arrays else "" for part in ("w", "s", "z")]
        constants.update({f"{name}.{part}": array for part, array in arrays.items()})
        if bias:
            constants[f"{name}.b"] = rng.standard_normal(n).astype(np.float32)
            names.append(f"{name}.b")
        sizes = {"K": k, "N": n, "bits": kind.bits, "block_size": kind.block}
        return add("MatMulBlocks", [x, *names], [name], "edgecompress", **sizes)

    x = "x"
    constants["halves"] = np.array([BETWEEN, BETWEEN])
    for i in range(layers):
        qkv = product(norm(x, f"norm{i}"), f"qkv{i}", HIDDEN, (HEADS + 2 * KV_HEADS) * SIZE, kinds[0], bias=True)
        caches = [f"past_k{i}", f"past_v{i}"]
        inputs |= dict.fromkeys(caches, kept)
        names = [qkv, "", "", *caches, "last", "total", "cos", "sin", "positions"]
        if int8:
            constants |= {f"k_scale{i}": np.full((KV_HEADS, SIZE), 0.03, np.float32)}
            names += [f"k_scale{i}", f"k_scale{i}"]
        made = [f"attended{i}", f"k{i}", f"v{i}"]
        heads = {"num_heads": HEADS, "kv_num_heads": KV_HEADS, "head_size": SIZE}
        op = f"CachedAttention{'Int8' * int8}"
        add(op, names, made, "edgecompress", **heads, scale=SIZE**-0.5, local_window_size=-1)
        outputs |= dict.fromkeys(made[1:], kept)
        out = product(made[0], f"out{i}", HEADS * SIZE, HIDDEN, kinds[1])
        middle = add("Add", [x, out], [f"middle{i}"])
        both = product(norm(middle, f"mlp_norm{i}"), f"gate_up{i}", HIDDEN, 2 * BETWEEN, kinds[0])
        add("Split", [both, "halves"], [f"gate{i}", f"up{i}"], axis=-1)
        bent = add("QuickGelu", [f"gate{i}"], [f"bent{i}"], "com.microsoft", alpha=1.0)
        product(add("Mul", [bent, f"up{i}"], [f"gated{i}"]), f"down{i}", BETWEEN, HIDDEN, kinds[1])
        x = add("Add", [middle, f"down{i}"], ["y" if i == layers - 1 else f"y{i}"])
    outputs[x] = TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, "tokens", HIDDEN]),
            *(helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()),
        ],
        [helper.make_tensor_value_info(name, kind, None) for name, kind in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    model: onnx.ModelProto = onnx.load_model_from_string(model_of(graph))
    model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return model


def exact_layer(model: onnx.ModelProto, feeds: dict[str, Any], past: int) -> Any:
    """y [1, T, HIDDEN] of a model of one layer in float64, its products' inputs rounded to 8 bits as they are."""
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    kinds = {node.name: node for node in model.graph.node if node.op_type == "MatMulBlocks"}

    def product(x: Any, name: str) -> Any:
        k, n, bits, block = (helper.get_node_attr_value(kinds[name], key) for key in ("K", "N", "bits", "block_size"))
        weights = unpacked(constants[f"{name}.w"], n, bits)
        scales, zeros = (lanes(constants.get(f"{name}.{part}"), n) for part in "sz")
        whole = quantized_rows(x.astype(np.float32), block) @ block_weights(weights, scales, zeros, bits).T
        assert k == x.shape[1]
        return whole + constants.get(f"{name}.b", 0)

    x = feeds["x"][0].astype(np.float64)
    qkv = product(rms_norm(x, constants["norm0.weight"], 1e-6), "qkv0")
    attended = feeds | {"q": qkv.astype(np.float32)[None], "past_k": feeds["past_k0"], "past_v": feeds["past_v0"]}
    out = product(expected_of(attended, [past], HEADS, KV_HEADS, SIZE, -1)[0][0], "out0")
    middle = x + out
    both = product(rms_norm(middle, constants["mlp_norm0.weight"], 1e-6), "gate_up0")
    return (middle + product(gated(both, 1.0), "down0"))[None]


def lanes(packed: Any, outputs: int) -> Any:
    """[tiles, blocks, 16] -> [N, blocks]: what ``pack_lanes`` undoes."""
    return None if packed is None else packed.transpose(0, 2, 1).reshape(-1, packed.shape[1])[:outputs]


def unpacked(tiles: Any, outputs: int, bits: int) -> Any:
    """What ``pack_weights`` undoes: uint8 [N, blocks, block * bits / 8]."""
    count, blocks, vectors, _ = tiles.shape
    four = tiles.reshape(count, blocks, vectors, 16, 4).transpose(0, 3, 1, 2, 4).reshape(16 * count, blocks, vectors, 4)
    if bits == 4:
        eight = np.concatenate([four & 15, four >> 4], axis=-1)
        four = eight[..., 0::2] | (eight[..., 1::2] << 4)
    return np.ascontiguousarray(four.reshape(16 * count, blocks, -1)[:outputs])


def joined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same with each layer as one op."""
    found = ir.from_proto(model)
    join_layers(found.graph, find_layers(found.graph))
    return ir.to_proto(found)


def layer_feeds(
    rng: np.random.Generator, tokens: int, past: int, *, int8: bool = False, layers: int = 1
) -> dict[str, Any]:
    capacity = past + tokens + 3
    feeds = {"x": rng.standard_normal((1, tokens, HIDDEN)).astype(np.float32)}
    for i in range(layers):
        for side in "kv":
            cache = rng.standard_normal((1, KV_HEADS, capacity, SIZE)).astype(np.float32)
            feeds[f"past_{side}{i}"] = np.clip(np.rint(cache / 0.03), -128, 127).astype(np.int8) if int8 else cache
    return feeds | place_feeds(tokens, [past], capacity, SIZE)
