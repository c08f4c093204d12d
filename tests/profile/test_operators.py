"""Operators of a graph: their shapes against what ONNX Runtime met, their costs against sums by hand, their times."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.backends.onnxruntime_cpu.timing import SessionTimer, read_runs
from edgecompress.formats.manifest import open_bundle
from edgecompress.kinds import find_kind
from edgecompress.loading import open_models
from edgecompress.profile.costs import cost
from edgecompress.profile.layers import most_worth
from edgecompress.profile.operators import Counted, Graphs, OperatorTimer, module_of
from edgecompress.profile.peaks import memory_rate
from edgecompress.profile.shapes import value_shapes
from edgecompress.profile.workload import workloads_of
from edgecompress.runtime.bundle import OpenBundle
from edgecompress.types.bundle import MODEL
from edgecompress.types.profile import Operator, OperatorProfile
from edgecompress.types.workload import CALL


def opened(bundle: Path) -> OpenBundle:
    manifest, folder = open_bundle(bundle)
    return open_models(manifest, folder, threads=1)


def counted_in(source: OpenBundle, shape: str, phase: str) -> list[Counted]:
    (workload,) = workloads_of(source.manifest, shape)
    phases = find_kind(source.manifest.kind).profile.phases(source.manifest, workload)
    return Graphs(source).count(phases[phase])[MODEL]


def _met(timer: OperatorTimer) -> dict[str, list[tuple[int, ...]]]:
    """Shapes of each node's outputs in its last run, as ONNX Runtime wrote them down."""
    (sessions,) = timer.timers.values()
    assert isinstance(sessions, SessionTimer)
    events = sessions.events(MODEL)
    return {
        event["name"].removesuffix("_kernel_time"): [
            tuple(shape) for each in event["args"]["output_type_shape"] for shape in each.values()
        ]
        for event in events
        if event["name"].endswith("_kernel_time")
    }


def _same_shapes(bundle: Path, shape: str) -> int:
    """Of the last phase, whose runs are the last."""
    source = opened(bundle)
    (workload,) = workloads_of(source.manifest, shape)
    phases = find_kind(source.manifest.kind).profile.phases(source.manifest, workload)
    timer, graph = OperatorTimer(source), Graphs(source).of(MODEL)
    try:
        timer.run(workload, dict.fromkeys(phases, 1.0))
        met = _met(timer)
    finally:
        timer.close()
    run = [*phases.values()][-1].runs[-1]
    shapes, compared = value_shapes(graph, source.variant().inputs, run), 0
    for node in graph.all_nodes():
        if (node.name or "") not in met or "program" in (node.name or ""):
            continue
        for output, seen in zip(node.outputs, met[node.name or ""], strict=False):
            is_cache = "present" in (output.name or "")  # its buffer is as long as its capacity
            if output in shapes and not is_cache:
                assert shapes[output] == seen, (node.name, output.name)
                compared += 1
    return compared


def test_shapes_are_those_that_an_encoder_meets(minilm_bundle: Path) -> None:
    assert _same_shapes(minilm_bundle, "3x21") > 100


def test_shapes_are_those_that_a_decoder_meets(kernel_bundle: Path) -> None:
    assert _same_shapes(kernel_bundle, "2x19") > 5


def test_an_encoders_products_are_counted_whole(minilm_bundle: Path) -> None:
    """MiniLM: 6 layers of four matrices of 384 x 384 and two of 384 x 1536, and attention over 128 tokens."""
    counted = counted_in(opened(minilm_bundle), "8x128", CALL)
    rows = 8 * 128
    products = sum(each.cost.ops for each in counted if "MatMul" in each.op and each.cost.computes == "int8")
    assert products == 2 * rows * 6 * (4 * 384 * 384 + 2 * 384 * 1536)
    attention = [each for each in counted if each.op == "MultiHeadAttention"]
    assert len(attention) == 6  # of each If one branch
    assert sum(each.cost.ops for each in attention) == 6 * 4 * rows * 128 * 384
    assert {each.module for each in attention} == {f"encoder.layer.{i}.attention.self" for i in range(6)}


def test_a_decoders_layers_as_one_op_cost_what_their_parts_do(kernel_bundle: Path, small_decoder_dir: Path) -> None:
    source = opened(kernel_bundle)
    config = json.loads((small_decoder_dir / "config.json").read_text())
    hidden, between, layers = (config[name] for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    graph = Graphs(source).of(MODEL)
    counted = [c for c in counted_in(source, "2x30", "decode") if c.op == "DecoderLayer"]
    assert len(counted) == layers
    weights = hidden * size * (heads + 2 * kv_heads) + heads * size * hidden + 3 * hidden * between
    attention = 4 * 2 * heads * size * 31
    first = layers and counted[0].cost  # what stands before its attention may be the layer before's
    assert sum(c.cost.ops for c in counted) <= layers * (2 * 2 * weights + attention)
    assert sum(c.cost.ops for c in counted) >= (layers - 1) * (2 * 2 * weights + attention)
    assert first
    assert all(c.cost.bytes > 2 * 4 * 2 * kv_heads * size * 30 for c in counted)  # the cache, at the least
    assert [c.module for c in counted] == [f"model.layers.{i}" for i in range(layers)]
    # Matrices, scales and the cache; of the tables of positions, which are longer than that here, two rows.
    cache = 2 * 4 * 2 * kv_heads * size * (30 + 2)
    node = next(node for node in graph if node.op_type == "DecoderLayer")
    table = node.inputs[4]
    assert table is not None
    assert table.const_value is not None
    constants = sum(value.const_value.nbytes for value in node.inputs[10:] if value and value.const_value is not None)
    assert counted[0].cost.bytes == constants + cache + 2 * 2 * 4 * hidden
    assert counted[0].cost.weights == "int4"


def _value(name: str, shape: list[int], dtype: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


@pytest.mark.parametrize(
    ("op", "inputs", "attributes", "ops"),
    [
        ("MatMul", [[2, 5, 8], [8, 3]], {}, 2 * 10 * 8 * 3),
        ("Gemm", [[4, 8], [3, 8]], {"transB": 1}, 2 * 4 * 8 * 3),
        ("MatMulNBits", [[2, 5, 64]], {"K": 64, "N": 32, "bits": 4, "block_size": 32}, 2 * 10 * 64 * 32),
        ("MultiHeadAttention", [[2, 5, 8], [2, 7, 8], [2, 7, 8]], {"num_heads": 2}, 4 * 2 * 5 * 7 * 8),
        ("Attention", [[2, 4, 5, 8], [2, 4, 5, 8], [2, 4, 5, 8]], {}, 4 * 2 * 5 * 5 * 32),
        ("Attention", [[1, 4, 6, 8]] * 3, {"is_causal": 1}, 4 * 6 * 32 * 3.5),
        ("Reshape", [[2, 5, 8]], {}, 0),
    ],
)
def test_operations_by_hand(op: str, inputs: list[list[int]], attributes: dict[str, int], ops: float) -> None:
    values = [_value(f"i{i}", shape) for i, shape in enumerate(inputs)]
    node = ir.node(op, values, attributes=attributes)
    shapes = {value: tuple(shape) for value, shape in zip(values, inputs, strict=True)}
    assert cost(node, shapes).ops == ops


def test_a_lookup_moves_what_it_picks_and_not_the_table() -> None:
    table, ids = _value("table", [30_000, 384]), _value("ids", [8], ir.DataType.INT64)
    node = ir.node("Gather", [table, ids])
    node.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    shapes = {table: (30_000, 384), ids: (8,), node.outputs[0]: (8, 384)}
    assert cost(node, shapes).bytes == 2 * 8 * 384 * 4


def test_a_module_is_the_students_and_not_a_values() -> None:
    x = _value("layer_norm_2", [1])
    prepares = ir.node("DynamicQuantizeLinear", [x], name="layer_norm_2/DynamicQuantizeLinear", num_outputs=3)
    reads = ir.node("MatMulInteger", [prepares.outputs[0]], name="encoder.layer.1.attention.self.query/Linear")
    layer = ir.node("EncoderLayer", [x], name="packed/encoder.layer.4.attention.output.dense.weight_int8/EncoderLayer")
    pools = ir.node("ReduceSum", [reads.outputs[0]], name="graph/ReduceSum")
    values = {"layer_norm_2"}
    assert module_of(reads, values) == "encoder.layer.1.attention.self.query"
    assert module_of(prepares, values) == "encoder.layer.1.attention.self.query"
    assert module_of(layer, values) == "encoder.layer.4"
    assert module_of(pools, values) == ""


def test_a_node_that_holds_others_has_what_they_leave() -> None:
    def event(name: str, at: int, duration: int) -> dict[str, object]:
        return {"name": name, "ts": at, "dur": duration}

    events = [
        event("loading", 0, 5),
        event("inside_kernel_time", 12, 6),
        event("if_kernel_time", 11, 9),
        event("after_kernel_time", 21, 4),
        event("model_run", 10, 20),
        event("after_kernel_time", 41, 8),
        event("model_run", 40, 12),
    ]
    assert read_runs(events) == [{"if": 3, "inside": 6, "after": 4}, {"after": 8}]


def test_the_most_worth_attacking_is_furthest_above_its_roof() -> None:
    def operator(module: str, op: str, ms: float, roof: float) -> Operator:
        return Operator(
            name="", module=module, op=op, ms=ms, share=0.1, ops=1, bytes=1, computes="int8",
            bound="memory", roof_ms=roof, of_roof=roof / ms,
        )  # fmt: skip

    found = OperatorProfile(
        workload="1x16", threads=1, phase="call", calls=3, call_ms=9, nodes_ms=9, between_ms=0,
        operators=(
            operator("a.0", "Gelu", 2, 1.5), operator("a.1", "Gelu", 2, 1.5),
            operator("a.0.b", "MatMul", 3, 2.9), operator("", "Add", 0.8, 0.1),
        ),
    )  # fmt: skip
    assert [each.what for each in most_worth(found, 2)] == ["Gelu of a.*", "Add"]
    assert most_worth(found)[0].nodes == 2


def test_the_nodes_times_make_up_the_call(minilm_bundle: Path) -> None:
    """Of a call that is long beside what timing each node costs."""
    source = opened(minilm_bundle)
    timer = OperatorTimer(source)
    (workload,) = workloads_of(source.manifest, "8x64")
    timer.run(workload, {CALL: 40.0})
    peaks, (found,) = timer.finish()
    timer.close()
    assert peaks is not None
    assert peaks.ops_per_s["int8"] > 1e9
    assert memory_rate(peaks) > 1e8
    assert [2 * a.buffer_bytes for a in peaks.reads[:-1]] == [b.buffer_bytes for b in peaks.reads[1:]]
    assert np.isclose(sum(o.share for o in found.operators), 1, atol=0.01)
    assert np.isclose(sum(o.ms for o in found.operators), found.nodes_ms, rtol=0.01)
    heavy = {o.op for o in sorted(found.operators, key=lambda o: -o.ms)[:6]}
    assert heavy <= {
        "MultiHeadAttention",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
        "Gelu",
        "LayerNormalization",
    }
    assert not Path(timer._folder.name).exists()
