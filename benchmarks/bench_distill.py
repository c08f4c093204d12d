"""Is a distilled student better than one of its size that had no teacher, and does learning under rounding pay?

    python -m benchmarks.bench_distill FOLDER --seeds 0 1 2

Students and data stay in FOLDER, and existing ones are used again. Text is the prose of ``benchmarks.small_decoder``;
figures are measured on held-out text. Intervals are 95 %, by bootstrap over held-out texts.

- encoder: all-MiniLM-L6-v2 into three of its layers. Compared with the same layers untrained (truncated), and trained
  without the teacher (SimCSE, which sees each text twice per step), on the same texts in the same order, with as many
  steps.
- decoder: a decoder that ``benchmarks.small_decoder`` trains, into half its size. Compared with the same size from the
  same random weights, on the same tokens, by cross-entropy.
- rounding: the fp32 students of both, learning under int4-weights and under int8 with one scale per tensor, taught by
  their unrounded selves. For the encoder with int4-weights the exported bundles are measured too; for the others the
  model that computes with rounded values.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks import small_decoder
from benchmarks.bench_encoder import note
from benchmarks.distill_parts import (
    MAX_TOKENS,
    Contrastive,
    corpus_in,
    cosines,
    held_out_stream,
    interval,
    learn_alone,
    load,
    mean_with_interval,
    neighbours_kept,
    perplexity_with_interval,
    recovered,
    vectors_of,
    window_divergences,
    window_losses,
    with_dropout,
    write_documents,
    write_texts,
)
from benchmarks.minilm import default_checkpoint
from benchmarks.result_lines import RESULTS, Row, header, lines_of, write
from benchmarks.small_decoder import Settings
from edgecompress.distill.examples import order_of
from edgecompress.distill.objective import Objective
from edgecompress.distill.plan import Plan, make_plan
from edgecompress.distill.rounding import Rounding
from edgecompress.distill.run import distill, load_pair
from edgecompress.distill.tokenizers import load_tokenizer
from edgecompress.types.distill import DistillRecipe, LossRecipe, NewStudentRecipe, TrainingRecipe

ROUNDINGS = ("int4-weights", "int8-per-tensor")
DECODER_RATES = {"int4-weights": 2e-5, "int8-per-tensor": 2e-6}  # of five and three, on seed 0
LAYERS = 3
SIZES = {
    "small": Settings(vocab_size=1024, hidden_size=128, intermediate_size=384, context_tokens=128, batch=16),
    "whole": Settings(),
}
SHAPES = {
    ("small", "half"): NewStudentRecipe(hidden=96, layers=3, intermediate=256, heads=4, kv_heads=2),
    ("whole", "half"): NewStudentRecipe(hidden=192, layers=3, intermediate=512, heads=4, kv_heads=2),
    ("small", "half of the layers"): NewStudentRecipe(layers=2),
    ("whole", "half of the layers"): NewStudentRecipe(layers=2),
}


@dataclass(frozen=True, kw_only=True)
class Bench:
    folder: Path
    seeds: tuple[int, ...]
    encoder_steps: int
    decoder_steps: int
    rounding_steps: int
    teacher_steps: int
    size: str  # one of SIZES
    shapes: tuple[str, ...]
    held_out_tokens: int

    @property
    def window(self) -> int:
        return SIZES[self.size].context_tokens

    def teach(self, plan: Plan, name: str) -> tuple[Path, float]:
        """The student, and the seconds that its training took."""
        output = self.folder / name
        if not output.exists():
            distill(plan, output, show=note)
        return output, float(json.loads((output / "distillation.json").read_text())["seconds"])


def order_for(plan: Plan) -> Any:
    training = plan.recipe.training
    return order_of([len(e.ids) for e in plan.examples], training.batch, training.steps or 0, training.seed)


def encoder_recipe(bench: Bench, seed: int) -> DistillRecipe:
    training = TrainingRecipe(steps=bench.encoder_steps, batch=32, max_length_tokens=MAX_TOKENS, seed=seed)
    return DistillRecipe(student=NewStudentRecipe(layers=LAYERS), training=training)


def encoder_rows(bench: Bench) -> Iterator[Row]:
    """A row for each arm and seed, and one for each comparison with the distilled student of the first seed."""
    teacher = default_checkpoint()
    data, held_out = write_texts(bench.folder)
    far = vectors_of(load(teacher), teacher, held_out)
    kept: dict[str, tuple[Any, Any]] = {}

    def row(arm: str, seed: int, model: Any, seconds: float) -> Row:
        vectors = vectors_of(model, teacher, held_out)
        near, same = cosines(far, vectors), neighbours_kept(far, vectors)
        kept.setdefault(arm, (near, same))
        return {
            "part": "encoder",
            "arm": arm,
            "seed": seed,
            "steps": 0 if arm == "truncated" else bench.encoder_steps,
            "seconds": round(seconds, 1),
            "texts": len(held_out),
            "cosine": mean_with_interval(near),
            "top10": mean_with_interval(same),
        }

    for seed in bench.seeds:
        plan = make_plan(str(teacher), encoder_recipe(bench, seed), data)
        if seed == bench.seeds[0]:
            yield row("truncated", seed, load_pair(plan)[1].eval(), 0.0)
        output, seconds = bench.teach(plan, f"encoder-{seed}")
        yield row("distilled", seed, load(output), seconds)
        alone, seconds = learn_alone(
            with_dropout(replace_rate(plan, 5e-5), 0.1),
            bench.folder / f"simcse-{seed}",
            Contrastive,
            order_for(plan),
            note,
        )
        yield row("without the teacher (SimCSE)", seed, alone, seconds)
    for arm in list(kept)[:1] + list(kept)[2:]:
        figures = {}
        for name, better, worse in zip(("cosine", "top10"), kept["distilled"], kept[arm], strict=True):
            figures[name] = mean_with_interval(better - worse)
        yield {"part": "encoder", "comparison": f"distilled less {arm}", **figures}


def replace_rate(plan: Plan, rate: float) -> Plan:
    """SimCSE's own is far lower: at ours it drifts from everything that the layers knew."""
    return replace(plan, recipe=replace(plan.recipe, training=replace(plan.recipe.training, learning_rate=rate)))


def decoder_teacher(bench: Bench) -> Path:
    folder = bench.folder / f"decoder-{bench.size}"
    if not folder.exists():
        corpus = corpus_in(bench.folder)
        small_decoder.train(folder, SIZES[bench.size], steps=bench.teacher_steps, show=True, corpus=corpus)
    return folder


def decoder_recipe(bench: Bench, seed: int, shape: NewStudentRecipe, **loss: float) -> DistillRecipe:
    training = TrainingRecipe(
        steps=bench.decoder_steps,
        batch=SIZES[bench.size].batch,
        max_length_tokens=bench.window,
        seed=seed,
        learning_rate=3e-3,
        weight_decay=0.05,
    )
    return DistillRecipe(student=shape, training=training, loss=LossRecipe(**loss))  # type: ignore[arg-type]


def decoder_rows(bench: Bench) -> Iterator[Row]:
    teacher, data = decoder_teacher(bench), write_documents(bench.folder)
    whole = load(teacher)
    stream = held_out_stream(bench.folder, teacher, bench.held_out_tokens)
    losses = {"teacher": window_losses(whole, stream, bench.window)}
    yield {
        "part": "decoder",
        "arm": "teacher",
        "steps": bench.teacher_steps,
        "size": bench.size,
        "parameters": sum(p.numel() for p in whole.parameters()),
        **perplexity_with_interval(losses["teacher"]),
    }
    for seed in bench.seeds:
        for name in bench.shapes:
            shape, stem = SHAPES[bench.size, name], f"{bench.size}-{name.replace(' ', '-')}-{seed}"
            plan = make_plan(str(teacher), decoder_recipe(bench, seed, shape, logits=1.0, cross_entropy=0.25), data)
            output, seconds = bench.teach(plan, f"decoder-{stem}")
            arms = [("distilled", load(output), seconds)]
            alone = make_plan(str(teacher), decoder_recipe(bench, seed, shape, cross_entropy=1.0), data)
            work = bench.folder / f"alone-{stem}"
            arms.append(("alone", *learn_alone(alone, work, Objective, order_for(alone), note)))
            for arm, found, took in arms:
                losses[f"{name} {arm} {seed}"] = window_losses(found, stream, bench.window)
                yield {
                    "part": "decoder",
                    "arm": f"{name}, {arm}",
                    "seed": seed,
                    "parameters": sum(p.numel() for p in found.parameters()),
                    "steps": bench.decoder_steps,
                    "tokens": int(np.array([len(e.ids) for e in plan.examples])[order_for(plan)].sum()),
                    "seconds": round(took, 1),
                    **perplexity_with_interval(losses[f"{name} {arm} {seed}"]),
                }
            a, b = (losses[f"{name} {arm} {seed}"] for arm in ("distilled", "alone"))
            ratio = interval(lambda rows, a=a, b=b: math.exp(a[rows].mean() - b[rows].mean()), len(a))
            yield {
                "part": "decoder",
                "comparison": f"{name}: perplexity of distilled over alone",
                "seed": seed,
                "ratio": round(math.exp(a.mean() - b.mean()), 4),
                "ci95": ratio,
            }


def rounding_recipe(bench: Bench, start: Path, rounding: str, seed: int, *, decodes: bool) -> DistillRecipe:
    training = TrainingRecipe(
        steps=bench.rounding_steps,
        batch=SIZES[bench.size].batch if decodes else 32,
        max_length_tokens=bench.window if decodes else MAX_TOKENS,
        rounding=rounding,
        learning_rate=DECODER_RATES[rounding] if decodes else 1e-4,
        seed=seed,
        weight_decay=0.0,
    )
    return DistillRecipe(student=NewStudentRecipe(start=str(start)), training=training)


def encoder_rounding_rows(bench: Bench) -> Iterator[Row]:
    """The fp32 students, rounded as they are and after they have learned under the rounding."""
    data, held_out = write_texts(bench.folder)
    for seed in bench.seeds:
        yield from _encoder_rounding(bench, seed, data, held_out)


def _encoder_rounding(bench: Bench, seed: int, data: Path, held_out: list[str]) -> Iterator[Row]:
    start = bench.folder / f"encoder-{seed}"
    reference = vectors_of(load(start), start, held_out)
    lengths = [len(ids) for ids in load_tokenizer(start)(held_out)["input_ids"]]
    uncut = [place for place, length in enumerate(lengths) if length <= MAX_TOKENS]  # a bundle refuses longer ones
    for rounding in ROUNDINGS:
        recipe = rounding_recipe(bench, start, rounding, seed, decodes=False)
        taught, seconds = bench.teach(make_plan(str(start), recipe, data), f"encoder-{rounding}-{seed}")
        ways = {"the rounded model": lambda folder, r=rounding: rounded_vectors(folder, held_out, r)}
        if rounding == "int4-weights":
            whole = [held_out[place] for place in uncut]
            ways["the exported bundle"] = lambda folder, r=rounding, t=whole: bundle_vectors(bench, folder, t, r)
        for way, vectors in ways.items():
            far = reference if way == "the rounded model" else reference[uncut]
            lost = [1 - cosines(far, vectors(folder)) for folder in (start, taught)]
            yield {
                "part": "encoder-rounding",
                "seed": seed,
                "rounding": rounding,
                "measured_on": way,
                "texts": len(far),
                "steps": bench.rounding_steps,
                "seconds": round(seconds, 1),
                "cosine_lost_before": mean_with_interval(lost[0]),
                "cosine_lost_after": mean_with_interval(lost[1]),
                "recovered": recovered(*lost),
            }


def decoder_rounding_rows(bench: Bench) -> Iterator[Row]:
    """The same of the decoder's students, whose loss is in perplexity, and in KL from the unrounded one."""
    data = write_documents(bench.folder)
    for seed in bench.seeds:
        yield from _decoder_rounding(bench, seed, data)


def _decoder_rounding(bench: Bench, seed: int, data: Path) -> Iterator[Row]:
    start = bench.folder / f"decoder-{bench.size}-half-{seed}"
    stream = held_out_stream(bench.folder, start, bench.held_out_tokens)
    whole = window_losses(load(start), stream, bench.window)
    for rounding in ROUNDINGS:
        recipe = rounding_recipe(bench, start, rounding, seed, decodes=True)
        taught, seconds = bench.teach(make_plan(str(start), recipe, data), f"{start.name}-{rounding}")
        before, after = (rounded_losses(bench, folder, rounding, stream) for folder in (start, taught))
        apart = [divergences(bench, start, folder, rounding, stream) for folder in (start, taught)]
        yield {
            "part": "decoder-rounding",
            "seed": seed,
            "rounding": rounding,
            "measured_on": "the rounded model",
            "steps": bench.rounding_steps,
            "seconds": round(seconds, 1),
            "unrounded": perplexity_with_interval(whole),
            "before": perplexity_with_interval(before),
            "after": perplexity_with_interval(after),
            "recovered": recovered(before, after, whole),
            "kl_before": mean_with_interval(apart[0]),
            "kl_after": mean_with_interval(apart[1]),
            "recovered_of_kl": recovered(*apart),
        }


def rounded_vectors(folder: Path, texts: list[str], rounding: str) -> Any:
    model = load(folder)
    return vectors_of(model, folder, texts, Rounding(model, rounding, 128, blocks_tables=False))


def rounded_losses(bench: Bench, folder: Path, rounding: str, stream: torch.Tensor) -> Any:
    model = load(folder)
    return window_losses(model, stream, bench.window, Rounding(model, rounding, 128, blocks_tables=True))


def divergences(bench: Bench, start: Path, folder: Path, rounding: str, stream: torch.Tensor) -> Any:
    """From the float32 student that it started as."""
    model = load(folder)
    return window_divergences(
        load(start), model, stream, bench.window, Rounding(model, rounding, 128, blocks_tables=True)
    )


def bundle_vectors(bench: Bench, folder: Path, texts: list[str], precision: str) -> Any:
    """Of a bundle that `export` made of the checkpoint, run by our runtime."""
    from edgecompress.export.pipeline import export
    from edgecompress.runtime import load as load_bundle
    from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe

    bundle = bench.folder / f"{folder.name}.bundle"
    if not bundle.exists():
        student = StudentRecipe(source=str(folder), max_length_tokens=MAX_TOKENS)
        quality, runtime = QualityRecipe(min_fidelity=0.01), RuntimeRecipe(kernels="none")
        export(Recipe(precision=precision, student=student, quality=quality, runtime=runtime), bundle)
    with load_bundle(str(bundle)) as encoder:
        return np.concatenate([encoder.encode([text]) for text in texts]).astype(np.float64)


PARTS = {
    "encoder": encoder_rows,
    "encoder-rounding": encoder_rounding_rows,
    "decoder": decoder_rows,
    "decoder-rounding": decoder_rounding_rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where students and data stay")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--encoder-steps", type=int, default=1200)
    parser.add_argument("--decoder-steps", type=int, default=600)
    parser.add_argument("--rounding-steps", type=int, default=400)
    parser.add_argument("--teacher-steps", type=int, default=800, help="of the decoder that teaches")
    parser.add_argument("--size", choices=SIZES, default="whole", help="of the decoder that teaches")
    parser.add_argument("--shapes", nargs="+", choices=["half", "half of the layers"], default=["half"])
    parser.add_argument("--held-out-tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "distill.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    options.folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(
        folder=options.folder,
        seeds=tuple(options.seeds),
        encoder_steps=options.encoder_steps,
        decoder_steps=options.decoder_steps,
        rounding_steps=options.rounding_steps,
        teacher_steps=options.teacher_steps,
        size=options.size,
        shapes=tuple(options.shapes),
        held_out_tokens=options.held_out_tokens,
    )
    for part in options.parts:
        there = lines_of(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
        kept = [row for row in there if row.get("kind") != "header" and row["part"] != part]
        found: list[Row] = []
        for row in PARTS[part](bench):
            note(json.dumps(row))
            found.append(row)
            write(options.out, [header(threads=options.threads, torch=torch.__version__), *kept, *found])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
