"""Choices of lowering and compiling that were made by time, each compared with its alternative.

Run from the repository's root: ``python -m benchmarks.bench_graph_choices``. Real MiniLM, int8-dynamic and fp32; every
variant's output is compared with the chosen graph's before it is timed; ratios are variant time over chosen time,
median of paired rounds with p10 and p90. One JSON line per row in benchmarks/results/graph_choices.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from benchmarks.minilm import default_checkpoint
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.backends.onnxruntime_cpu import compile as backend
from edgecompress.capture.tokenizer import save_tokenizer
from edgecompress.graph.model import write_model
from edgecompress.graph.rewrite import constant
from edgecompress.graph.sessions import open_session
from edgecompress.graph.timing import time_in_turn
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.capture import capture
from edgecompress.kinds.encoder.samples import text_feeds
from edgecompress.lower import microsoft
from edgecompress.quantize.stage import Calibrated, Calibration, calibrate, quantize
from edgecompress.quantize.texts import load_texts
from edgecompress.targets import detect
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import CalibrationRecipe, Recipe, StudentRecipe

SHAPES = ((1, 16), (1, 128), (8, 128))


def pack_projections(model: ir.Model) -> None:
    """Make one layer of the three that read an attention's input, and split what it gives. Portable int8 graph."""
    graph = model.graph
    groups: dict[int, list[ir.Node]] = {}
    for node in graph:
        if node.op_type == "QuantizedLinear" and node.inputs[0] is not None:
            groups.setdefault(id(node.inputs[0]), []).append(node)
    for nodes in (group for group in groups.values() if len(group) == 3):
        name = f"{nodes[0].name}/packed"
        parts = []
        for position, axis in ((1, 1), (2, 0), (3, 0)):
            arrays = [n.inputs[position].const_value.numpy() for n in nodes]  # type: ignore[union-attr]
            parts.append(constant(graph, f"{name}.{position}", np.concatenate(arrays, axis)))
        packed = ir.node(
            "QuantizedLinear", [nodes[0].inputs[0], *parts], {"static": 0}, domain="edgecompress", name=name
        )
        split = ir.node(
            "Split", [packed.outputs[0]], {"axis": -1, "num_outputs": 3}, num_outputs=3, name=f"{name}/Split"
        )
        graph.insert_before(nodes[0], [packed, split])
        for node, out in zip(nodes, split.outputs, strict=True):
            out.type, out.shape = node.outputs[0].type, node.outputs[0].shape
            ir.convenience.replace_all_uses_with(node.outputs[0], out)
            graph.remove(node, safe=True)


def build(
    captured: Graph,
    calibrated: Calibrated,
    precision: str,
    folder: Path,
    *,
    fuse_norm: bool = False,
    keep_mask: bool = False,
    pack: bool = False,
) -> Path:
    """One variant, through the product's own stages with one choice turned round."""
    folder.mkdir()
    graph = quantize(captured, precision, Recipe(), folder, calibration=Calibration(statistics=calibrated))
    if pack:
        model = ir.load(graph.path)
        pack_projections(model)
        write_model(model, folder / "packed.onnx")
        graph = Graph(path=folder / "packed.onnx", stage="quantized", precision=precision)
    fusions, skip = backend.SLOWER_FUSIONS, microsoft.skip_mask_when_unpadded
    unchanged: Callable[[ir.Model], int] = lambda _: 0  # noqa: E731
    try:
        if fuse_norm:
            backend.SLOWER_FUSIONS = []
        if keep_mask:
            microsoft.skip_mask_when_unpadded = unchanged  # type: ignore[attr-defined]
        return backend.compile_graph(microsoft.lower(graph, folder), detect(), folder).path
    finally:
        backend.SLOWER_FUSIONS, microsoft.skip_mask_when_unpadded = fusions, skip  # type: ignore[attr-defined]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "graph_choices.jsonl")
    options = parser.parse_args()
    student = load_student(StudentRecipe(source=str(default_checkpoint())))
    rows: list[dict[str, Any]] = [header()]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        captured = capture(student, folder, opset=21)
        texts = load_texts(CalibrationRecipe(), 16)
        feeds = text_feeds(save_tokenizer(student, folder), student, texts.calibration, 256)
        calibrated = calibrate(captured, Recipe(), lambda: feeds, microsoft.lower_model, folder)
        for precision in ("int8-dynamic", "fp32"):
            variants = {
                "chosen": {},
                "SkipLayerNormalization": {"fuse_norm": True},
                "mask kept where nothing is padded": {"keep_mask": True},
            }
            if precision != "fp32":
                variants["one packed QKV product and a Split"] = {"pack": True}
            paths = {
                name: build(captured, calibrated, precision, folder / f"{precision}-{index}", **change)
                for index, (name, change) in enumerate(variants.items())
            }
            for threads in options.threads:
                sides = {name: open_session(path, threads) for name, path in paths.items()}
                for batch, tokens in SHAPES:
                    feed = {k: np.ascontiguousarray(np.resize(v[0], (batch, tokens))) for k, v in feeds[0].items()}
                    outputs = {name: run(feed)[0] for name, run in sides.items()}
                    seconds = time_in_turn(sides, feed)
                    chosen = np.array(seconds.pop("chosen"))
                    for name, values in seconds.items():
                        assert np.abs(outputs[name] - outputs["chosen"]).max() < 0.02, name
                        ratios = np.array(values) / chosen
                        low, median, high = (round(float(np.percentile(ratios, q)), 3) for q in (10, 50, 90))
                        rows.append(
                            {
                                "precision": precision,
                                "variant": name,
                                "shape": f"{batch}x{tokens}",
                                "threads": threads,
                                "time_over_chosen": {"median": median, "p10": low, "p90": high},
                            }
                        )
                        where = f"{precision:13} {threads}t {batch}x{tokens:<4}"
                        print(f"{where} {name:36} {median:.3f} ({low:.3f}-{high:.3f})")
    write(options.out, rows)


if __name__ == "__main__":
    main()
