"""Choices of a decoder's lowering that were made by time, each compared with its alternative.

Run from the repository's root: ``python -m benchmarks.bench_decoder_choices``. Random weights in the exact shapes of
real layers, few of them: R1-Distill-Qwen-1.5B's for the norms, granite-3.1-1b-a400m's for the experts. Every variant's
logits are compared with the chosen graph's before it is timed; ratios are variant time over chosen time, median of
paired rounds with p10 and p90. One JSON line per row in benchmarks/results/decoder_choices.jsonl.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import onnx_ir as ir
import torch
import transformers

from benchmarks.r1_shape import CONFIG, save_tokenizer
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.backends.onnxruntime_cpu import compile as backend
from edgecompress.graph.sessions import open_session
from edgecompress.graph.timing import time_in_turn
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.capture import capture
from edgecompress.kinds.decoder.check import text_feed
from edgecompress.kinds.decoder.export import past_shapes
from edgecompress.lower.microsoft import lower
from edgecompress.lower.rotary import lower_rms_norm
from edgecompress.quantize.stage import quantize
from edgecompress.targets import detect
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QuantizeRecipe, Recipe, StudentRecipe

SHAPES = ((1, 127), (16, 0), (128, 0))  # new tokens, tokens behind them

_SMALL = {"vocab_size": 4096, "max_position_embeddings": 4096, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_GRANITE = {
    "hidden_size": 1024,
    "intermediate_size": 512,
    "num_local_experts": 32,
    "num_experts_per_tok": 8,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "num_hidden_layers": 2,
}
_QWEN = {name: CONFIG[name] for name in ("hidden_size", "intermediate_size", "num_attention_heads")}
# student -> (model_type, its sizes, variant, the function that is replaced to get it)
STUDENTS: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "R1-1.5B, 6 layers": (
        "qwen2",
        _QWEN | {"num_key_value_heads": 2, "num_hidden_layers": 6},
        "SkipSimplifiedLayerNormalization",
        "edgecompress.lower.microsoft.lower_rms_norm",
    ),
    "granite-3.1-1b-a400m, 2 layers": (
        "granitemoe",
        _GRANITE,
        "experts gathered",
        "edgecompress.lower.experts.why_not",
    ),
}


def skip_norms(model: ir.Model) -> int:
    """Replaces lower_rms_norm: a residual sum and the norm after it become one op that returns both."""
    done = lower_rms_norm(model)
    for norm in [n for n in model.graph if n.op_type == "SimplifiedLayerNormalization"]:
        total = norm.inputs[0]
        add = total.producer() if total is not None else None
        if add is None or add.op_type != "Add" or any(value.const_value is not None for value in add.inputs if value):
            continue
        made = ir.node(
            "SkipSimplifiedLayerNormalization",
            [*add.inputs, norm.inputs[1]],
            attributes={"epsilon": norm.attributes["epsilon"].as_float()},
            domain="com.microsoft",
            num_outputs=4,
            name=norm.name,
        )
        model.graph.insert_before(norm, made)
        for old, new in ((add.outputs[0], made.outputs[3]), (norm.outputs[0], made.outputs[0])):
            new.type, new.shape = old.type, old.shape
            ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        model.graph.remove([norm, add], safe=True)
    model.opset_imports["com.microsoft"] = 1
    return done


VARIANTS = {"SkipSimplifiedLayerNormalization": skip_norms, "experts gathered": lambda _: "for the benchmark"}


def checkpoint(folder: Path, model_type: str, sizes: dict[str, Any]) -> Path:
    folder.mkdir()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(model_type, **_SMALL, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def build(quantized: Graph, folder: Path, change: tuple[str, Any] | None) -> Path:
    folder.mkdir()
    with mock.patch(*change) if change else nullcontext():
        return backend.compile_graph(lower(quantized, folder), detect(), folder).path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "decoder_choices.jsonl")
    options = parser.parse_args()
    rows: list[dict[str, Any]] = [header()]
    recipe = Recipe(quantize=QuantizeRecipe(method="rtn", block_size=128))
    for student_name, (model_type, sizes, variant, replaced) in STUDENTS.items():
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            student = load_student(StudentRecipe(source=str(checkpoint(folder / "student", model_type, sizes))))
            captured = capture(student, folder, opset=21)
            past = past_shapes(captured)
            for precision in ("fp32", "int4-weights"):
                quantized = quantize(captured, precision, recipe, folder)
                changes = {"chosen": None, variant: (replaced, VARIANTS[variant])}
                paths = {
                    name: build(quantized, folder / f"{precision}-{index}", change)
                    for index, (name, change) in enumerate(changes.items())
                }
                for threads in options.threads:
                    sides = {name: open_session(path, threads) for name, path in paths.items()}
                    for tokens, behind in SHAPES:
                        ids = np.random.default_rng(0).integers(3, 4000, tokens)
                        feed = text_feed(ids, past, np.array([tokens - 1]), behind=behind)
                        logits = {name: run(feed)[0] for name, run in sides.items()}
                        seconds = time_in_turn(sides, feed)
                        chosen = np.array(seconds.pop("chosen"))
                        for name, values in seconds.items():
                            difference = float(np.abs(logits[name] - logits["chosen"]).max())
                            ratios = np.array(values) / chosen
                            low, median, high = (round(float(np.percentile(ratios, q)), 3) for q in (10, 50, 90))
                            rows.append(
                                {
                                    "student": student_name,
                                    "precision": precision,
                                    "variant": name,
                                    "shape": f"{tokens} behind {behind}",
                                    "threads": threads,
                                    "chosen_ms": round(float(np.median(chosen)) * 1e3, 3),
                                    "time_over_chosen": {"median": median, "p10": low, "p90": high},
                                    "max_difference": difference,
                                }
                            )
                            where = f"{student_name} {precision:12} {threads}t {tokens:3} behind {behind:<3}"
                            print(f"{where} {name:32} {median:.3f} ({low:.3f}-{high:.3f})  differs {difference:.2g}")
    write(options.out, rows)


if __name__ == "__main__":
    main()
