"""Engines of TensorRT-RTX, built without a GPU: bytes, what they multiply in, and how near their graph is to PyTorch.

    python -m benchmarks.bench_engines

Every precision is exported once, end to end, and its graph then built for each target. No engine is run. Sizes are
those of the file and of the weights in it, as the builder tells them; ratios are to the fp16 engine of the same target.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench_encoder import default_checkpoint, note
from benchmarks.hosts import describe_host
from edgecompress.compile.tensorrt_rtx import build_engine
from edgecompress.formats.manifest import read_report
from edgecompress.pipeline import export
from edgecompress.targets import find_target
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import TENSORRT_RTX, QualityRecipe, QuantizeRecipe, Recipe, StudentRecipe

RESULTS = Path(__file__).with_name("results") / "engines.jsonl"
TARGETS = ("rtx-3060", "rtx-4090", "rtx-5090")
PRECISIONS = ("fp16", "int8", "int4")
METHODS = {"int4": "gptq"}  # of rounding weights; rounding to nearest loses more
OPEN = QualityRecipe(min_fidelity=0.9)  # what is lost is a figure here, not a reason to stop


def rows_of(checkpoint: Path, precision: str, work: Path) -> list[dict[str, Any]]:
    recipe = Recipe(
        target=TARGETS[0],
        backend=TENSORRT_RTX,
        precision=precision,
        student=StudentRecipe(source=str(checkpoint)),
        quantize=QuantizeRecipe(method=METHODS.get(precision, "rtn")),
        quality=OPEN,
    )
    started = time.perf_counter()
    made = export(recipe, work / f"{precision}.bundle")
    seconds = time.perf_counter() - started
    manifest, fidelity = made.manifest, read_report(made.output).fidelity
    assert manifest.engine is not None
    graph = Graph(path=made.output / manifest.model, stage="lowered", precision=manifest.precision)
    rows = []
    for name in TARGETS:
        target = find_target(name)
        folder = work / f"{precision}-{name}"
        folder.mkdir()
        started = time.perf_counter()
        engine = build_engine(graph, target, manifest.engine.profile, folder)
        rows.append(
            {
                "kind": "row",
                "student": manifest.name,
                "precision": precision,
                "method": recipe.quantize.method,
                "target": name,
                "compute_capability": list(engine.record.compute_capability),
                "engine_bytes": engine.engine.stat().st_size,
                "weights_bytes": engine.record.weights_bytes,
                "layers_by_matrix_type": dict(engine.matrices),
                "profile": {k: [v.smallest, v.usual, v.largest] for k, v in engine.record.profile.items()},
                "build_s": round(time.perf_counter() - started, 2),
                "export_s": round(seconds, 1),
                "mean_cosine": fidelity.mean_cosine,
                "min_cosine": fidelity.min_cosine,
                "top10_agreement": fidelity.top10_agreement,
                "samples": fidelity.samples,
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="all-MiniLM-L6-v2 as its package carries it unless given")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    checkpoint = (options.checkpoint or default_checkpoint()).resolve()
    host = describe_host()
    host["versions"] = {**host["versions"], TENSORRT_RTX: version(TENSORRT_RTX)}  # type: ignore[dict-item]
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:
        for precision in PRECISIONS:
            rows += rows_of(checkpoint, precision, Path(work))
    base = {row["target"]: row for row in rows if row["precision"] == "fp16"}
    for row in rows:
        for what in ("engine_bytes", "weights_bytes"):
            row[f"{what}_over_fp16"] = round(row[what] / base[row["target"]][what], 3)
        row["host"] = host
        note(json.dumps({key: value for key, value in row.items() if key != "host"}))
    text = "".join(json.dumps(row) + "\n" for row in rows)
    options.results.with_suffix(".part").write_text(text, encoding="utf-8")
    options.results.with_suffix(".part").replace(options.results)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
