"""The recipe of an export. Flags and a TOML file fill the same dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress_kernels.cpu.abi import OPERATORS

from edgecompress.types.precision import AUTO
from edgecompress.types.provenance import ProvenanceRecipe

SCHEMA_VERSION = 1

HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")
"""Other GPUs that a TensorRT engine may run on."""

BLOCK_METHODS = ("rtn", "hqq", "gptq")
"""How weight-only precisions round weights; ``gptq`` needs calibration text."""

ACCURACY_LEVELS = (0, 1, 4)
"""MatMulNBits' accuracy levels: 0 and 1 compute in float32, 4 rounds the inputs to int8 per block and is 2-3x faster.

``auto`` measures levels 4 and 1 as far as the target has them, and chooses the fastest within the quality budget.
"""

BUNDLE = "bundle"
"""The format of every kind: a bundle only. A kind may have other formats."""

KERNELS = tuple(dict.fromkeys(operator.kernel for operator in OPERATORS if operator.kernel))
"""Our own kernels; ``auto`` uses those that measure faster on the target, ``none`` keeps ONNX Runtime's."""

KV_CACHES = ("fp32", "int8")
"""Dtypes of a decoder's KV cache; ``int8`` is calibrated, with one scale per channel."""

CALIBRATION_METHODS = ("minmax", "percentile", "entropy")


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    source: str = ""  # local directory or hub id
    revision: str | None = None  # None: the hub's default branch, resolved to a commit and recorded
    task: str | None = None  # None: detected from the checkpoint
    max_length_tokens: int | None = None  # None: the checkpoint's value
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantizeRecipe:
    smooth_alpha: float = 0.8  # SmoothQuant's migration strength (arXiv 2211.10438); 0 turns it off
    bias_correction: bool = True  # add E[Wx] - E[W'x'] to the bias (arXiv 1906.04721)
    quantize_embeddings: bool = True  # int8 with one scale per row; for every int8 and int4 precision
    block_size: int = 128  # weights per scale in the weight-only precisions
    method: str = "rtn"  # for the weight-only precisions: one of BLOCK_METHODS
    symmetric: bool = True  # False: each block has its own zero point
    head_bits: int | None = None  # for a decoder's head; None: the precision's bits
    embedding_bits: int | None = None  # for a decoder's embedding table; None: the precision's bits
    mean_bits: float = 4.5  # for mixed-weights, over all weights that may be int4 or int8; without scales
    accuracy_level: int | str = 4  # one of ACCURACY_LEVELS, or "auto"
    kv_cache: str = "fp32"  # for a decoder: one of KV_CACHES

    @property
    def first_accuracy_level(self) -> int:
        """The level of the first graph; graphs with other levels are derived from it."""
        return 4 if isinstance(self.accuracy_level, str) else self.accuracy_level


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    text: str = "builtin"  # "builtin", a text file with one sample per line, or "dataset:<id>[:column]"
    samples: int = 128
    max_length_tokens: int = 256
    method: str = "minmax"  # on every student tried, clipping outliers costs more than coarser steps
    percentile: float = 99.99  # for method "percentile"


@dataclass(frozen=True, kw_only=True)
class QualityRecipe:
    min_fidelity: float = 0.99  # mean cosine to the reference, for embeddings
    max_kl: float = 0.05  # mean KL divergence in nats, for heads and decoders
    min_top1: float = 0.97  # agreement of the most probable class, for heads; only reported for decoders
    max_perplexity_ratio: float = 1.05  # over the reference's perplexity on held-out text, for decoders
    samples: int = 128  # held-out texts, not used for calibration
    limits: Mapping[str, float] = field(
        default_factory=dict
    )  # on a kind's own figures; the kind decides if a limit is a minimum or a maximum


@dataclass(frozen=True, kw_only=True)
class RuntimeRecipe:
    threads: int | None = None  # None: the target's cores
    kernels: str = "auto"  # "auto", "none", or comma-separated names of KERNELS


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """The optimization profile of an engine: min, opt and max of each dynamic axis."""

    batch: tuple[int, int, int] | None = None  # None: 1, 8, 32 texts; for a decoder 1, 1, 4
    # None: from 1 to the student's maximum, opt half of it. For a decoder, new tokens per call: 1, 1, 512.
    length_tokens: tuple[int, int, int] | None = None
    context_tokens: int | None = None  # capacity of a decoder's KV cache; None: the student's maximum, up to 4096
    workspace_mib: int = 1024  # like the next two, for TensorRT builds on the device
    hardware_compatibility: str = "none"  # one of HARDWARE_COMPATIBILITY
    version_compatible: bool = False  # also runs with later TensorRT versions


@dataclass(frozen=True, kw_only=True)
class Recipe:
    target: str = "local"
    backend: str | None = None  # one of the target's; None: its first
    precision: str = AUTO
    format: str = BUNDLE  # or one of the kind's formats
    student: StudentRecipe = field(default_factory=StudentRecipe)
    quantize: QuantizeRecipe = field(default_factory=QuantizeRecipe)
    calibration: CalibrationRecipe = field(default_factory=CalibrationRecipe)
    quality: QualityRecipe = field(default_factory=QualityRecipe)
    runtime: RuntimeRecipe = field(default_factory=RuntimeRecipe)
    engine: EngineRecipe = field(default_factory=EngineRecipe)
    provenance: ProvenanceRecipe = field(default_factory=ProvenanceRecipe)
    schema_version: int = SCHEMA_VERSION
