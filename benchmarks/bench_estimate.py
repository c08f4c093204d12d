"""How far ``edgecompress estimate`` is off on this machine: for other thread counts, and for other students.

    python -m benchmarks.bench_estimate --work DIR

Students are the real MiniLM and shapes of others with random weights (speed is real, answers are not): a MiniLM of
twelve layers, DistilBERT, a small BERT, and decoders. Each is exported in each precision, and measured with one thread
and with two, in short rounds over all of them: the host is shared, and one long measurement of a bundle would depend on
that minute. Each call, each node and each of the machine's peaks is the median of the rounds. Then factors are fitted
to a part of the bundles and compared with the rest:

- ``threads``: fitted to all students at one thread count, predicting the other;
- ``student``: fitted to all students of its kind but one, predicting that one;
- ``from one``: fitted to MiniLM alone (of decoders, to the smallest alone), predicting the others.

One JSON line per predicted call with its error, and one per kind of prediction, in benchmarks/results/estimate.jsonl.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note
from benchmarks.minilm import default_checkpoint
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.export.pipeline import export
from edgecompress.formats.codec import dumps
from edgecompress.formats.manifest import open_bundle
from edgecompress.formats.profile import read_profile
from edgecompress.kinds import find_kind
from edgecompress.loading import open_models
from edgecompress.profile.efficiency import fit, predicted, usual_peaks
from edgecompress.profile.host import describe_host
from edgecompress.profile.operators import OperatorTimer
from edgecompress.profile.peaks import measure_peaks
from edgecompress.profile.workload import workloads_of
from edgecompress.types.profile import Noise, OperatorProfile, Profile
from edgecompress.types.recipe import QualityRecipe, Recipe, RuntimeRecipe, StudentRecipe

THREADS = (1, 2)
CALLS, NEW_TOKENS = 4, 16
SHAPES = {"encoder": "1x16,1x64,1x128,8x128", "decoder": "1x64,1x256"}
BOUND = 0.25
_NO_QUALITY_BUDGET = QualityRecipe(min_fidelity=1e-6, min_top1=0, max_kl=1e9, max_perplexity_ratio=1e9, samples=4)


@dataclass(frozen=True)
class Student:
    """``shape``: of its configuration; none for the real one."""

    name: str
    model_type: str
    shape: dict[str, int]


BERTS = (
    Student("minilm-l6", "bert", {}),
    Student(
        "minilm-l12",
        "bert",
        {"hidden_size": 384, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 1536},
    ),
    Student(
        "bert-small",
        "bert",
        {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 2048},
    ),
    Student(
        "distilbert-shape",
        "bert",
        {"hidden_size": 768, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 3072},
    ),
)
_QWEN = {"vocab_size": 32768, "max_position_embeddings": 4096}
QWENS = tuple(
    Student(
        f"qwen2-{hidden}x{layers}",
        "qwen2",
        _QWEN
        | {"hidden_size": hidden, "num_hidden_layers": layers, "intermediate_size": between}
        | {"num_attention_heads": hidden // 64, "num_key_value_heads": 2},
    )
    for hidden, layers, between in ((256, 6, 1024), (512, 8, 2048), (896, 12, 4864))
)
ENCODERS = (("fp32", "none"), ("int8-dynamic", "none"), ("int8-dynamic", "encoder"))
DECODERS = (("int4-weights", "matmul,attention,layer"), ("int8-weights", "matmul,attention,layer"))


def checkpoint(student: Student, work: Path) -> Path:
    """The real one's folder, or one that is written with random weights."""
    real = default_checkpoint()
    if not student.shape:
        return real
    folder = work / student.name
    if (folder / "config.json").exists():
        return folder
    import torch
    import transformers

    torch.manual_seed(0)
    kind = {"bert": ("BertConfig", "AutoModel"), "qwen2": ("Qwen2Config", "AutoModelForCausalLM")}[student.model_type]
    config = getattr(transformers, kind[0])(**student.shape)
    model = getattr(transformers, kind[1]).from_config(config)
    model.save_pretrained(folder)
    if student.model_type == "bert":
        for name in ("tokenizer.json", "tokenizer_config.json", "vocab.txt", "special_tokens_map.json"):
            if (real / name).exists():
                shutil.copy(real / name, folder / name)
    else:
        from benchmarks.r1_shape import save_tokenizer

        save_tokenizer(folder)
    return folder


def typical(rounds: Sequence[Profile]) -> Profile:
    """Of the same bundle's rounds: the median of each call's time and of each node's."""
    calls = []
    for same in zip(*(each.operators for each in rounds), strict=True):
        nodes = tuple(
            replace(alike[0], ms=float(np.median([node.ms for node in alike])))
            for alike in zip(*(call.operators for call in same), strict=True)
        )
        usual = float(np.median([call.call_ms for call in same]))
        calls.append(replace(same[0], call_ms=usual, nodes_ms=sum(node.ms for node in nodes), operators=nodes))
    peaks = [at for each in rounds for at in each.peaks]
    return replace(rounds[0], operators=tuple(calls), peaks=tuple(usual_peaks(threads, peaks) for threads in THREADS))


def export_student(student: Student, work: Path) -> dict[str, Path]:
    """Precision and kernels -> a bundle; one that is there already is taken."""
    found = {}
    decoder = student.model_type == "qwen2"
    for precision, kernels in DECODERS if decoder else ENCODERS:
        name = f"{student.name}-{precision}-{kernels.split(',')[0]}"
        bundle = found[name] = work / f"{name}.bundle"
        if not bundle.exists():
            note(f"export {name}")
            source = StudentRecipe(source=str(checkpoint(student, work)))
            if not decoder:
                source = replace(source, task="feature-extraction" if student.shape else None)
            export(
                Recipe(
                    precision=precision,
                    student=source,
                    quality=_NO_QUALITY_BUDGET,
                    runtime=RuntimeRecipe(kernels=kernels),
                ),
                bundle,
            )
    return found


def measured(bundles: Mapping[str, Path]) -> dict[str, Profile]:
    """One round: peaks, and a few calls of everything with either thread count, one after the other."""
    peaks = {threads: measure_peaks(threads) for threads in THREADS}
    found = {}
    for name, bundle in bundles.items():
        manifest, folder = open_bundle(bundle)
        kind = find_kind(manifest.kind).profile
        calls: list[OperatorProfile] = []
        for threads in THREADS:
            source = open_models(manifest, folder, threads=threads)
            subject = kind.open_subject(source)
            timer = OperatorTimer(source, calls=CALLS, peaks=peaks[threads])
            for workload in workloads_of(manifest, SHAPES[manifest.kind]):
                prepared = subject.prepare(workload, NEW_TOKENS)
                prepared.call()
                prepared.clear()
                for _ in range(CALLS):
                    prepared.call()
                ms = {stage: float(np.median(seconds)) * 1e3 for stage, seconds in prepared.stages.items()}
                timer.run(workload, {name: ms[stage] / often for name, (stage, often) in prepared.phases.items()})
            calls += timer.finish()[1]
            timer.close()
            subject.close()
        found[name] = Profile(
            **{field: getattr(manifest, field) for field in ("tool_version", "name", "task", "precision")},
            bundle=name,
            identity="",
            target=manifest.target.name,
            bundle_bytes=0,
            verified=True,
            host=describe_host(),
            noise=Noise(loop_ms=0, spread=0, slowest_over_fastest=1, noisy=False),
            measurements=(),
            peaks=tuple(peaks.values()),
            operators=tuple(calls),
        )
    return found


def rounds_of(bundles: Mapping[str, Path], rounds: int, work: Path) -> dict[str, list[Profile]]:
    """What is there already is read."""
    found: dict[str, list[Profile]] = {name: [] for name in bundles}
    for number in range(rounds):
        folder = work / f"round-{number}"
        if not folder.exists():
            note(f"round {number}")
            part = work / f".round-{number}"
            shutil.rmtree(part, ignore_errors=True)
            part.mkdir()
            for name, profile in measured(bundles).items():
                (part / f"{name}.json").write_text(dumps(profile), encoding="utf-8")
            part.rename(folder)
        for name in bundles:
            found[name].append(read_profile(folder / f"{name}.json"))
    return found


def only(profile: Profile, threads: int) -> Profile:
    return replace(profile, operators=tuple(call for call in profile.operators if call.threads == threads))


def errors(kind: str, made_of: Iterable[Profile], held: dict[str, Profile]) -> list[dict[str, Any]]:
    """A row a call of ``held``: what it took over what was predicted, less 1."""
    made = fit(made_of)
    rows = []
    for name, each in held.items():
        peaks = {at.threads: at for at in each.peaks}
        for call in each.operators:
            expected = predicted(made, call, peaks[call.threads]) * 1e3
            rows.append(
                {
                    "kind": kind,
                    "bundle": name,
                    "workload": call.workload,
                    "phase": call.phase,
                    "threads": call.threads,
                    "measured_ms": round(call.call_ms, 4),
                    "predicted_ms": round(expected, 4),
                    "error": round(expected / call.call_ms - 1, 4),
                    "fit_spread": round(made.spread, 4),
                    "within_span": bool(abs(np.log(call.call_ms / expected)) <= 2 * made.spread),
                }
            )
    return rows


def predictions(by_student: dict[str, dict[str, Profile]]) -> list[dict[str, Any]]:
    """All three kinds, of students of one kind."""
    rows = []
    every = {name: each for found in by_student.values() for name, each in found.items()}
    for fitted, asked in (THREADS, THREADS[::-1]):
        held = {name: only(each, asked) for name, each in every.items()}
        rows += errors("threads", [only(each, fitted) for each in every.values()], held)
    for held in by_student.values():
        rows += errors("student", [each for name, each in every.items() if name not in held], held)
    first = next(iter(by_student))
    others = {name: each for name, each in every.items() if name not in by_student[first]}
    return rows + errors("from one", by_student[first].values(), others)


def summary(kind: str, what: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    off = np.abs([row["error"] for row in rows])
    return {
        "summary": kind,
        "students": what,
        "calls": len(rows),
        f"within_{BOUND:.0%}": round(float(np.mean(off <= BOUND)), 3),
        "median_error": round(float(np.median(off)), 4),
        "p90_error": round(float(np.percentile(off, 90)), 4),
        "worst_error": round(float(off.max()), 4),
        "within_span": round(float(np.mean([row["within_span"] for row in rows])), 3),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="for bundles and rounds; existing ones are used again")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "estimate.jsonl")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [header()]
    kinds = {"encoders": BERTS, "decoders": QWENS}
    bundles = {student.name: export_student(student, options.work) for of in kinds.values() for student in of}
    everything = {name: path for found in bundles.values() for name, path in found.items()}
    found = {name: typical(each) for name, each in rounds_of(everything, options.rounds, options.work).items()}
    for what, students in kinds.items():
        rows = predictions({s.name: {name: found[name] for name in bundles[s.name]} for s in students})
        for kind in ("threads", "student", "from one"):
            lines.append(summary(kind, what, [row for row in rows if row["kind"] == kind]))
            note(json.dumps(lines[-1]))
        lines += rows
    write(options.out, lines)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
