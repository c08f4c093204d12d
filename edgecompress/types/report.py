"""What was found out about a compressed model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ALONE_KEY = "edgecompress.alone_kl"
"""Of a graph's metadata: what was measured of each weight alone, as JSON, name of the layer -> nats."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How near the compressed model is to the reference on held-out inputs. ``None``: does not apply to the task."""

    samples: int
    mean_cosine: float | None = None
    min_cosine: float | None = None
    top10_agreement: float | None = None  # share of the reference's 10 nearest neighbours that are kept
    mean_kl: float | None = None  # nats
    top1_agreement: float | None = None
    perplexity_ratio: float | None = None  # over the reference's; decoders
    max_abs_difference: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # a kind's own figures, by name


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One number of a fidelity, as its kind calls it."""

    name: str  # in a line: "cosine"
    title: str  # in a table: "mean cosine"
    value: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weight of the graph as it was compressed."""

    name: str
    op: str
    shape: tuple[int, ...]
    precision: str  # "float32", "int8", "int4", …
    bytes: int
    alone_kl: float | None = None  # nats: of the logits when this weight alone is int4; precision mixed-weights


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One measured case: wall time of the model's run, tokenization not included."""

    case: str  # "8×128"
    sizes: Mapping[str, int]  # what its kind counts in a call: {"batch": 8, "tokens": 128}
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the table of what was tried: precisions, accuracy levels, or both."""

    precision: str
    fidelity: Fidelity | None
    speedup: float | None  # over the first row, median of paired ratios, mean of the cases; None: not measured
    latency_ms: float | None  # of the last case
    model_bytes: int
    verdict: str  # "chosen", "slower than fp32", "below --min-fidelity", "refused: …"
    accuracy_level: int | None = None  # of MatMulNBits; None: it has none, or the recipe says which
    shapes_ms: Mapping[str, float] = field(default_factory=dict)  # case -> median


@dataclass(frozen=True, kw_only=True)
class QuantizedCache:
    """What a decoder's KV cache costs in fidelity, and saves."""

    dtype: str  # "int8"
    calibration_tokens: int  # that the scales were taken from
    bytes_per_token: int
    float_bytes_per_token: int
    float_fidelity: Fidelity  # of the same graph with a float32 cache, against the same reference
    perplexity_ratio: float  # over that graph: what the cache alone costs


@dataclass(frozen=True, kw_only=True)
class Report:
    """Byte-identical for the same input and versions: holds no time."""

    fidelity: Fidelity
    kv_cache: QuantizedCache | None = None  # None: float32, or no decoder
    layers: tuple[Layer, ...] = ()
    ops: Mapping[str, int] = field(default_factory=dict)  # op type -> count in the compiled graph
    held_out_text: str = ""  # where the held-out inputs came from
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """One kind of op in a model: whether our kernel is used for it, and why."""

    kernel: str  # of KERNELS
    what: str  # e.g. "1536 x 17920, int4 in blocks of 128"
    nodes: int
    used: bool
    reason: str  # "faster", "slower", "asked for", or what is in the way
    speedups: Mapping[str, float] = field(default_factory=dict)  # case -> over ONNX Runtime's op, paired medians


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Times, which belong to one machine; kept out of the bundle's identity."""

    manifest_sha256: str
    host: Mapping[str, str] = field(default_factory=dict)
    latencies: tuple[Latency, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    kernels: tuple[KernelUse, ...] = ()
