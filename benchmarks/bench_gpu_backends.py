"""Whole students on a GPU: torch eager and compiled, ONNX Runtime's CUDA provider, TensorRT; ours behind ``load()``.

    python -m benchmarks.bench_gpu_backends --work DIR [--decoder CHECKPOINT]

Needs a CUDA device, PyTorch for it, and the packages of the backends (a side that cannot be opened is a row with the
reason). The encoder is the real MiniLM; the decoder R1-Distill-Qwen-1.5B's shape with random weights, made in DIR
unless given. Bundles are exported into DIR, engines are built there, and both are kept for the next run. Every side is
first compared with torch in float32 on the CPU. Then all are timed in turn, host to host: p50, p99, and the ratio of
torch eager's time to the side's, per round, with p10 and p90. For decoders: TTFT by prompt, TPOT after it, the bytes
that a step must read, and their share of the copy bandwidth measured in the same run. One JSON line per row, in
benchmarks/results/gpu_backends.jsonl. Exit code 3 without a CUDA device. Not yet run on a GPU.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.bench_gpu_attention import copy_bandwidth, refuse_without_gpu, summary
from benchmarks.gpu_sides import (
    STEPS_BEHIND,
    DecoderSide,
    EncoderSide,
    Feed,
    make_bundle,
    note,
    our_decoder,
    our_encoder,
    target_for,
    torch_decoder,
    torch_encoder,
)
from benchmarks.minilm import default_checkpoint
from benchmarks.r1_shape import make_checkpoint
from benchmarks.result_lines import RESULTS, header, write

BASE = "torch eager"
SHAPES = ((1, 16), (1, 128), (8, 128), (32, 128))
PROMPTS = (128, 2048)
STEPS = 64
LEAST_COSINE, LEAST_CORRELATION = 0.98, 0.98
WARM = 3  # rounds that are not counted: a graph is captured in the second
# Ours: backend and precision. Random weights have no quality to keep, so a decoder's budget is opened.
OURS = (("onnxruntime", "fp16"), ("tensorrt", "fp16"), ("tensorrt", "int8"), ("tensorrt-rtx", "fp16"))
DECODERS = (*OURS, ("tensorrt", "int4"))
OPEN_BUDGET = ("--max-kl", "100", "--max-perplexity-ratio", "100")
CONTEXT = ("--engine-context", str(max(PROMPTS) + STEPS_BEHIND))
Row = dict[str, Any]


def feed_of(batch: int, tokens: int) -> Feed:
    """Whole texts of the length asked for: no padding, so that every side computes the same."""
    ids = np.random.default_rng(batch * 1000 + tokens).integers(1000, 20000, (batch, tokens))
    ids[:, 0], ids[:, -1] = 101, 102
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}


def seconds_of(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def timed_in_turn(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, npt.NDArray[np.float64]]:
    """Seconds by side; in each round every side once."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + WARM):
        for name, call in calls.items():
            seconds = seconds_of(call)
            if number >= WARM:
                found[name].append(seconds)
    return {name: np.array(values) for name, values in found.items()}


def encoder_rows(
    sides: Sequence[EncoderSide], reference: EncoderSide, shapes: Sequence[tuple[int, int]], rounds: int
) -> list[Row]:
    """A row a shape and side. A side whose vectors are not the reference's gets no time."""
    rows: list[Row] = []
    for batch, tokens in shapes:
        feed = feed_of(batch, tokens)
        expected, right, cosines = reference.run(feed), [], {}
        for side in sides:
            got = side.run(feed)
            scale = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
            cosines[side.name] = float(((got * expected).sum(1) / np.maximum(scale, 1e-12)).min())
            if cosines[side.name] >= LEAST_COSINE:
                right.append(side)
        # The default arguments bind this round's side and feed.
        calls = {side.name: (lambda side=side, feed=feed: side.run(feed)) for side in right}
        times = timed_in_turn(calls, rounds)
        for side in sides:
            row: Row = {"kind": "encoder", "side": side.name, "batch": batch, "tokens": tokens}
            row["least_cosine"] = round(cosines[side.name], 5)
            if side.name in times:
                row |= _times(times, side.name)
                row["weight_bytes"] = side.weight_bytes
            else:
                row["reason"] = f"its vectors are not those of torch in float32: least cosine below {LEAST_COSINE}"
            rows.append(row)
    return rows


def _times(times: Mapping[str, npt.NDArray[np.float64]], name: str) -> Row:
    milliseconds = 1e3 * times[name]
    row: Row = {
        "p50_ms": round(float(np.median(milliseconds)), 4),
        "p99_ms": round(float(np.percentile(milliseconds, 99)), 4),
        "rounds": len(milliseconds),
    }
    if BASE in times and name != BASE:
        row["torch_eager_over_it"] = summary(times[BASE] / times[name])
    return row


def decoder_rows(
    sides: Sequence[DecoderSide],
    reference: Callable[[npt.NDArray[np.int64]], npt.NDArray[np.float32]],
    prompts: Sequence[int],
    rounds: int,
    bandwidth: float,
    vocab_size: int,
) -> list[Row]:
    """A row a prompt and side: TTFT, then STEPS tokens behind it. Every side is fed the same tokens."""
    rows: list[Row] = []
    rng = np.random.default_rng(0)
    for length in prompts:
        ids = rng.integers(10, vocab_size, length)
        tokens = [int(token) for token in rng.integers(10, vocab_size, STEPS)]
        expected, right, alike = reference(ids), [], {}
        for side in sides:
            alike[side.name] = float(np.corrcoef(side.prefill(ids), expected)[0, 1])
            if alike[side.name] >= LEAST_CORRELATION:
                right.append(side)
        first: dict[str, list[float]] = {side.name: [] for side in right}
        steps: dict[str, list[float]] = {side.name: [] for side in right}
        slowest: dict[str, list[float]] = {side.name: [] for side in right}
        for number in range(rounds + WARM):
            for side in right:
                ttft = seconds_of(lambda side=side, ids=ids: side.prefill(ids))
                each = [seconds_of(lambda side=side, token=token: side.step(token)) for token in tokens]
                if number >= WARM:
                    first[side.name].append(ttft)
                    steps[side.name].append(float(np.mean(each)))
                    slowest[side.name].extend(each)
        for side in sides:
            row: Row = {"kind": "decoder", "side": side.name, "prompt_tokens": length}
            row["correlation_with_float32"] = round(alike[side.name], 5)
            if side.name not in first:
                row["reason"] = f"its logits are not those of torch in float32: correlation below {LEAST_CORRELATION}"
                rows.append(row)
                continue
            tpot = np.array(steps[side.name])
            moved = side.weight_bytes + side.kv_bytes_per_token * (length + STEPS // 2)
            row |= {
                "ttft_ms": round(1e3 * float(np.median(first[side.name])), 3),
                "ttft_p99_ms": round(1e3 * float(np.percentile(first[side.name], 99)), 3),
                "tpot_ms": round(1e3 * float(np.median(tpot)), 4),
                "token_p99_ms": round(1e3 * float(np.percentile(slowest[side.name], 99)), 4),
                "tokens_per_s": round(1 / float(np.median(tpot)), 1),
                "bytes_a_step": moved,
                "share_of_copy_bandwidth": round(moved / float(np.median(tpot)) / bandwidth, 3),
                "rounds": rounds,
            }
            if BASE in first and side.name != BASE:
                row["ttft_torch_eager_over_it"] = summary(np.array(first[BASE]) / np.array(first[side.name]))
                row["tpot_torch_eager_over_it"] = summary(np.array(steps[BASE]) / tpot)
            rows.append(row)
    return rows


def opened(make: Callable[[], Any], name: str, rows: list[Row]) -> list[Any]:
    """The side, or a row that says why there is none."""
    try:
        return [make()]
    except Exception as error:  # whatever a peer or a missing library raises is a result here
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
        note(f"{name}: {reason}")
        rows.append({"kind": "absent", "side": name, "reason": reason})
        return []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="for bundles, which are kept")
    parser.add_argument("--decoder", type=Path, help="a checkpoint; the 1.5 B shape is made unless given")
    parser.add_argument("--only", choices=("encoder", "decoder"))
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_backends.jsonl")
    options = parser.parse_args()
    refuse_without_gpu()
    options.work.mkdir(parents=True, exist_ok=True)
    properties = torch.cuda.get_device_properties(0)
    target = target_for((properties.major, properties.minor))
    flush = torch.zeros(min(1 << 30, properties.total_memory // 16) // 4, device="cuda")
    bandwidth = copy_bandwidth(flush, 20)
    del flush
    gpu = {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "copy_bytes_per_s": round(bandwidth),
        "target": target,
    }
    rows: list[Row] = [header()]
    rows[0]["host"]["gpu"] = gpu
    if options.only in (None, "encoder"):
        rows += bench_encoder(default_checkpoint(), options.work, target, options.rounds)
        write_and_say(options.out, rows)
    if options.only in (None, "decoder"):
        checkpoint = options.decoder
        if checkpoint is None:
            checkpoint = options.work / "r1-shape"
            if not (checkpoint / "config.json").exists():
                make_checkpoint(checkpoint)
        rows += bench_decoder(checkpoint, options.work, target, max(options.rounds // 5, 3), bandwidth)
        write_and_say(options.out, rows)


def bench_encoder(checkpoint: Path, work: Path, target: str, rounds: int) -> list[Row]:
    rows: list[Row] = []
    makes: dict[str, Callable[[], EncoderSide]] = {
        BASE: lambda: torch_encoder(BASE, checkpoint, "cuda", compiled=False),
        "torch compiled": lambda: torch_encoder("torch compiled", checkpoint, "cuda", compiled=True),
    }
    for backend, precision in OURS:
        name = f"ours {backend} {precision}"

        def make(name: str = name, backend: str = backend, precision: str = precision) -> EncoderSide:
            bundle = make_bundle(checkpoint, work / f"encoder-{backend}-{precision}", target, backend, precision)
            return our_encoder(name, bundle, 0)

        makes[name] = make
    sides = [side for name, make in makes.items() for side in opened(make, name, rows)]
    reference = torch_encoder("reference", checkpoint, "cpu", compiled=False)
    rows += encoder_rows(sides, reference, SHAPES, rounds)
    for side in sides:
        side.close()
    return rows


def bench_decoder(checkpoint: Path, work: Path, target: str, rounds: int, bandwidth: float) -> list[Row]:
    rows: list[Row] = []
    most = max(PROMPTS) + STEPS_BEHIND
    vocab = int(json.loads((checkpoint / "config.json").read_text())["vocab_size"])
    reference = torch_decoder("reference", checkpoint, "cpu", compiled=False, most_tokens=most)
    makes: dict[str, Callable[[], DecoderSide]] = {
        BASE: lambda: torch_decoder(BASE, checkpoint, "cuda", compiled=False, most_tokens=most),
        "torch compiled": lambda: torch_decoder("torch compiled", checkpoint, "cuda", compiled=True, most_tokens=most),
    }
    for backend, precision in DECODERS:
        name = f"ours {backend} {precision}"

        def make(name: str = name, backend: str = backend, precision: str = precision) -> DecoderSide:
            out = work / f"decoder-{backend}-{precision}"
            flags = OPEN_BUDGET if backend == "onnxruntime" else (*OPEN_BUDGET, *CONTEXT)
            return our_decoder(name, make_bundle(checkpoint, out, target, backend, precision, *flags), 0)

        makes[name] = make
    sides = [side for name, make in makes.items() for side in opened(make, name, rows)]
    rows += decoder_rows(sides, reference.prefill, PROMPTS, rounds, bandwidth, vocab)
    for side in sides:
        side.close()
    del sides, reference
    gc.collect()
    return rows


def write_and_say(out: Path, rows: Sequence[Row]) -> None:
    """After each part: a run that is cut off leaves what it has."""
    write(out, rows)
    for row in rows:
        note(json.dumps(row, sort_keys=True))


if __name__ == "__main__":
    main()
