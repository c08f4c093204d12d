"""The real student as strongly typed graphs, made by the stages of an export as far as no builder is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from edgecompress.capture.tokenizer import save_tokenizer
from edgecompress.graph.sessions import open_session
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.encoder.metric import measure
from edgecompress.kinds.encoder.reference import reference_outputs
from edgecompress.kinds.encoder.samples import text_feeds
from edgecompress.kinds.one_pass_feeds import in_batches
from edgecompress.lower import standard
from edgecompress.lower.half_rounding import rounded_graph
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize.peaks import too_large_for_half
from edgecompress.quantize.stage import Calibration, calibrate, quantize
from edgecompress.quantize.texts import load_texts
from edgecompress.types.arrays import Feed
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import CalibrationRecipe, QuantizeRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity
from tests.captured import capture
from tests.limits import ENGINE

PRECISIONS = ("fp16", "int8-static", "int4-weights", "fp8")
SAMPLES = 64
_BATCH = 8


def write_typed(student_dir: Path, folder: Path) -> None:
    """``typed-<precision>.onnx`` of each, the held-out texts' tokens and PyTorch's vectors for them."""
    folder.mkdir()
    recipe = Recipe(
        student=StudentRecipe(source=str(student_dir)),
        calibration=CalibrationRecipe(samples=SAMPLES),
        quantize=QuantizeRecipe(method="gptq"),
    )
    student = load_student(recipe.student)
    texts = load_texts(recipe.calibration, SAMPLES)
    tokenizer = save_tokenizer(student, folder)
    calibration, held_out = (
        text_feeds(tokenizer, student, part, recipe.calibration.max_length_tokens)
        for part in (texts.calibration, texts.held_out)
    )
    captured = capture(student, folder, opset=standard.CAPTURED_OPSET)
    calibrated = calibrate(captured, recipe, lambda: calibration, lower_model, folder, limits=ENGINE)
    model = ir.load(captured.path)
    wide = too_large_for_half(lower_model(model.clone()), standard.computed_in_half(model), calibration)
    assert wide == (), "no value of MiniLM comes near float16's limit"
    for precision in PRECISIONS:
        quantized = quantize(
            captured, precision, recipe, folder, limits=ENGINE,
            calibration=Calibration(
                statistics=calibrated, batches=lambda: calibration, make_runnable=lower_model
            ),
        )  # fmt: skip
        standard.lower(quantized, folder)
    np.savez(
        folder / "held-out.npz",
        vectors=np.concatenate([outputs[0] for outputs in reference_outputs(student, held_out)]),
        **{f"ids_{i}": feed["input_ids"] for i, feed in enumerate(held_out)},  # type: ignore[arg-type]
    )


def typed(folder: Path, precision: str) -> Graph:
    return Graph(path=folder / f"typed-{precision}.onnx", stage="lowered", precision=precision)


def fidelity(folder: Path, precision: str, out_dir: Path) -> Fidelity:
    """Of the very graph that an engine is built from, to the float student, in padded batches."""
    with np.load(folder / "held-out.npz") as arrays:
        vectors = arrays["vectors"]
        feeds: list[Feed] = [
            {"input_ids": ids, "attention_mask": np.ones_like(ids)}
            for ids in (arrays[f"ids_{i}"] for i in range(len(vectors)))
        ]
    run = open_session(rounded_graph(typed(folder, precision), out_dir).path, threads=1)
    found = np.zeros_like(vectors)
    for positions, batch in in_batches(feeds, _BATCH, pad_token_id=0):
        found[positions] = run(batch)[0]
    return measure("sentence-similarity", [[row[None]] for row in vectors], [[row[None]] for row in found])
