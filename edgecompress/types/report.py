"""The results of an export: fidelity, layers, candidates and measurements."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

ALONE_KEY = "edgecompress.alone_kl"
"""Key in a graph's metadata: JSON, layer name -> nats that this layer alone costs at 4 bits."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close the compressed model is to the reference on held-out inputs. ``None``: does not apply to the task."""

    samples: int
    mean_cosine: float | None = None
    min_cosine: float | None = None
    top10_agreement: float | None = None  # share of the reference's 10 nearest neighbours that stay
    mean_kl: float | None = None  # nats
    top1_agreement: float | None = None
    perplexity_ratio: float | None = None  # over the reference's; decoders
    max_abs_difference: float | None = None
    measures: Mapping[str, float] = field(default_factory=dict)  # a kind's own figures, by name


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One figure of a fidelity, with its names."""

    name: str  # short, for a line: "cosine"
    title: str  # for a table: "mean cosine"
    value: float


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weight of the compressed graph."""

    name: str
    op: str
    shape: tuple[int, ...]
    precision: str  # "float32", "int8", "int4", …
    bytes: int
    alone_kl: float | None = None  # nats: KL divergence if only this weight is int4; mixed-weights only


@dataclass(frozen=True, kw_only=True)
class Latency:
    """One measured case: wall time of the model's run, without tokenization."""

    case: str  # "8×128"
    sizes: Mapping[str, int]  # as the kind names them: {"batch": 8, "tokens": 128}
    threads: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """One row of the table of candidates: a precision, and an accuracy level if there are several."""

    precision: str
    fidelity: Fidelity | None
    speedup: (
        float | None
    )  # over the first row: median of paired ratios, geometric mean of the cases; None: not measured
    latency_ms: float | None  # of the last case
    model_bytes: int
    verdict: str  # "chosen", "slower than fp32", "below --min-fidelity", "refused: …"
    accuracy_level: int | None = None  # of MatMulNBits; None: no level, or the recipe's
    shapes_ms: Mapping[str, float] = field(default_factory=dict)  # case -> median


@dataclass(frozen=True, kw_only=True)
class QuantizedCache:
    """The fidelity that a decoder's quantized KV cache costs, and the bytes that it saves."""

    dtype: str  # "int8"
    calibration_tokens: int  # that determined the scales
    bytes_per_token: int
    float_bytes_per_token: int
    float_fidelity: Fidelity  # of the same graph with a float32 cache, against the same reference
    perplexity_ratio: float  # over that graph: the cost of the cache alone


@dataclass(frozen=True, kw_only=True)
class Report:
    """Contains no times, so it is byte-identical for the same input and versions."""

    fidelity: Fidelity
    kv_cache: QuantizedCache | None = None  # None: a float32 cache, or not a decoder
    layers: tuple[Layer, ...] = ()
    ops: Mapping[str, int] = field(default_factory=dict)  # op type -> count in the compiled graph
    held_out_text: str = ""  # source of the held-out inputs
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class KernelUse:
    """One type of op in a model: whether our kernel is used for it, and why."""

    kernel: str  # of KERNELS
    what: str  # e.g. "1536 x 17920, int4 in blocks of 128"
    nodes: int
    used: bool
    reason: str  # "faster", "slower", "named in --kernels", or the obstacle
    speedups: Mapping[str, float] = field(
        default_factory=dict
    )  # case -> speed-up over ONNX Runtime's op, paired medians


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Times on one machine; not part of the bundle's identity."""

    manifest_sha256: str
    host: Mapping[str, str] = field(default_factory=dict)
    latencies: tuple[Latency, ...] = ()
    candidates: tuple[Candidate, ...] = ()
    kernels: tuple[KernelUse, ...] = ()
