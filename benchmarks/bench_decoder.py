"""R1-Distill-Qwen-1.5B's shape in int4 on every side, at equal threads, each side in its own process. See ``--help``.

Run from the repository's root: ``python -m benchmarks.bench_decoder --work FOLDER``. Our logits are compared with our
own graph run from scratch before anything is timed; the peers quantize differently, so theirs are not comparable on
random weights. Sides run in turn, each round in a new order; a row is the median of the rounds, and its ratios are per
round. The roof is the read bandwidth, measured right before each turn of ours, because on a shared host it changes
twofold from minute to minute; the share of the roof is bytes read per token times tokens per second, per turn.

A peer that cannot share our environment runs with the python of its own: --python-genai (onnxruntime-genai, torch,
transformers), --python-llama (llama-cpp-python, gguf, torch, safetensors), --python-openvino (openvino-genai;
optimum-intel to make the model); or FOLDER/venvs/genai, /llama and /openvino if they exist; otherwise this python. A
missing peer gets a row with the reason.
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
from benchmarks.decoder_process import Process
from benchmarks.models_decoder import make_genai, make_gguf, make_openvino
from benchmarks.ours_decoder import export_bundle
from benchmarks.r1_shape import make_checkpoint
from benchmarks.result_lines import RESULTS, header, write

PROMPTS = (128, 1024)
CONTEXTS = (128, 2048)
DECODED_TOKENS = 24
SETTLE_S = 0.2


def prompt(length: int) -> list[int]:
    return np.random.default_rng(length).integers(10, 4000, length).tolist()


def in_turn(
    sides: list[Process],
    rounds: int,
    call: Callable[[Process], float],
    roof: Process | None = None,
) -> tuple[dict[str, list[float]], list[float]]:
    """Seconds of each side and round, and bytes a second that could be read right before the first of ours."""
    seconds: dict[str, list[float]] = {side.name: [] for side in sides}
    roofs = []
    shuffle = random.Random(0)
    for _ in range(rounds):
        asked = roof is None
        for side in shuffle.sample(sides, len(sides)):
            time.sleep(SETTLE_S)
            if roof is not None and side.ours and not asked:
                roofs.append(roof.bandwidth())
                asked = True
            seconds[side.name].append(call(side))
    return seconds, roofs


def rows_of(
    kind: str,
    length: int,
    tokens: int,
    sides: list[Process],
    seconds: dict[str, list[float]],
    threads: int,
    roofs: list[float],
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
            "huge_page_bytes": side.huge_page_bytes(),
        }
        if kind == "decode":
            read = side.weight_bytes_per_token + length * side.kv_bytes_per_token
            shares = [read * tokens / t / roof for t, roof in zip(taken, roofs, strict=True)]
            row |= {"bytes_read_per_token": read, "share_of_read_bandwidth": round(float(np.median(shares)), 3)}
            row["read_bandwidth_bytes_per_s"] = round(float(np.median(roofs)))
        if side.ours:
            pairs = {name: [p / o for p, o in zip(seconds[name], taken, strict=True)] for name in peers}
            row["against"] = {name: spread(ratios) for name, ratios in pairs.items()}
        rows.append(row)
    return rows


def start(
    work: Path, threads: int, pythons: dict[str, str], ours_only: bool
) -> tuple[list[Process], list[dict[str, Any]]]:
    """Every side in its own process, and a row for each: its settings, or why it does not run."""
    wanted = [("edgecompress", f"edgecompress {bundle.stem}", bundle) for bundle in sorted(work.glob("ours-*.bundle"))]
    if not ours_only:
        wanted += [
            ("genai", "onnxruntime-genai int4 block 32", work / "genai-32"),
            ("genai", "onnxruntime-genai int4 block 128", work / "genai-128"),
            ("llama.cpp", "llama.cpp Q4_0", work / "q4_0.gguf"),
            ("llama.cpp", "llama.cpp Q4_K_M", work / "q4_k_m.gguf"),
            ("openvino", "openvino-genai int4 group 128", work / "ov-int4"),
        ]
    sides, rows = [], []
    for kind, name, model in wanted:
        row = {"name": name, "threads": threads}
        try:
            sides.append(Process(kind, name, model, threads, pythons.get(kind, sys.executable)))
            rows.append({"kind": "side", **row, "settings": sides[-1].settings})
        except (OSError, RuntimeError) as error:  # a peer that does not load is a row, not a crash
            if kind == "edgecompress":
                raise SystemExit(str(error)) from error
            rows.append({"kind": "not run", **row, "reason": str(error)[:300]})
    return sides, rows


def measure(work: Path, threads: int, rounds: int, pythons: dict[str, str], ours_only: bool) -> list[dict[str, Any]]:
    results: list[dict[str, Any]] = []
    note(f"{threads} thread(s): starting")
    sides, rows = start(work, threads, pythons, ours_only)
    results += rows
    roof = Process("bandwidth", "read bandwidth", work, threads, sys.executable)
    try:
        for side in sides:
            if side.ours:
                row = {"kind": "check", "name": side.name, "threads": threads, "bytes_of_cache_copied": 0}
                results.append(row | {"least_logit_correlation": round(side.check(prompt(40)), 5)})
        for length in PROMPTS:
            note(f"{threads} thread(s): prefill of {length}")
            ids = prompt(length)
            for side in sides:
                side.prefill(ids[:32])
            seconds, _ = in_turn(sides, rounds, lambda side, ids=ids: side.prefill(ids))  # type: ignore[misc]
            results += rows_of("prefill", length, length, sides, seconds, threads, [])
        for context in CONTEXTS:
            note(f"{threads} thread(s): decode at {context}")
            for side in sides:
                side.prefill(prompt(context))
            step: Callable[[Process], float] = lambda side, context=context: side.decode(context, DECODED_TOKENS)  # type: ignore[misc]  # noqa: E731
            seconds, roofs = in_turn(sides, 2 * rounds, step, roof)
            results += rows_of("decode", context, DECODED_TOKENS, sides, seconds, threads, roofs)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error
    finally:
        for side in (*sides, roof):
            side.close()
    return results


def find_pythons(args: argparse.Namespace, work: Path) -> dict[str, str]:
    """Kind of side -> the python that runs it: as given, of the environment in ``work``, or this one."""
    found = {}
    given = {"genai": args.python_genai, "llama": args.python_llama, "openvino": args.python_openvino}
    for kind, python in given.items():
        own = work / "venvs" / kind / "bin" / "python"
        found["llama.cpp" if kind == "llama" else kind] = python or (str(own) if own.exists() else sys.executable)
    return found


def prepare(args: argparse.Namespace, work: Path, pythons: dict[str, str]) -> list[dict[str, Any]]:
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
        makers: list[tuple[str, Callable[[], Path]]] = [
            ("genai-32", lambda: make_genai(checkpoint, work / "genai-32", 32, pythons["genai"])),
            ("genai-128", lambda: make_genai(checkpoint, work / "genai-128", 128, pythons["genai"])),
            ("q4_0.gguf", lambda: make_gguf(checkpoint, work / "q4_0.gguf", "q4_0", pythons["llama.cpp"])),
            ("q4_k_m.gguf", lambda: make_gguf(checkpoint, work / "q4_k_m.gguf", "q4_k_m", pythons["llama.cpp"])),
            ("ov-int4", lambda: make_openvino(checkpoint, work / "ov-int4", pythons["openvino"])),
        ]
        for name, make in makers:
            try:
                make()
            except (OSError, subprocess.CalledProcessError) as error:  # told again as a row, when it does not start
                note(f"{name} was not made: {error}")
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for checkpoint and models, 15 GB; kept")
    parser.add_argument("--target", default="local")
    parser.add_argument("--block-size", type=int, nargs="+", default=[128])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ours-only", action="store_true", help="make and run no peer")
    parser.add_argument("--python-genai", metavar="PATH", help="python that has onnxruntime-genai")
    parser.add_argument("--python-llama", metavar="PATH", help="python that has llama-cpp-python and gguf")
    parser.add_argument("--python-openvino", metavar="PATH", help="python that has openvino-genai")
    parser.add_argument("--out", type=Path, default=RESULTS / "decoder.jsonl")
    parser.add_argument("--prepare", action="store_true", help="make what is missing, and measure nothing")
    args = parser.parse_args()
    work = args.work.resolve()
    os.environ["HF_HUB_OFFLINE"] = "1"
    work.mkdir(parents=True, exist_ok=True)
    pythons = find_pythons(args, work)
    lines: list[dict[str, Any]] = [header()]
    lines += prepare(args, work, pythons)
    if args.prepare:
        return 0
    for threads in args.threads:
        lines += measure(work, threads, args.rounds, pythons, args.ours_only)
    write(args.out, lines)
    note(f"{len(lines) - 1} rows in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
