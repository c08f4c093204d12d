"""A profile: latencies by shape and threads, the host, and the measurement noise."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

PROFILE_SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Percentiles:
    """Percentiles of wall times. None: too few calls (at least ten must lie beyond a percentile)."""

    calls: int
    mean_ms: float
    max_ms: float
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of every call, in order."""

    name: str  # "tokenize", "batch", "compute", …
    p50_ms: float
    share: float  # of the sum of all stages' means


@dataclass(frozen=True, kw_only=True)
class TokenTimes:
    """Token times of a decoder."""

    new_tokens: int  # per text
    ttft: Percentiles  # from the text to its first new token
    between: Percentiles  # from one new token to the next; TPOT is the mean
    prefill_tokens_per_s: float
    decode_tokens_per_s: float  # of all rows together


@dataclass(frozen=True, kw_only=True)
class Drift:
    """Latency over time, in windows of equal length."""

    window_s: float
    p50_ms: tuple[float, ...]
    degrades_after_s: float | None = None  # from then on it stays 10 % above its initial value


@dataclass(frozen=True, kw_only=True)
class Server:
    """Requests arrive at random (Poisson) and queue; latency counts from a request's arrival."""

    asked_per_s: float
    done_per_s: float
    latency: Percentiles
    bound_ms: float | None = None
    within_bound: bool | None = None  # whether p99 is within bound_ms


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
    quantiles_ms: tuple[float, ...] = ()  # the 0th to the 100th percentile of the calls' times
    server: Server | None = None
    budget: LatencyBudget | None = None
    joules_per_call: float | None = None  # None: not measurable here
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Reads:
    """Bandwidth of reading a buffer repeatedly; small buffers stay in a cache."""

    buffer_bytes: int
    bytes_per_s: float


@dataclass(frozen=True, kw_only=True)
class Peaks:
    """This machine's measured peaks with that number of threads."""

    threads: int
    reads: tuple[Reads, ...]  # sorted by size; the last exceeds all caches
    ops_per_s: Mapping[str, float]  # of large matrix products, by dtype: "float32", "int8"; a multiply-add is two ops


@dataclass(frozen=True, kw_only=True)
class Operator:
    """One node of the graph in one call, compared with the machine's roofline."""

    name: str  # the node's
    module: str  # module of the student: "encoder.layer.3.attention"
    op: str
    ms: float
    share: float  # of all nodes' time
    ops: float  # a multiply-add is two ops
    bytes: int  # weights and inputs read, outputs written
    computes: str  # dtype of its products: "float32", "int8"
    weights: str = ""  # dtype of block-wise weights: "int4" or "int8"
    bound: str  # "compute" or "memory": the roof that takes longer
    roof_ms: float  # time at the roof
    of_roof: float  # roof_ms / ms


@dataclass(frozen=True, kw_only=True)
class OperatorProfile:
    """Every node of one workload, in graph order, from ONNX Runtime's profile."""

    workload: str
    threads: int
    phase: str  # "call"; for a decoder "prefill" or "decode" (one step after the prompt)
    calls: int
    call_ms: float  # without timing the nodes
    nodes_ms: float  # sum of the nodes' times; above call_ms if timing slows the nodes down
    between_ms: float  # time of the call outside nodes
    operators: tuple[Operator, ...]


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A precision that the export tried, with its quality and latency."""

    precision: str
    quality: str  # the figure: "mean cosine" or "perplexity ratio"
    value: float
    ms: float
    chosen: bool
    speedup: float | None = None  # over the first row, usually fp32: median of paired ratios
    model_bytes: int | None = None
    verdict: str = ""  # "chosen", or why not


@dataclass(frozen=True, kw_only=True)
class ColdStart:
    """Medians over fresh processes, with the files in the page cache."""

    processes: int
    whole_ms: float  # from the start of the process to the first result
    import_ms: float
    load_ms: float
    first_ms: float
    peak_rss_bytes: int


@dataclass(frozen=True, kw_only=True)
class Noise:
    """Times of a fixed loop, run before, between and after the measurements."""

    loop_ms: float  # median of the loop
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
    governor: str | None  # None: unknown
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
    verified: bool  # its fidelity was measured at export
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
    peaks: tuple[Peaks, ...] = ()  # one per thread count
    operators: tuple[OperatorProfile, ...] = ()
    remarks: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA_VERSION


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A 99 % bootstrap interval."""

    low: float
    middle: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Compared:
    """One side compared with the first, on one workload."""

    side: str
    workload: str
    p50_ms: float
    first_over_it: Interval  # above 1: faster than the first
    verdict: str  # "faster", "slower", "no difference seen"
    least_difference: float  # the smallest detectable difference, as a share such as 0.02
    agreement: float | None = None  # mean cosine between its output and the first's; None: not comparable


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One run of ``edgecompress compare``."""

    tool_version: str
    sides: tuple[str, ...]
    threads: int
    launches: int
    pairs: int  # per launch
    host: Host
    noise: Noise
    rows: tuple[Compared, ...]
    remarks: tuple[str, ...] = ()
    schema_version: int = PROFILE_SCHEMA_VERSION
