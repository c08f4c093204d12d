"""R1-Distill-Qwen-1.5B's shape in int4 on every side, in one process, at equal threads. See ``--help``.

Run from the repository's root: ``python -m benchmarks.bench_decoder --work FOLDER``. One process a thread count. Our
logits are held against our own graph run from scratch before anything is timed; the peers quantize otherwise, so theirs
are not comparable on random weights. Sides run in turn, each round in a new order; a row is the median of the rounds,
its ratios are taken round by round. The roof is bytes read a token times tokens a second over the read bandwidth.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note, spread
from benchmarks.hosts import describe_host
from benchmarks.ours_decoder import Ours, export_bundle
from benchmarks.peers_decoder import Genai, LlamaCpp, Side, make_genai, make_gguf
from benchmarks.r1_shape import make_checkpoint

RESULTS = Path(__file__).with_name("results") / "decoder.jsonl"
PROMPTS = (128, 1024)
CONTEXTS = (128, 2048)
DECODED_TOKENS = 24
SETTLE_S = 0.2


def read_bandwidth(threads: int) -> float:
    """Bytes a second that ``threads`` threads read together: the best of several dot products over 1 GiB."""
    from concurrent.futures import ThreadPoolExecutor

    data = np.ones(1 << 28, dtype=np.float32)
    parts = np.array_split(data, threads)
    best = float("inf")
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(8):
            started = time.perf_counter()
            list(pool.map(lambda part: np.dot(part, part), parts))
            best = min(best, time.perf_counter() - started)
    return data.nbytes / best


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(10, 4000, length).tolist()


def in_turn(sides: list[Side], rounds: int, call: Callable[[Side], float]) -> dict[str, list[float]]:
    """Seconds of each side and round."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    shuffle = random.Random(0)
    for _ in range(rounds):
        for side in shuffle.sample(sides, len(sides)):
            time.sleep(SETTLE_S)
            seconds[side.name].append(call(side))
    return seconds


def time_prefill(side: Side, ids: list[int]) -> float:
    started = time.perf_counter()
    side.prefill(ids)
    return time.perf_counter() - started


def time_decode(side: Side, context: int) -> float:
    side.rewind(context)
    side.step(2)
    started = time.perf_counter()
    side.step(DECODED_TOKENS)
    return time.perf_counter() - started


def rows_of(
    kind: str, length: int, tokens: int, sides: list[Side], seconds: dict[str, list[float]], threads: int, roof: float
) -> list[dict[str, Any]]:
    rows = []
    peers = [side.name for side in sides if not side.ours]
    for side in sides:
        taken = seconds[side.name]
        rate = tokens / float(np.median(taken))
        row: dict[str, Any] = {
            "kind": "row",
            "what": kind,
            "tokens": length,
            "threads": threads,
            "name": side.name,
            "ours": side.ours,
            "tokens_per_s": round(rate, 2),
            "rounds": len(taken),
            "model_bytes": side.model_bytes,
        }
        if kind == "decode":
            read = side.weight_bytes_per_token + length * side.kv_bytes_per_token
            row |= {"bytes_read_per_token": read, "share_of_read_bandwidth": round(read * rate / roof, 3)}
        if side.ours:
            pairs = {name: [p / o for p, o in zip(seconds[name], taken, strict=True)] for name in peers}
            row["against"] = {name: spread(ratios) for name, ratios in pairs.items()}
        rows.append(row)
    return rows


def measure(work: Path, threads: int, rounds: int) -> list[dict[str, Any]]:
    roof = read_bandwidth(threads)
    results: list[dict[str, Any]] = [{"kind": "read bandwidth", "threads": threads, "bytes_per_s": round(roof)}]
    sides: list[Side] = []
    for bundle in sorted(work.glob("ours-*.bundle")):
        sides.append(Ours(bundle, threads))
    for name, make in (
        ("onnxruntime-genai int4 block 32", lambda name: Genai(name, work / "genai-32", threads)),
        ("onnxruntime-genai int4 block 128", lambda name: Genai(name, work / "genai-128", threads)),
        ("llama.cpp Q4_0", lambda name: LlamaCpp(name, work / "q4_0.gguf", threads)),
    ):
        try:
            sides.append(make(name))
        except Exception as error:  # a peer that does not load is a row, not a crash
            results.append({"kind": "not run", "name": name, "threads": threads, "reason": str(error)[:300]})
    for side in sides:
        if isinstance(side, Ours):
            row = {"kind": "check", "name": side.name, "threads": threads, "bytes_of_cache_copied": 0}
            results.append(row | {"least_logit_correlation": round(side.check(prompt(40)), 5)})
    for length in PROMPTS:
        note(f"{threads} thread(s): prefill of {length}")
        ids = prompt(length)
        for side in sides:
            side.prefill(ids[:32])
        seconds = in_turn(sides, rounds, lambda side, ids=ids: time_prefill(side, ids))  # type: ignore[misc]
        results += rows_of("prefill", length, length, sides, seconds, threads, roof)
    for context in CONTEXTS:
        note(f"{threads} thread(s): decode at {context}")
        for side in sides:
            side.prefill(prompt(context))
        seconds = in_turn(sides, 2 * rounds, lambda side, context=context: time_decode(side, context))  # type: ignore[misc]
        results += rows_of("decode", context, DECODED_TOKENS, sides, seconds, threads, roof)
    return results


def prepare(args: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Make the checkpoint, the peers' models and our bundle, unless they are there already."""
    checkpoint = work / "r1-shape"
    if not (checkpoint / "model.safetensors.index.json").exists():
        note("making the checkpoint")
        make_checkpoint(checkpoint)
    rows = []
    for block in args.block_size:
        bundle, told = work / f"ours-{block}.bundle", work / f"ours-{block}.json"
        if not bundle.exists():
            note(f"edgecompress export, block {block}")
            told.write_text(json.dumps(export_bundle(checkpoint, bundle, block, args.target)), encoding="utf-8")
        rows.append(json.loads(told.read_text(encoding="utf-8")))
    if not args.ours_only:
        for block in (32, 128):
            make_genai(checkpoint, work / f"genai-{block}", block)
        make_gguf(checkpoint, work / "q4_0.gguf")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and models, 12 GB; kept")
    parser.add_argument("--target", default="local")
    parser.add_argument("--block-size", type=int, nargs="+", default=[128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="make no peer")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--prepare", action="store_true", help="make what is not there yet, and measure nothing")
    args = parser.parse_args()
    work = args.work.resolve()
    if args.measure is not None:
        rows = measure(work, args.measure, args.rounds)
        (work / f"rows-{args.measure}.json").write_text(json.dumps(rows), encoding="utf-8")
        return 0
    os.environ["HF_HUB_OFFLINE"] = "1"
    work.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = [{"kind": "header", "host": describe_host()}]
    lines += prepare(args, work)
    if args.prepare:
        return 0
    for threads in args.threads:
        command = [sys.executable, "-m", "benchmarks.bench_decoder", "--work", str(work), "--rounds", str(args.rounds)]
        settings = {"OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": "1"}
        subprocess.run([*command, "--measure", str(threads)], check=True, env={**os.environ, **settings})
        lines += json.loads((work / f"rows-{threads}.json").read_text(encoding="utf-8"))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    note(f"{len(lines) - 1} rows in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
