"""Q/DQ of MiniLM by edgecompress and by ModelOpt: fidelity to PyTorch, and the engine that TensorRT-RTX builds.

    python -m benchmarks.bench_modelopt --modelopt-python VENV/bin/python

ModelOpt quantizes the plain export of ``torch.onnx``, calibrated on the same texts as ours, with the variants of
``make_modelopt_peer.py``; its graphs run unchanged, ours rounded to float16 wherever it is float16. Both run on ONNX
Runtime's CPU provider without its optimizations, on the same held-out texts, with the same pooling.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

from benchmarks.bench_encoder import note
from benchmarks.minilm import default_checkpoint
from benchmarks.peers_encoder import make_onnx, pool
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.backends.tensorrt_rtx.engine import NAME, build_engine
from edgecompress.capture.tokenizer import save_tokenizer
from edgecompress.errors import EdgeCompressError
from edgecompress.export.pipeline import export
from edgecompress.formats.manifest import read_report
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.metric import measure
from edgecompress.kinds.encoder.reference import reference_outputs
from edgecompress.kinds.encoder.samples import text_feeds
from edgecompress.kinds.one_pass_feeds import Feed, in_batches, stack
from edgecompress.quantize.texts import load_texts
from edgecompress.targets import find_target
from edgecompress.types.bundle import ShapeRange
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QualityRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity

TARGET = "rtx-4090"
SHAPE = ShapeRange(smallest=(1, 1), usual=(8, 128), largest=(32, 256))
OURS = ("fp16", "int8", "fp8")
_BATCH = 8


def with_types(feed: Feed) -> dict[str, Any]:
    """The plain export asks for token types too; they are zeros."""
    return {**feed, "token_type_ids": np.zeros_like(feed["input_ids"])}


def fidelity(path: Path, held_out: list[Feed], reference: list[Any]) -> Fidelity:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = {value.name for value in session.get_inputs()}
    outputs: list[Any] = [None] * len(held_out)
    for positions, batch in in_batches(held_out, _BATCH, 0):
        feed = {name: array for name, array in with_types(batch).items() if name in names}
        vectors = pool(session.run(None, feed)[0].astype(np.float32), batch["attention_mask"])
        for row, position in enumerate(positions):
            outputs[position] = [vectors[row : row + 1]]
    return measure("sentence-similarity", reference, outputs)


def foreign_engine(path: Path, work: Path) -> dict[str, Any]:
    """The engine of a foreign graph, without our checks; the builder's own description of its layers."""
    inputs = [value.name for value in onnx.load(path, load_external_data=False).graph.input]
    graph = Graph(path=path, stage="lowered", precision="foreign")
    try:
        with tempfile.TemporaryDirectory(dir=work) as folder:
            engine = build_engine(graph, find_target(TARGET), dict.fromkeys(inputs, SHAPE), Path(folder))
            return {
                "weights_bytes": engine.record.weights_bytes,
                "engine_bytes": engine.engine.stat().st_size,
                "layers_by_matrix_type": dict(engine.matrices),
            }
    except EdgeCompressError as error:
        return {"engine": error.message.splitlines()[0][:300]}


def row(side: str, variant: str, found: Fidelity, engine: dict[str, Any]) -> dict[str, Any]:
    return {
        "kind": "row",
        "side": side,
        "variant": variant,
        "mean_cosine": found.mean_cosine,
        "min_cosine": found.min_cosine,
        "top10_agreement": found.top10_agreement,
        "samples": found.samples,
        "target": TARGET,
        **engine,
    }


def our_row(checkpoint: Path, precision: str, work: Path) -> dict[str, Any]:
    recipe = Recipe(
        target=TARGET,
        backend=NAME,
        precision=precision,
        student=StudentRecipe(source=str(checkpoint)),
        quality=QualityRecipe(min_fidelity=0.9),
    )
    made = export(recipe, work / f"ours-{precision}.bundle")
    record = made.manifest.variant().engine
    assert record is not None
    engine = {"weights_bytes": record.weights_bytes, "engine_bytes": (made.output / record.path).stat().st_size}
    return row("edgecompress", precision, read_report(made.output).fidelity, engine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="all-MiniLM-L6-v2 as its package carries it unless given")
    parser.add_argument("--modelopt-python", type=Path, required=True, help="of a venv that has ModelOpt")
    parser.add_argument("--out", type=Path, default=RESULTS / "modelopt.jsonl")
    options = parser.parse_args()
    checkpoint = (options.checkpoint or default_checkpoint()).resolve()
    recipe = Recipe(student=StudentRecipe(source=str(checkpoint)))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        student = load_student(recipe.student)
        texts, tokenizer = load_texts(recipe.calibration, recipe.quality.samples), save_tokenizer(student, work)
        calibration, held_out = (
            text_feeds(tokenizer, student, part, recipe.calibration.max_length_tokens)
            for part in (texts.calibration, texts.held_out)
        )
        reference = reference_outputs(student, held_out)
        make_onnx(str(checkpoint), work / "plain.onnx")
        np.savez(work / "calibration.npz", **with_types(stack(calibration, 0)))
        script = Path(__file__).with_name("make_modelopt_peer.py")
        command = [
            str(options.modelopt_python),
            str(script),
            *(str(work / n) for n in ("plain.onnx", "calibration.npz", "")),
        ]
        said = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        for variant, path in said["models"].items():
            rows.append(
                row("modelopt", variant, fidelity(Path(path), held_out, reference), foreign_engine(Path(path), work))
            )
        rows += [{"kind": "absent", "side": "modelopt", "variant": v, "why": why} for v, why in said["failed"].items()]
        rows += [our_row(checkpoint, precision, work) for precision in OURS]
    first = header()
    first["host"]["versions"] |= {NAME: version(NAME), "modelopt": said["versions"]}
    for entry in rows:
        note(json.dumps(entry))
    write(options.out, [first, *rows])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
