"""What a profile says: latencies by shape and threads, what they were measured on, and what that can tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROFILE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Of wall times. None: there were too few calls for it (ten beyond it are taken as the least)."""

    calls: int
    mean_ms: float
    max_ms: float
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of every call, in its order."""

    name: str  # "tokenize", "batch", "compute", …
    p50_ms: float
    share: float  # of the sum of all stages' means


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """Of a decoder's texts."""

    new_tokens: int  # of a text
    ttft: Percentiles  # from the text to its first new token
    between: Percentiles  # from one new token to the next (TPOT is its mean)
    prefill_tokens_per_s: float
    decode_tokens_per_s: float  # of all rows together


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Latency over time, in windows of equal length."""

    window_s: float
    p50_ms: tuple[float, ...]
    degrades_after_s: float | None = None  # from there on it stays a tenth above what it was at first


@dataclass(frozen=True, kw_only=True)
class Server:
    """Requests that come at random (Poisson) and wait for each other; latency counts from when one comes."""

    asked_per_s: float
    done_per_s: float
    latency: Percentiles
    bound_ms: float | None = None
    within_bound: bool | None = None  # the p99


@dataclass(frozen=True, kw_only=True)
class LatencyBudget:
    """The longest that a call may take, and what it takes, both at ``percentile``."""

    bound_ms: float
    percentile: float
    value_ms: float | None  # None: too few calls for the percentile
    met: bool | None


@dataclass(frozen=True, kw_only=True)
class Measurement:
    workload: str  # "8x128", or a trace's file name
    threads: int
    scenario: str  # MLPerf's: "single-stream" (read its p90), "multi-stream" (its p99), "offline", "server"
    seconds: float
    latency: Percentiles | None = None  # of whole calls: text in, result out
    per_s: float | None = None  # texts a second
    stages: tuple[Stage, ...] = ()
    tokens: TokenTimes | None = None
    drift: Drift | None = None
    quantiles_ms: tuple[float, ...] = ()  # 101 of them, of the calls' times: the 0th to the 100th percentile
    server: Server | None = None
    budget: LatencyBudget | None = None
    joules_per_call: float | None = None  # None: not measurable here
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reads:
    """How fast a buffer of that size is read again and again: caches hold the small ones."""

    buffer_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """What this machine does at most with so many threads, measured: nothing here is looked up."""

    threads: int
    reads: tuple[Reads, ...]  # by their sizes; the last is of memory: no cache holds it
    ops_per_s: Mapping[str, float]  # of large matrix products, by dtype: "float32", "int8"; two to a multiply-add


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the graph in one call, and what the machine's roof would allow it."""

    name: str  # the node's
    module: str  # of the student that it computes: "encoder.layer.3.attention"
    op: str
    ms: float
    share: float  # of all nodes' time
    ops: float  # two to a multiply-add
    bytes: int  # weights and inputs read, outputs written
    computes: str  # the dtype that its products are in: "float32", "int8"
    weights: str = ""  # of a block-wise product: what its weights are stored in, "int4" or "int8"
    bound: str  # "compute" or "memory": the higher of the two roofs' times
    roof_ms: float  # what it would take at the roof
    of_roof: float  # roof_ms / ms


@dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    """Every node of one workload, in the order of the graph, from ONNX Runtime's profile."""

    workload: str
    threads: int
    phase: str  # "call"; of a decoder "prefill" and "decode" (one step behind the prompt)
    calls: int
    call_ms: float  # when nothing in it is timed
    nodes_ms: float  # the nodes' own times together; above call_ms: timing them made them slower
    between_ms: float  # of the call in no node: the way from one to the next
    operators: tuple[Operator, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A precision that the export tried: quality against latency."""

    precision: str
    quality: str  # which: "mean cosine", or "perplexity ratio"
    value: float
    ms: float
    chosen: bool
    speedup: float | None = None  # over the first row, usually fp32: median of paired ratios
    model_bytes: int | None = None
    verdict: str = ""  # "chosen", or why not


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """In fresh processes, with the files in the system's cache; medians."""

    processes: int
    whole_ms: float  # from the start of the process to the first result
    import_ms: float
    load_ms: float
    first_ms: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Noise:
    """A loop of known work, before, between and after what was measured."""

    loop_ms: float  # its median
    spread: float  # (p90 - p10) / p50
    slowest_over_fastest: float  # of the medians before, between and after
    noisy: bool


@dataclass(frozen=True, kw_only=True)
class Host:
    cpu: str
    arch: str
    isa: tuple[str, ...]
    cores: int
    system: str
    kernel: str
    python: str
    governor: str | None  # None: the system does not say
    clock_mhz: tuple[float, ...]  # of each core, now
    load_average_1min: float | None
    memory_bytes: int | None
    cpu_limit: float | None  # cores that a container may use; None: no limit
    virtual_machine: bool
    power_mode: str | None = None  # of a Jetson
    gpus: tuple[str, ...] = ()
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """One run of ``edgecompress profile``."""

    tool_version: str
    bundle: str
    identity: str  # sha256 of the manifest
    name: str
    task: str
    precision: str
    target: str
    bundle_bytes: int
    verified: bool  # whether its fidelity was measured at export
    host: Host
    noise: Noise
    measurements: tuple[Measurement, ...]
    cold_start: ColdStart | None = None
    peak_rss_bytes: int | None = None
    device_bytes: int | None = None  # of the GPU's memory, while it ran; None: no GPU
    fidelity: str = ""  # as the export measured it, in words
    terms: str = ""  # the licence, or what is not known about the terms of use; "": the profile does not say
    terms_open: bool = False  # ``--provenance enforce`` refuses the bundle
    tried: tuple[Tried, ...] = ()  # at export, on the machine that it was made on
    peaks: tuple[Peaks, ...] = ()  # one a thread count
    operators: tuple[OperatorProfile, ...] = ()
    remarks: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Interval:
    """99 % of the bootstrap's samples lie in it."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One side against the first, on one workload."""

    side: str
    workload: str
    p50_ms: float
    first_over_it: Interval  # above 1: it is faster than the first
    verdict: str  # "faster", "slower", "no difference seen"
    least_difference: float  # a share, such as 0.02: a difference of that size would have been seen
    agreement: float | None = None  # mean cosine of its output to the first's; None: not comparable


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run of ``edgecompress compare``."""

    tool_version: str
    sides: tuple[str, ...]
    threads: int
    launches: int
    pairs: int  # in each launch
    host: Host
    noise: Noise
    rows: tuple[Compared, ...]
    remarks: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA_VERSION
