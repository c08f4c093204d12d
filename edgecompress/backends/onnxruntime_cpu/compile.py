"""Compiles for ONNX Runtime's CPU provider: optimizes the graph once, offline, instead of at every start.

Two of ONNX Runtime's fusions are disabled because they are slower (1.32, measured by
benchmarks/bench_graph_choices.py): SkipLayerNormalization is a scalar loop and takes several times as long as the
vectorized Add and LayerNormalization.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort

from edgecompress.errors import HostError
from edgecompress.graph.model import EXTERNAL_DATA_BYTES, write_model
from edgecompress.graph.sessions import PROVIDERS, session_options
from edgecompress.types.graph import Graph
from edgecompress.types.target import Target

# ONNX Runtime's names of graph transformers.
SLOWER_FUSIONS: list[str] = ["SkipLayerNormFusion", "EmbedLayerNormFusion"]


def compile_graph(graph: Graph, target: Target, out_dir: Path) -> Graph:
    """Write ``compiled-<precision>.onnx``, optimized offline.

    Level "extended" folds constants and fuses nodes, but does not choose layouts for the compiling CPU, so the file is
    valid on the target. Raises HostError if ONNX Runtime rejects the graph.
    """
    path = out_dir / f"compiled-{graph.precision}.onnx"
    raw = out_dir / f"optimized-{graph.precision}.onnx"
    options = session_options(threads=1)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(raw)
    large = graph.bytes_on_disk > EXTERNAL_DATA_BYTES
    if large:
        options.add_session_config_entry("session.optimized_model_external_initializers_file_name", raw.name + ".data")
    try:
        ort.InferenceSession(
            str(graph.path), options, providers=list(PROVIDERS), disabled_optimizers=list(SLOWER_FUSIONS)
        )
    except Exception as error:  # ONNX Runtime raises its own classes and plain RuntimeError
        raise HostError(
            f"ONNX Runtime {ort.__version__} cannot compile the {graph.precision} graph for {target.name}: "
            f"{str(error).splitlines()[0][:200]}",
            hint="Run `edgecompress doctor` to check the installed versions.",
        ) from error
    model = ir.load(raw)
    source = ir.load(graph.path)
    model.metadata_props.clear()
    model.metadata_props.update(dict(source.metadata_props))
    model.metadata_props["edgecompress.target"] = target.name
    model.metadata_props["edgecompress.precision"] = graph.precision
    model.producer_name, model.producer_version = source.producer_name, source.producer_version
    _make_portable(model)
    write_model(model, path)
    raw.unlink()
    raw.with_name(raw.name + ".data").unlink(missing_ok=True)
    return Graph(path=path, stage="compiled", precision=graph.precision)


def has_accuracy_level(graph: Graph) -> bool:
    """Whether the graph has MatMulNBits, whose accuracy level can be chosen last."""
    return any(node.op_type == "MatMulNBits" for node in ir.load(graph.path).graph.all_nodes())


def at_accuracy_level(graph: Graph, level: int) -> Graph:
    """Write ``<graph>-level-<level>.onnx``: the same graph and data file, with every MatMulNBits at ``level``."""
    model = ir.load(graph.path)
    for node in model.graph.all_nodes():
        if node.op_type == "MatMulNBits":
            node.attributes["accuracy_level"] = ir.AttrInt64("accuracy_level", level)
    path = graph.path.with_name(f"{graph.path.stem}-level-{level}.onnx")
    ir.save(model, path)
    return replace(graph, path=path, weights_of=graph.path)


def _make_portable(model: ir.Model) -> None:
    """Drop unused opset imports: ONNX Runtime writes all that it knows."""
    used = {node.domain for node in model.graph.all_nodes()} | {""}
    for domain in [d for d in model.opset_imports if d not in used and d != "ai.onnx"]:
        del model.opset_imports[domain]


def accuracy_levels(target: Target) -> tuple[int, ...]:
    """The levels of MatMulNBits for which the target has kernels: level 4 needs int8 dot-product instructions."""
    multiplies_int8 = "asimddp" if target.arch == "aarch64" else "avx2"
    return (4, 1) if multiplies_int8 in target.isa else (1,)
