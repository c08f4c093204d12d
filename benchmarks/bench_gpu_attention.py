"""Our GPU attention, torch's flash and cuDNN SDPA, and the copy bandwidth of the same run.

Run from the repository's root, on a machine with a CUDA device: ``python -m benchmarks.bench_gpu_attention``. Prefill,
causal and not, and decode; heads of 64 and 128, 512 to 32768 tokens, batches of 1 to 64. Every output is first compared
with float64 on sampled rows. Sides are timed in turn with CUDA events; before each, a read of a larger buffer empties
the caches (a write would leave them full of dirty lines). Ratios are the peer's time over ours (above 1: ours is
faster), median of paired rounds with p10 and p90. With ``--cubins FOLDER`` (what
``python -m edgecompress_kernels.gpu.aot FOLDER`` wrote for this device) the kernels compiled ahead of time are one more
side, launched without Triton. One JSON line per row in benchmarks/results/gpu_attention.jsonl. Exit code 3 without a
CUDA device.
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.result_lines import RESULTS, header, write

if TYPE_CHECKING:
    from edgecompress_kernels.gpu.launch import Launcher

HEAD_SIZES = (64, 128)
LENGTHS = (512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCHES = (1, 4, 8, 16, 64)
HEADS, KV_HEADS = 32, 8
PEERS = {"sdpa flash": SDPBackend.FLASH_ATTENTION, "sdpa cudnn": SDPBackend.CUDNN_ATTENTION}
SAMPLES = 16  # rows of the output that are held against float64
MEMORY_SHARE = 0.6  # of the device's free memory that a shape may take; the larger are told as skipped
MOST_FLOPS = 2e13  # of a call: more takes over 30 ms on the fastest of today, and is told as skipped
HOST_CYCLES = 4_000_000  # that the device waits for Python to put a call on the stream: two milliseconds
DEVICE = "cuda"
Side = Callable[[], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Shape:
    """One attention: ``decode`` is one new token over a cache of ``length``, else a prefill of ``length``."""

    decode: bool
    head: int
    length: int
    batch: int
    causal: bool = True

    @property
    def flops(self) -> float:
        """Multiplications and additions of both products; a causal prefill computes half of them."""
        rows = 1 if self.decode else self.length / (2 if self.causal else 1)
        return 4.0 * self.batch * HEADS * self.head * rows * self.length

    def bytes(self, element: int, cache_element: int) -> int:
        """That must be moved at the least: queries and output, keys and values, each once."""
        tokens = 1 if self.decode else self.length
        queries = 2 * self.batch * HEADS * tokens * self.head * element
        return queries + 2 * self.batch * KV_HEADS * self.length * self.head * cache_element


def refuse_without_gpu() -> None:
    """Exit with code 3 and the reason where nothing can be measured."""
    reason = ""
    if importlib.util.find_spec("triton") is None:
        reason = "triton is not installed: pip install 'edgecompress[triton]'"
    if not torch.cuda.is_available():
        reason = "there is no CUDA device here, and a time from anything else would mean nothing"
    if reason:
        print(f"edgecompress: {reason}", file=sys.stderr)
        sys.exit(3)


def timed(side: Side, flush: torch.Tensor) -> float:
    """Seconds of one call, with cold caches; the device waits while the call is put on the stream."""
    flush.amax()
    torch.cuda._sleep(HOST_CYCLES)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    side()
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3


def copy_bandwidth(flush: torch.Tensor, rounds: int) -> float:
    """Bytes a second of a device-to-device copy, read and written, the median of ``rounds``."""
    source = torch.zeros_like(flush)
    target = torch.empty_like(source)
    seconds = [timed(lambda: target.copy_(source), flush) for _ in range(rounds + 3)][3:]
    return 2 * source.nbytes / float(np.median(seconds))


def quantized(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys or values [B, Hk, S, D] as int8, with one scale a channel [Hk, D]."""
    step = x.abs().amax((0, 2)).float() / 127
    return (x / step[None, :, None]).round().clamp(-127, 127).to(torch.int8), step


def sides_of(
    shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, launcher: Launcher | None
) -> dict[str, Side]:
    """Ours first. q [B, Hq, T, D], k and v [B, Hk, S, D]; every side gives [B, Hq, T, D]."""
    from edgecompress_kernels.gpu.attention import decode, prefill

    scale = shape.head**-0.5
    sides: dict[str, Side] = {}
    if shape.decode:
        lengths = torch.full((shape.batch,), shape.length, dtype=torch.int32, device=DEVICE)
        new = q.transpose(1, 2)
        (k8, k_scales), (v8, v_scales) = quantized(k), quantized(v)
        settings: dict[str, Any] = {"longest": shape.length, "scale": scale}
        sides["ours"] = lambda: decode(new, k, v, lengths, **settings).transpose(1, 2)
        sides["ours int8 cache"] = lambda: decode(
            new, k8, v8, lengths, key_scales=k_scales, value_scales=v_scales, **settings
        ).transpose(1, 2)
    else:
        # each side gets the layout that it likes best: ours tokens first, as projections give them
        packed = [x.transpose(1, 2).contiguous().flatten(0, 1) for x in (q, k, v)]
        starts = torch.arange(shape.batch + 1, dtype=torch.int32, device=DEVICE) * shape.length
        tokens = (shape.batch, shape.length, HEADS, shape.head)
        own: dict[str, Any] = {"longest": shape.length, "scale": scale, "causal": shape.causal}
        sides["ours"] = lambda: prefill(*packed, starts, starts, **own).view(tokens).transpose(1, 2)
        if launcher is not None:
            kernel, values, out = hopper_call(shape, *packed, starts)

            def ahead_of_time() -> torch.Tensor:
                launcher.launch(kernel, values)
                return out.view(tokens).transpose(1, 2)

            sides["ours ahead of time"] = ahead_of_time
    for name, backend in PEERS.items():

        def peer(backend: SDPBackend = backend) -> torch.Tensor:
            with sdpa_kernel(backend):
                return torch.nn.functional.scaled_dot_product_attention(
                    q, k, v, is_causal=shape.causal and not shape.decode, scale=scale, enable_gqa=True
                )

        sides[name] = peer
    return sides


def hopper_call(
    shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, starts: torch.Tensor
) -> tuple[str, dict[str, Any], torch.Tensor]:
    """Hopper's prefill as it was compiled ahead of time: its name, the call's values, and the output."""
    from edgecompress_kernels.gpu.chips import hopper_sizes
    from edgecompress_kernels.gpu.launch import Tokens

    device = torch.cuda.get_device_properties(0)
    out = torch.empty_like(q)
    values: dict[str, Any] = {"out": out, "q_starts": starts, "k_starts": starts}
    for name, x in (("q", q), ("k", k), ("v", v)):
        values[name] = Tokens(
            address=x,
            heads=x.shape[1],
            tokens=len(x),
            width=shape.head,
            head_stride=x.stride(1),
            token_stride=x.stride(0),
        )
    values |= {"out_token": out.stride(0), "out_head": out.stride(1), "scale": shape.head**-0.5}
    values |= hopper_sizes(
        longest=shape.length, heads=HEADS, kv_heads=KV_HEADS, texts=shape.batch, keys=len(k), head=shape.head,
        processors=device.multi_processor_count, cache_bytes=device.L2_cache_size,
    )  # fmt: skip
    dtype = str(q.dtype).removeprefix("torch.")
    return f"prefill-hopper-{dtype}-d{shape.head}{'-causal' * shape.causal}", values, out


def sampled_error(out: torch.Tensor, shape: Shape, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> float:
    """Root mean square of the error over the reference's, on SAMPLES rows, in float64."""
    generator = torch.Generator().manual_seed(0)
    error = size = 0.0
    for _ in range(SAMPLES):
        picks = [int(torch.randint(n, (1,), generator=generator)) for n in (shape.batch, HEADS, q.shape[2])]
        b, h, t = picks
        seen = t + 1 if shape.causal and not shape.decode else shape.length
        keys, values = (x[b, h // (HEADS // KV_HEADS), :seen].double() for x in (k, v))
        expected = (keys @ q[b, h, t].double() * shape.head**-0.5).softmax(0) @ values
        error += float((out[b, h, t].double() - expected).square().sum())
        size += float(expected.square().sum())
    return float((error / size) ** 0.5)


def summary(ratios: np.ndarray[Any, Any]) -> dict[str, float]:
    low, median, high = (round(float(np.percentile(ratios, q)), 3) for q in (10, 50, 90))
    return {"median": median, "p10": low, "p90": high}


def measure(
    shape: Shape, dtype: torch.dtype, bandwidth: float, flush: torch.Tensor, rounds: int, launcher: Launcher | None
) -> dict[str, Any]:
    """One row: errors, times, ratios, and how near ours comes to copying what must be read.

    Raises ArithmeticError, and gives no time, if an output of ours is wrong.
    """
    tokens = 1 if shape.decode else shape.length
    q = torch.randn(shape.batch, HEADS, tokens, shape.head, dtype=dtype, device=DEVICE)
    k, v = (torch.randn(shape.batch, KV_HEADS, shape.length, shape.head, dtype=dtype, device=DEVICE) for _ in range(2))
    sides, errors, absent = sides_of(shape, q, k, v, launcher), {}, {}
    for name, side in list(sides.items()):
        try:
            errors[name] = sampled_error(side(), shape, q, k, v)
        except RuntimeError as error:
            if name.startswith("ours"):
                raise
            absent[name] = str(error).splitlines()[0]  # this backend does not take the shape or the chip
            del sides[name]
    # twice the best peer's error and one rounding of the type; an int8 cache adds half a step of 127 in each value
    peers = [errors[name] for name in PEERS if name in errors]
    bound = 2 * min(peers, default=torch.finfo(dtype).eps) + torch.finfo(dtype).eps
    for name in ("ours", "ours ahead of time"):
        if errors.get(name, 0.0) > bound or np.isnan(errors.get(name, 0.0)):
            raise ArithmeticError(f"{shape}: {name} has an error of {errors[name]:.2e}, over {bound:.2e}")
    if errors.get("ours int8 cache", 0.0) > 0.05:
        raise ArithmeticError(f"{shape}: with an int8 cache our error is {errors['ours int8 cache']:.2e}")
    for side in sides.values():
        for _ in range(3):
            side()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            seconds[name].append(timed(side, flush))
    times = {name: np.array(values) for name, values in seconds.items()}
    row: dict[str, Any] = {
        "kind": "decode" if shape.decode else "causal prefill" if shape.causal else "full prefill",
        "head": shape.head,
        "length": shape.length,
        "batch": shape.batch,
        "dtype": str(dtype).removeprefix("torch."),
        "relative_rms_error": {name: float(f"{error:.3e}") for name, error in errors.items()},
        "median_us": {name: round(1e6 * float(np.median(values)), 2) for name, values in times.items()},
        "peer_time_over_ours": {name: summary(times[name] / times["ours"]) for name in sides if name in PEERS},
        "best_peer_time_over_ours": summary(np.min([times[n] for n in sides if n in PEERS], axis=0) / times["ours"]),
        "absent": absent,
    }
    element = q.element_size()
    for name in [name for name in times if name.startswith("ours")]:
        cache = 1 if "int8" in name else element
        median = float(np.median(times[name]))
        row[f"{name}: share of copy bandwidth"] = round(shape.bytes(element, cache) / median / bandwidth, 3)
    if "ours ahead of time" in times:
        row["time_over_ours_ahead_of_time"] = {
            name: summary(times[name] / times["ours ahead of time"]) for name in times if name != "ours ahead of time"
        }
    if "ours int8 cache" in times:
        row["time_over_ours_int8_cache"] = {
            name: summary(times[name] / times["ours int8 cache"]) for name in times if name != "ours int8 cache"
        }
    row["ours: TFLOP/s"] = round(shape.flops / float(np.median(times["ours"])) / 1e12, 2)
    return row


def shapes(only: str | None) -> Iterator[Shape]:
    for kind in ("decode", "causal prefill", "full prefill"):
        if only in (None, kind):
            for head, length, batch in itertools.product(HEAD_SIZES, LENGTHS, BATCHES):
                causal, decode = kind != "full prefill", kind == "decode"
                yield Shape(decode=decode, head=head, length=length, batch=batch, causal=causal)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--dtype", choices=("float16", "bfloat16"), default="float16")
    parser.add_argument("--only", choices=("causal prefill", "full prefill", "decode"))
    parser.add_argument("--cubins", type=Path, help="prefill compiled ahead of time, for compute capability 9.0")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu_attention.jsonl")
    options = parser.parse_args()
    refuse_without_gpu()
    import triton
    from edgecompress_kernels.gpu.launch import CudaDriver, Launcher

    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    properties = torch.cuda.get_device_properties(0)
    flush = torch.zeros(min(1 << 30, properties.total_memory // 16) // 4, device=DEVICE)
    bandwidth = copy_bandwidth(flush, options.rounds)
    gpu = {
        "name": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_bytes": properties.total_memory,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "triton": triton.__version__,
        "copy_bytes_per_s": round(bandwidth),
    }
    rows: list[dict[str, Any]] = [header(heads=HEADS, kv_heads=KV_HEADS)]
    rows[0]["host"]["gpu"] = gpu
    launcher = Launcher(options.cubins, CudaDriver()) if options.cubins else None
    for shape in shapes(options.only):
        free, _ = torch.cuda.mem_get_info()
        needed = 3 * shape.bytes(2, 2)  # ours in another layout, and outputs
        if needed > MEMORY_SHARE * free or shape.flops > MOST_FLOPS:
            rows.append({"skipped": repr(shape), "needs_bytes": needed, "free_bytes": free, "flops": shape.flops})
            continue
        rows.append(measure(shape, dtype, bandwidth, flush, options.rounds, launcher))
        print(json.dumps(rows[-1], sort_keys=True), file=sys.stderr)
        write(options.out, rows)  # a run that is cut off leaves what it has
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()
