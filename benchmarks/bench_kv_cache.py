"""How an int8 KV cache changes the time of attention: GroupQueryAttention alone, int8 cache against float32, in turn.

Run from the repository's root: ``python -m benchmarks.bench_kv_cache``. The heads are those of R1-Distill-Qwen-1.5B (12
over 2, 128 wide); past and present are one buffer, as in the runtime. A float16 cache runs too, to show why it is
refused. Each side's output is compared with float32's before it is timed; ratios are its time over float32's, median of
paired rounds with p10 and p90. One JSON line per row in benchmarks/results/kv_cache.jsonl.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.result_lines import RESULTS, Row, header, write
from edgecompress.graph.sessions import session_options
from edgecompress.lower.kv_cache import quantize_cache

HEADS, KV_HEADS, SIZE = 12, 2, 128
KEY, VALUE = "past_key_values.0.key", "past_key_values.0.value"
SHAPES = ((1, 511), (1, 2047), (1, 8191), (128, 0), (512, 0), (512, 1536))  # new tokens, tokens before them
DTYPES = {"float32": np.float32, "int8": np.int8, "float16": np.float16}
ROUNDS = 15


def attention(cache: str, scale: float, threads: int) -> ort.InferenceSession:
    kept = "float16" if cache == "float16" else "float"
    model = ir.from_onnx_text(f"""
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[b,t,{HEADS * SIZE}] q, float[b,t,{KV_HEADS * SIZE}] k, float[b,t,{KV_HEADS * SIZE}] v,
           {kept}[b,{KV_HEADS},c,{SIZE}] pk, {kept}[b,{KV_HEADS},c,{SIZE}] pv, int32[b] last, int32 total)
        => (float[b,t,{HEADS * SIZE}] y, {kept}[b,{KV_HEADS},c,{SIZE}] ok, {kept}[b,{KV_HEADS},c,{SIZE}] ov)
        {{ y, ok, ov = com.microsoft.GroupQueryAttention
             <num_heads = {HEADS}, kv_num_heads = {KV_HEADS}> (q, k, v, pk, pv, last, total) }}
        """)
    names = {"pk": KEY, "pv": VALUE, "ok": "present.0.key", "ov": "present.0.value"}
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.name = names.get(value.name or "", value.name)
    if cache == "int8":
        quantize_cache(model, {name: np.full((KV_HEADS, SIZE), scale, dtype=np.float32) for name in (KEY, VALUE)})
    return ort.InferenceSession(
        ir.to_proto(model).SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )


def bound(
    session: ort.InferenceSession, cache: str, inputs: dict[str, np.ndarray], past: int, scale: float
) -> ort.IOBinding:
    """Past and present in one buffer that holds the first ``past`` of the keys and values, [B, S, Hk * D] in all."""
    binding = session.io_binding()
    total = inputs["k"].shape[1]
    for name, array in inputs.items():
        binding.bind_cpu_input(name, np.ascontiguousarray(array[:, past:] if name in "kv" else array))
    binding.bind_cpu_input("last", np.array([total - 1], dtype=np.int32))
    binding.bind_cpu_input("total", np.array(total, dtype=np.int32))
    for name, present, array in ((KEY, "present.0.key", inputs["k"]), (VALUE, "present.0.value", inputs["v"])):
        whole = array.reshape(1, total, KV_HEADS, SIZE).transpose(0, 2, 1, 3)
        numbers = np.rint(whole / scale) if cache == "int8" else whole
        value = ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(numbers, dtype=DTYPES[cache]))
        binding.bind_ortvalue_input(name, value)
        binding.bind_ortvalue_output(present, value)
    binding.bind_output("y")
    return binding


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--out", type=Path, default=RESULTS / "kv_cache.jsonl")
    options = parser.parse_args()
    rows: list[Row] = [header()]
    rng = np.random.default_rng(0)
    for threads in options.threads:
        for tokens, past in SHAPES:
            inputs = {"q": rng.normal(size=(1, tokens, HEADS * SIZE)).astype(np.float32)}
            inputs |= {n: rng.normal(size=(1, past + tokens, KV_HEADS * SIZE)).astype(np.float32) for n in "kv"}
            scale = float(max(np.abs(inputs[n]).max() for n in "kv") / 127)
            sides = {cache: attention(cache, scale, threads) for cache in DTYPES}
            bindings = {cache: bound(session, cache, inputs, past, scale) for cache, session in sides.items()}
            seconds: dict[str, list[float]] = {cache: [] for cache in DTYPES}
            outputs = {}
            for cache, session in sides.items():
                session.run_with_iobinding(bindings[cache])
                outputs[cache] = bindings[cache].copy_outputs_to_cpu()[-1]
                assert np.abs(outputs[cache] - outputs["float32"]).max() < 0.1, cache
            for _ in range(ROUNDS):
                for cache, session in sides.items():
                    started = time.perf_counter()
                    session.run_with_iobinding(bindings[cache])
                    seconds[cache].append(time.perf_counter() - started)
            for cache in ("int8", "float16"):
                ratios = np.array(seconds[cache]) / np.array(seconds["float32"])
                low, median, high = (round(float(np.percentile(ratios, q)), 3) for q in (10, 50, 90))
                row: Row = {"new_tokens": tokens, "behind": past, "threads": threads, "cache": cache}
                rows.append(row | {"time_over_float32": {"median": median, "p10": low, "p90": high}})
                print(json.dumps(rows[-1]), flush=True)
    write(options.out, rows)


if __name__ == "__main__":
    main()
