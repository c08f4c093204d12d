"""Made-up profiles: complete ones, extreme ones, and one with almost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from edgecompress.profile.statistics import drift, percentiles, quantiles
from edgecompress.types.profile import (
    ColdStart,
    Host,
    LatencyBudget,
    Measurement,
    Noise,
    Operator,
    OperatorProfile,
    Peaks,
    Profile,
    Reads,
    Server,
    Stage,
    TokenTimes,
    Tried,
)

HOST = Host(
    cpu="Cortex-A76", arch="aarch64", isa=("asimd", "asimddp"), cores=4, system="Linux", kernel="6.6", python="3.11.9",
    governor="performance", clock_mhz=(2400.0,) * 4, load_average_1min=0.1, memory_bytes=8_000_000_000, cpu_limit=None,
    virtual_machine=False, versions={"edgecompress": "0.1.0"},
)  # fmt: skip
QUIET = Noise(loop_ms=0.03, spread=0.02, slowest_over_fastest=1.01, noisy=False)
TRIED = (
    Tried(precision="fp32", quality="mean cosine", value=1.0, ms=117.5, chosen=False, speedup=1.0,
          model_bytes=90_300_000, verdict="slower"),
    Tried(precision="int8-dynamic", quality="mean cosine", value=0.9987, ms=33.0, chosen=True, speedup=3.49,
          model_bytes=23_000_000, verdict="chosen"),
    Tried(precision="int8-static", quality="mean cosine", value=0.9979, ms=45.9, chosen=False, speedup=2.23,
          model_bytes=23_000_000, verdict="slower"),
    Tried(precision="int8-weights", quality="mean cosine", value=0.9991, ms=88.4, chosen=False, speedup=1.38,
          model_bytes=23_200_000, verdict="slower"),
    Tried(precision="int4-weights", quality="mean cosine", value=0.9549, ms=93.2, chosen=False, speedup=1.37,
          model_bytes=17_900_000, verdict="mean cosine 0.9549 is below 0.99"),
)  # fmt: skip


def peaks(threads: int) -> Peaks:
    return Peaks(
        threads=threads,
        reads=(Reads(buffer_bytes=1 << 20, bytes_per_s=4e10), Reads(buffer_bytes=1 << 29, bytes_per_s=1e10)),
        ops_per_s={"float32": 6e10 * threads, "int8": 2.4e11 * threads},
    )


def measured(shape: str, threads: int, p50_ms: float, *, calls: int = 1200, tokens: bool = False) -> Measurement:
    """Calls with skewed latencies, and a slow spell at the end."""
    rng = np.random.default_rng(len(shape) + threads)
    seconds = p50_ms / 1e3 * np.exp(np.abs(rng.normal(0, 0.15, calls)))
    seconds[-calls // 10 :] *= 1.2
    at = np.cumsum(seconds) - seconds
    found = None
    if tokens:
        found = TokenTimes(
            new_tokens=32, ttft=percentiles(seconds / 3), between=percentiles(seconds / 60), prefill_tokens_per_s=270.0,
            decode_tokens_per_s=58.0,
        )  # fmt: skip
    names = ("prefill", "decode", "detokenize") if tokens else ("tokenize", "batch", "compute")
    batch = int(shape.partition("x")[0]) if shape[0].isdigit() else 1
    return Measurement(
        workload=shape,
        threads=threads,
        scenario="single-stream" if batch == 1 else "multi-stream",
        seconds=float(seconds.sum()),
        latency=percentiles(seconds),
        per_s=round(batch * calls / float(seconds.sum()), 2),
        stages=tuple(Stage(name=n, p50_ms=p50_ms * s, share=s) for n, s in zip(names, (0.08, 0.03, 0.89), strict=True)),
        tokens=found,
        drift=drift(seconds, at),
        quantiles_ms=quantiles(seconds),
    )


def operators(
    workload: str, threads: int, phase: str, layer: str = "encoder.layer", layers: int = 6
) -> OperatorProfile:
    """Nodes of a few kinds in each layer."""
    kinds = (("MatMulIntegerToFloat", "int8", 4e8, 4e6), ("MultiHeadAttention", "float32", 5e7, 2e6),
             ("LayerNormalization", "float32", 1e6, 1e6), ("Gelu", "float32", 2e6, 2e6), ("Add", "float32", 2e5, 8e5),
             ("Cast", "float32", 1e5, 4e5), ("DynamicQuantizeLinear", "float32", 3e5, 9e5))  # fmt: skip
    rows = [(f"{layer}.{n}.part", *kind) for n in range(layers) for kind in kinds]
    found = []
    for module, op, dtype, ops, moved in rows:
        roof = max(ops / peaks(threads).ops_per_s[dtype], moved / 1e10) * 1e3
        found.append(
            Operator(name=f"{module}/{op}", module=module, op=op, ms=2 * roof, share=0.0, ops=ops, bytes=int(moved),
                     computes=dtype, bound="compute", roof_ms=roof, of_roof=0.5)
        )  # fmt: skip
    whole = sum(each.ms for each in found)
    return OperatorProfile(
        workload=workload, threads=threads, phase=phase, calls=20, call_ms=whole * 0.9, nodes_ms=whole, between_ms=0.0,
        operators=tuple(replace(each, share=each.ms / whole) for each in found),
    )  # fmt: skip


def profile(measurements: Sequence[Measurement], found: Sequence[OperatorProfile] = (), **changed: object) -> Profile:
    base = Profile(
        tool_version="0.1.0", bundle="minilm.bundle", identity="0" * 64, name="all-MiniLM-L6-v2",
        task="sentence-similarity", precision="int8-dynamic", target="raspberry-pi-5", bundle_bytes=24_000_000,
        verified=True, host=HOST, noise=QUIET, measurements=tuple(measurements),
        cold_start=ColdStart(processes=3, whole_ms=410.0, import_ms=290.0, load_ms=90.0, first_ms=8.1,
                             peak_rss_bytes=126_000_000),
        peak_rss_bytes=126_000_000,
        fidelity="mean cosine 0.9987, minimum cosine 0.9966, top-10 neighbours kept 0.9586, over 128 held-out samples",
        terms="apache-2.0 (read from card, README.md)", tried=TRIED,
        peaks=tuple(peaks(threads) for threads in sorted({each.threads for each in found})), operators=tuple(found),
    )  # fmt: skip
    return replace(base, **changed)  # type: ignore[arg-type]


def encoder() -> Profile:
    shapes = [("1x16", 1.8), ("1x64", 4.3), ("1x128", 11.5), ("8x128", 72.0), ("8x256", 160.0)]
    calls = [measured(shape, threads, ms / threads) for threads in (1, 2) for shape, ms in shapes]
    return profile(calls, [operators("8x256", 2, "call")])


def decoder() -> Profile:
    prompts = [("1x16", 300.0), ("1x128", 700.0), ("1x1024", 4000.0), ("4x128", 2000.0)]
    calls = [measured(shape, threads, ms / threads, tokens=True) for threads in (1, 4) for shape, ms in prompts]
    ratio = tuple(
        replace(row, quality="perplexity ratio", value=2 - row.value, verdict="")
        for row in TRIED
        if row.precision != "int8-static"
    )
    phases = [operators("4x128", 4, phase, "model.layers", 28) for phase in ("prefill", "decode")]
    return profile(calls, phases, task="text-generation", tried=ratio, fidelity="perplexity ratio 1.0005")


def extreme() -> Profile:
    """Long and odd names, shapes close to each other, times far apart, one precision much worse than the others."""
    calls = [
        measured(shape, threads, ms)
        for threads in (1, 2, 4, 8)
        for shape, ms in [("1x100", 0.021), ("1x101", 0.022), ("1x128", 0.03), ("1x512", 12.0), ("128x512", 48_000.0)]
    ]
    calls.append(measured("requests-of-the-busiest-day-of-the-year.jsonl", 8, 33.0))
    odd = operators("128x512", 8, "call", "vision_model.$encoder$.层.layers_of_the_student", 24)
    tried = (
        *TRIED,
        replace(TRIED[1], precision="int8-dynamic, accuracy level 4 of several", ms=33.3, value=0.9986, chosen=False),
    )
    return profile(calls, [odd], tried=tried, name="$a$ & <b>")


def smallest() -> Profile:
    """A few calls of one shape, and nothing else."""
    return profile([measured("1x16", 1, 1.8, calls=7)], tried=(), cold_start=None, peak_rss_bytes=None, terms="")


def held(found: Profile, bound_ms: float, percentile: float = 90) -> Profile:
    """With a latency budget."""
    calls = []
    for m in found.measurements:
        value = None if m.latency is None else m.latency.p90_ms
        met = None if value is None else value <= bound_ms
        budget = LatencyBudget(bound_ms=bound_ms, percentile=percentile, value_ms=value, met=met)
        calls.append(replace(m, budget=budget))
    return replace(found, measurements=tuple(calls))


def served(found: Profile, *, within: bool) -> Profile:
    """With requests at random moments as well."""
    latency = percentiles(np.full(2000, 0.012))
    server = Server(asked_per_s=20.0, done_per_s=19.9, latency=latency, bound_ms=20.0, within_bound=within)
    m = Measurement(workload="1x16", threads=2, scenario="server", seconds=100.0, per_s=19.9, server=server)
    return replace(found, measurements=(*found.measurements, m))
