"""Attention of one new token over a KV cache: ours, ONNX Runtime's and torch's, in turn, on the CPU.

Run from the repository's root: ``python -m benchmarks.bench_cpu_attention``. Two shapes, 12 query heads on 2 of 128 and
32 on 8 of 64, at 128 to 32,768 tokens, with one thread and with two. In each run the new token's key and value are
appended in place, on every side but torch's, whose cache has them already. Sides:

    ours float32, ours int8        CachedAttention, CachedAttentionInt8 (one scale per channel)
    ort float32                    GroupQueryAttention
    ort int8 channel, int8 tensor  the same with kv_cache_bit_width 8, one scale per channel or one for all
    torch float32                  scaled_dot_product_attention with enable_gqa

Each output is compared with float64 over the numbers in its cache before anything is timed. A side waits until the
threads of the previous side no longer spin, and makes one untimed call; its time is the minimum of a few calls. Ratios
are per round, median with p10 and p90. The bandwidth counts the bytes of keys and values that one call must read; the
read bandwidth of numpy.dot on the same threads is in the rows before. One JSON line per row.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from edgecompress_kernels.cpu.build import Attention, build
from edgecompress_kernels.reference import attention as exact_attention
from edgecompress_kernels.reference import rounded_cache
from onnx import TensorProto, helper

from benchmarks.decoder_process import Bandwidth
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.backends.onnxruntime_cpu.kernels import isa_here
from edgecompress.graph.sessions import session_options
from edgecompress.runtime.weights import huge_region

SETTLE_S = 0.25

SHAPES = ((12, 2, 128), (32, 8, 64))  # query heads, key and value heads, their size
TOKENS = (128, 512, 2048, 8192, 32_768)  # in the cache, the new one among them
OURS, OURS_INT8, FLOAT, TORCH = "ours float32", "ours int8", "ort float32", "torch float32"
CHANNEL, TENSOR = "ort int8 channel", "ort int8 tensor"
SIDES = (OURS, FLOAT, TORCH, OURS_INT8, CHANNEL, TENSOR)
ALLOWED = {OURS_INT8: 5e-3, OURS: 1e-4, FLOAT: 1e-4, TORCH: 1e-4, CHANNEL: 1e-4, TENSOR: 1e-4}  # of the largest value
RATIOS = ((OURS, FLOAT), (OURS, TORCH), (OURS_INT8, CHANNEL), (OURS_INT8, TENSOR), (OURS_INT8, OURS), (CHANNEL, FLOAT))
Call = Callable[[], Any]


def session(side: str, heads: int, kv_heads: int, size: int, threads: int, library: Path) -> ort.InferenceSession:
    ours, int8 = side.startswith("ours"), "int8" in side
    names = ["q", "", "", "past_k", "past_v", "last", "total"]
    options: dict[str, Any] = {"num_heads": heads, "kv_num_heads": kv_heads, "scale": size**-0.5}
    options["local_window_size"] = -1
    kept = TensorProto.INT8 if int8 else TensorProto.FLOAT
    kinds = {
        "q": TensorProto.FLOAT,
        "past_k": kept,
        "past_v": kept,
        "last": TensorProto.INT32,
        "total": TensorProto.INT32,
    }
    if ours:
        options["head_size"] = size
    elif int8:
        kind = "PER_CHANNEL" if side == CHANNEL else "PER_TENSOR"
        options |= {"kv_cache_bit_width": 8, "k_quant_type": kind, "v_quant_type": kind}
    if int8:
        names += [*[""] * ((10 if ours else 12) - len(names)), "k_scale", "v_scale"]
        kinds |= {"k_scale": TensorProto.FLOAT, "v_scale": TensorProto.FLOAT}
    op = "GroupQueryAttention" if not ours else "CachedAttentionInt8" if int8 else "CachedAttention"
    domain = "edgecompress" if ours else "com.microsoft"
    cache: list[int | str] = [1, kv_heads, "c", size]
    dims: dict[str, list[int | str]] = {"past_k": cache, "past_v": cache}
    dims |= {"q": [1, 1, (heads + 2 * kv_heads) * size], "last": [1], "total": []}
    dims |= dict.fromkeys(("k_scale", "v_scale"), [1] if side == TENSOR else [1, kv_heads, 1, size])
    graph = helper.make_graph(
        [helper.make_node(op, names, ["y", "k", "v"], domain=domain, **options)],
        "g",
        [helper.make_tensor_value_info(name, kind, dims[name]) for name, kind in kinds.items()],
        [
            helper.make_tensor_value_info(name, kind, shape)
            for name, kind, shape in (
                ("y", TensorProto.FLOAT, [1, 1, heads * size]), ("k", kept, cache), ("v", kept, cache),
            )
        ],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(domain, 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    settings = session_options(threads)
    if ours:
        settings.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, settings, providers=["CPUExecutionProvider"])


def place(array: Any) -> Any:
    """A copy in huge pages, as the runtime's cache lies: the same for every side."""
    region = huge_region(array.nbytes).view(array.dtype).reshape(array.shape)
    region[...] = array
    return region


def in_onnxruntime(made: ort.InferenceSession, feeds: dict[str, Any], width: int) -> tuple[Call, Any]:
    binding, y = made.io_binding(), np.empty((1, 1, width), np.float32)
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name in (i.name for i in made.get_inputs()):
        binding.bind_ortvalue_input(name, values[name])
    for name in "kv":
        binding.bind_ortvalue_output(name, values[f"past_{name}"])
    binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_numpy(y))
    return lambda kept=values: made.run_with_iobinding(binding), y


def sides_of(
    heads: int, kv_heads: int, size: int, tokens: int, threads: int, library: Path
) -> dict[str, tuple[Call, Any, Any]]:
    """Name -> (a call, where its output lies, what that must be in float64)."""
    rng = np.random.default_rng(tokens)
    rows = rng.standard_normal((1, 1, (heads + 2 * kv_heads) * size)).astype(np.float32)
    q = rows[0, 0, : heads * size].reshape(heads, 1, size)
    keys, values = rng.standard_normal((2, kv_heads, tokens, size)).astype(np.float32)
    new = rows[0, 0, heads * size :].reshape(2, kv_heads, size)
    keys[:, -1], values[:, -1] = new
    shared = {
        "q": rows, "last": np.array([tokens - 1], dtype=np.int32), "total": np.array(tokens, dtype=np.int32),
    }  # fmt: skip
    found: dict[str, tuple[Call, Any, Any]] = {}
    floats = [place(x[None]) for x in (keys, values)]
    exact = exact_attention(q, keys, values, tokens - 1, size**-0.5).reshape(-1)
    with torch.inference_mode():
        tensors = [torch.from_numpy(x) for x in (q[None], *floats)]
    y = torch.empty(0)

    def in_torch() -> None:
        nonlocal y
        with torch.inference_mode():
            y = torch.nn.functional.scaled_dot_product_attention(*tensors, enable_gqa=True)

    for side in SIDES:
        if side == TORCH:
            found[side] = in_torch, lambda: y.numpy(), exact
            continue
        feeds, expected = shared | {"past_k": floats[0], "past_v": floats[1]}, exact
        if "int8" in side:
            axes = (0, 1, 2) if side == TENSOR else 1
            scales = [(np.abs(x).max(axes, keepdims=True) / 127).astype(np.float32) for x in (keys, values)]
            wide = [np.broadcast_to(s, (kv_heads, 1, size))[:, 0] for s in scales]
            kept = [rounded_cache(x, s) for x, s in zip((keys, values), wide, strict=True)]
            feeds = shared | {"past_k": place(kept[0][None]), "past_v": place(kept[1][None])}
            shape = (1,) if side == TENSOR else (1, kv_heads, 1, size)
            feeds |= {name: s.reshape(shape) for name, s in zip(("k_scale", "v_scale"), scales, strict=True)}
            exact_cache = [x * s[:, None].astype(np.float64) for x, s in zip(kept, wide, strict=True)]
            expected = exact_attention(q, *exact_cache, tokens - 1, size**-0.5).reshape(-1)
        call, out = in_onnxruntime(session(side, heads, kv_heads, size, threads, library), feeds, heads * size)
        found[side] = call, lambda out=out: out, expected
    return found


def time_in_rounds(calls: dict[str, Call], rounds: int, calls_a_round: int) -> dict[str, list[float]]:
    """Seconds of each side, the least of ``calls_a_round``, side by side in every round."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            least = float("inf")
            time.sleep(SETTLE_S)
            call()  # its own threads awake
            for _ in range(calls_a_round):
                began = time.perf_counter()
                call()
                least = min(least, time.perf_counter() - began)
            seconds[name].append(least)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path, default=RESULTS / "cpu_attention.jsonl")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = []

    def say(line: dict[str, Any]) -> None:
        lines.append(line)
        print(json.dumps(line), flush=True)

    isa = isa_here()
    if isa is None:
        parser.error("there is no kernel for this machine's CPU")
    say(header(instruction_set=isa.name))
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "kernels.so"
        wanted = [Attention(head_size=size, int8=int8) for _, _, size in SHAPES for int8 in (False, True)]
        library.write_bytes(build([], wanted, isa))
        for threads in options.threads:
            torch.set_num_threads(threads)
            say({"kind": "read bandwidth", "threads": threads, "bytes_per_s": round(Bandwidth(threads).bytes_per_s())})
            for heads, kv_heads, size in SHAPES:
                for tokens in TOKENS:
                    sides = sides_of(heads, kv_heads, size, tokens, threads, library)
                    errors = {}
                    for name, (call, out, expected) in sides.items():
                        call()
                        errors[name] = float(np.abs(out().reshape(-1) - expected).max() / np.abs(expected).max())
                        assert errors[name] < ALLOWED[name], (name, tokens, errors[name])
                    calls = {name: side[0] for name, side in sides.items()}
                    seconds = time_in_rounds(calls, options.rounds, max(2, 20 * 128 // tokens))
                    row = {"kind": "row", "heads": heads, "kv_heads": kv_heads, "head_size": size, "tokens": tokens}
                    row["threads"] = threads
                    for name, times in seconds.items():
                        read = 2 * kv_heads * tokens * size * (1 if "int8" in name else 4)
                        figures = {
                            "us_median": round(1e6 * float(np.median(times)), 1),
                            "us_min": round(1e6 * min(times), 1),
                        }
                        figures["cache_bytes_per_s"] = round(read / float(np.median(times)))
                        say(row | {"name": name, "error": float(f"{errors[name]:.2g}")} | figures)
                    for mine, other in RATIOS:
                        ratios = np.array(seconds[other]) / np.array(seconds[mine])
                        low, median, high = (round(float(np.percentile(ratios, n)), 2) for n in (10, 50, 90))
                        times_as_fast = {"median": median, "p10": low, "p90": high}
                        say(row | {"kind": "ratio", "name": mine, "against": other, "times_as_fast": times_as_fast})
    write(options.out, lines)


if __name__ == "__main__":
    main()
