"""Our custom ops in ONNX Runtime, one a session, and their arguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from edgecompress_kernels.cpu.build import Attention, Encoder, Matmul
from edgecompress_kernels.cpu.isa import ISAS, Isa
from edgecompress_kernels.reference import rotated
from onnx import TensorProto, helper, numpy_helper

from edgecompress.formats.cpu import host_features

MATMULS = (
    Matmul(bits=4, block=32),
    Matmul(bits=4, block=64, zero_points=True, half=True),
    Matmul(bits=4, block=128),
    Matmul(bits=8, block=128, half=True),
    Matmul(bits=8, block=32, zero_points=True),
)
ATTENTIONS = (64, 80, 96, 128, 256)
ENCODERS = (
    Encoder(hidden=96, heads=6, feed_forward=112),  # heads of 16, a panel that is not full
    Encoder(hidden=128, heads=2, feed_forward=256),  # of 64
    Encoder(hidden=128, heads=1, feed_forward=48),  # of 128
    Encoder(hidden=64, heads=2, feed_forward=96, weight_bits=7),  # of 32
)
LIBRARY = (MATMULS, tuple(Attention(head_size=size, int8=int8) for size in ATTENTIONS for int8 in (False, True)))


def best_isa(features: frozenset[str]) -> Isa | None:
    """The first instruction set of all whose features are these or fewer."""
    return next((isa for isa in ISAS.values() if set(isa.needs) <= features), None)


ISA = best_isa(host_features())
needs_kernels = pytest.mark.skipif(ISA is None, reason="no kernel for this machine's CPU")
LIBRARY_FILE = f"kernels-{ISA.name if ISA else None}.so"  # in a bundle for this machine


def model_of(graph: onnx.GraphProto) -> bytes:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("edgecompress", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()  # type: ignore[no-any-return]


def session(model: bytes, library: Path, threads: int) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def make_session(graph: onnx.GraphProto, library: Path, threads: int) -> ort.InferenceSession:
    return session(model_of(graph), library, threads)


def matmul(
    library: Path, kind: Matmul, packed: dict[str, Any], k: int, n: int, *, bias: bool = False, threads: int = 2
) -> ort.InferenceSession:
    return session(matmul_model(kind, packed, k, n, bias=bias), library, threads)


def matmul_model(kind: Matmul, packed: dict[str, Any], k: int, n: int, *, bias: bool = False) -> bytes:
    """y = MatMulBlocks(x, weights, scales, zeros, bias) with all but x constant."""
    names = ["x", "w", "s", "z" if "z" in packed else "", "b" if bias else ""]
    node = helper.make_node(
        "MatMulBlocks", names, ["y"], domain="edgecompress", K=k, N=n, bits=kind.bits, block_size=kind.block
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in packed.items()],
    )
    return model_of(graph)


def attention(library: Path, *, threads: int = 2, **options: Any) -> ort.InferenceSession:
    return session(attention_model(**options), library, threads)


def attention_model(
    *, heads: int, kv_heads: int, size: int, rotary: int = 0, window: int = -1, packed: bool = True, int8: bool = False
) -> bytes:
    """y, k_out, v_out of the feeds by their names; ``int8`` is the cache's type."""
    kept = TensorProto.INT8 if int8 else TensorProto.FLOAT
    names = ["q", "" if packed else "k", "" if packed else "v", "past_k", "past_v", "last", "total"]
    kinds = {"q": TensorProto.FLOAT, "past_k": kept, "past_v": kept}
    kinds |= {"last": TensorProto.INT32, "total": TensorProto.INT32}
    if not packed:
        kinds |= {"k": TensorProto.FLOAT, "v": TensorProto.FLOAT}
    if rotary:
        names += ["cos", "sin", "positions"]
        kinds |= {"cos": TensorProto.FLOAT, "sin": TensorProto.FLOAT, "positions": TensorProto.INT64}
    if int8:
        names += [*[""] * (10 - len(names)), "k_scale", "v_scale"]
        kinds |= {"k_scale": TensorProto.FLOAT, "v_scale": TensorProto.FLOAT}
    node = helper.make_node(
        "CachedAttentionInt8" if int8 else "CachedAttention",
        names,
        ["y", "k_out", "v_out"],
        domain="edgecompress",
        num_heads=heads,
        kv_num_heads=kv_heads,
        head_size=size,
        scale=float(size) ** -0.5,
        local_window_size=window,
    )
    graph = helper.make_graph(
        [node],
        "g",
        [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()],
        [
            helper.make_tensor_value_info(name, kind, None)
            for name, kind in (("y", TensorProto.FLOAT), ("k_out", kept), ("v_out", kept))
        ],
    )
    return model_of(graph)


def angles(positions: int, rotary: int) -> tuple[Any, Any]:
    """cos and sin float32 [positions, rotary / 2]."""
    turn = np.arange(positions)[:, None] / 10_000 ** (np.arange(rotary // 2) / (rotary // 2))
    return np.cos(turn).astype(np.float32), np.sin(turn).astype(np.float32)


def place_feeds(tokens: int, past: list[int], capacity: int, rotary: int) -> dict[str, Any]:
    """Where new tokens stand behind each text's past: the feeds that do not hang on the cache's type."""
    feeds: dict[str, Any] = {
        "last": np.array([p + tokens - 1 for p in past], dtype=np.int32),
        "total": np.array(max(past) + tokens, dtype=np.int32),
    }
    if rotary:
        feeds["cos"], feeds["sin"] = angles(capacity, rotary)
        feeds["positions"] = np.array([np.arange(p, p + tokens) for p in past], dtype=np.int64)
    return feeds


def turned(feeds: dict[str, Any], heads: int, kv_heads: int, size: int) -> tuple[Any, Any, Any]:
    """Queries [B, H, T, D], keys and values [B, Hk, T, D] of the new tokens, turned."""
    batch, tokens, _ = feeds["q"].shape
    parts = np.split(feeds["q"], [heads * size, (heads + kv_heads) * size], axis=-1)
    q, k, v = (x.reshape(batch, tokens, -1, size).transpose(0, 2, 1, 3) for x in parts)
    if "cos" in feeds:
        cos, sin = (feeds[name][feeds["positions"]][:, None] for name in ("cos", "sin"))
        q, k = rotated(q, cos, sin), rotated(k, cos, sin)
    return q, k, v
