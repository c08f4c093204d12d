"""Engines of TensorRT-RTX, built without a GPU: bytes, types of products, and fidelity of their graphs to PyTorch.

    python -m benchmarks.bench_engines --decoder small-decoder/

Every precision of every student is exported once, end to end, and its graph is then built for each target that computes
in it. No engine runs. The decoder is one of ``benchmarks.small_decoder``. Sizes are those of the file and of the
weights in it, as the builder reports them; ratios are to the fp16 engine of the same student and target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench_encoder import note
from benchmarks.minilm import default_checkpoint
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.backends.tensorrt_rtx.engine import NAME, build_engine
from edgecompress.export.pipeline import ExportResult, export
from edgecompress.formats.manifest import read_report
from edgecompress.targets import computable, find_target
from edgecompress.types.graph import Graph
from edgecompress.types.precision import FP8
from edgecompress.types.recipe import QualityRecipe, QuantizeRecipe, Recipe, StudentRecipe

TARGETS = ("rtx-4090", "rtx-3060", "rtx-5090")
PRECISIONS = ("fp16", "int8", "int4", "fp8")
METHODS = {"int4": "gptq"}  # of rounding weights; rounding to nearest loses more
OPEN = QualityRecipe(min_fidelity=0.9)  # what is lost is a figure here, not a reason to stop


def rows_of(name: str, checkpoint: Path, precision: str, work: Path) -> list[dict[str, Any]]:
    """One row per target."""
    recipe = Recipe(
        target=TARGETS[0],
        backend=NAME,
        precision=precision,
        student=StudentRecipe(source=str(checkpoint)),
        quantize=QuantizeRecipe(method=METHODS.get(precision, "rtn")),
        quality=OPEN,
    )
    started = time.perf_counter()
    made = export(recipe, work / f"{name}-{precision}.bundle")
    seconds = time.perf_counter() - started
    targets = [name for name in TARGETS if precision != FP8 or FP8 in computable(find_target(name))]
    return [
        {**_row(made, target, work), "student": name, "precision": precision, "method": recipe.quantize.method,
         "export_s": round(seconds, 1)}
        for target in targets
    ]  # fmt: skip


def _row(made: ExportResult, name: str, work: Path) -> dict[str, Any]:
    manifest, fidelity = made.manifest, read_report(made.output).fidelity
    assert manifest.variant().engine is not None
    graph = Graph(path=made.output / manifest.variant().path, stage="lowered", precision=manifest.precision)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        started = time.perf_counter()
        engine = build_engine(graph, find_target(name), manifest.variant().engine.profile, Path(folder))
        seconds = time.perf_counter() - started
        size = engine.engine.stat().st_size
    profile = {k: v for k, v in engine.record.profile.items() if k in ("input_ids", "attention_mask")}
    figures = {"mean_cosine", "min_cosine", "top10_agreement", "perplexity_ratio", "mean_kl", "top1_agreement"}
    return {
        "kind": "row",
        "target": name,
        "compute_capability": list(engine.record.compute_capability),
        "engine_bytes": size,
        "weights_bytes": engine.record.weights_bytes,
        "layers_by_matrix_type": dict(engine.matrices),
        "profile": {k: [v.smallest, v.usual, v.largest] for k, v in profile.items()},
        "build_s": round(seconds, 2),
        **{key: value for key, value in vars(fidelity).items() if key in figures and value is not None},
        "samples": fidelity.samples,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="all-MiniLM-L6-v2 as its package carries it unless given")
    parser.add_argument("--decoder", type=Path, help="a checkpoint of benchmarks.small_decoder; none unless given")
    parser.add_argument("--out", type=Path, default=RESULTS / "engines.jsonl")
    options = parser.parse_args()
    students = {"all-MiniLM-L6-v2": options.checkpoint or default_checkpoint()}
    if options.decoder:
        students["small-decoder"] = options.decoder
    first = header()
    first["host"]["versions"][NAME] = version(NAME)
    rows: list[dict[str, Any]] = []
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        for name, checkpoint in students.items():
            for precision in PRECISIONS:
                rows += rows_of(name, checkpoint.resolve(), precision, Path(work))
    seconds = time.perf_counter() - started
    base = {(row["student"], row["target"]): row for row in rows if row["precision"] == "fp16"}
    for row in rows:
        for what in ("engine_bytes", "weights_bytes"):
            row[f"{what}_over_fp16"] = round(row[what] / base[row["student"], row["target"]][what], 3)
        note(json.dumps(row))
    rows.append({"kind": "total", "engines": len(rows), "exports_and_builds_s": round(seconds, 1)})
    note(json.dumps(rows[-1]))
    write(options.out, [first, *rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
