"""What the user asks for. Flags and a TOML file are two ways to fill the same dataclass."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from edgecompress_kernels.cpu.abi import OPERATORS

from edgecompress.types.precision import AUTO
from edgecompress.types.provenance import ProvenanceRecipe

SCHEMA_VERSION = 1

HARDWARE_COMPATIBILITY = ("none", "ampere-plus", "same-compute-capability")
"""What other GPUs an engine of TensorRT runs on."""

BLOCK_METHODS = ("rtn", "hqq", "gptq")
"""How the weights of the weight-only precisions are rounded; ``gptq`` is calibrated."""

ACCURACY_LEVELS = (0, 1, 4)
"""MatMulNBits' own numbers: 0 and 1 compute in float32, 4 rounds the inputs to int8 a block and is 2-3x faster.

``auto`` measures what the target has of 4 and 1 and takes the fastest within the quality budget.
"""

BUNDLE = "bundle"
"""The format that every kind has: what is written is a bundle and nothing else. A kind may have others."""

KERNELS = tuple(dict.fromkeys(operator.kernel for operator in OPERATORS if operator.kernel))
"""Our own; ``auto`` takes those that are measured to be faster on the target, ``none`` leaves ONNX Runtime's."""

KV_CACHES = ("fp32", "int8")
"""What a decoder's keys and values are kept in; ``int8`` is calibrated, with one scale a channel."""

CALIBRATION_METHODS = ("minmax", "percentile", "entropy")


@dataclass(frozen=True, kw_only=True)
class StudentRecipe:
    source: str = ""  # local directory or hub id
    revision: str | None = None  # None: the hub's default branch, resolved to a commit and recorded
    task: str | None = None  # None: found from the checkpoint
    max_length_tokens: int | None = None  # None: what the checkpoint says
    allow_pickle: bool = False
    trust_remote_code: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantizeRecipe:
    smooth_alpha: float = 0.8  # SmoothQuant's migration strength (arXiv 2211.10438); 0 turns it off
    bias_correction: bool = True  # add E[Wx] - E[W'x'] to the bias (arXiv 1906.04721)
    quantize_embeddings: bool = True  # int8 rows with one scale a row; every int8 and int4 precision
    block_size: int = 128  # weights that share one scale in the weight-only precisions
    method: str = "rtn"  # of the weight-only precisions: one of BLOCK_METHODS
    symmetric: bool = True  # False: each block has a zero point of its own
    head_bits: int | None = None  # of a decoder's last layer; None: those of the precision
    embedding_bits: int | None = None  # of a decoder's embedding table; None: those of the precision
    mean_bits: float = 4.5  # of mixed-weights, over all weights that may be int4 or int8; scales are not counted
    accuracy_level: int | str = 4  # one of ACCURACY_LEVELS, or "auto"
    kv_cache: str = "fp32"  # of a decoder: one of KV_CACHES

    @property
    def first_accuracy_level(self) -> int:
        """What a graph is made with; others are made from the compiled one."""
        return 4 if isinstance(self.accuracy_level, str) else self.accuracy_level


@dataclass(frozen=True, kw_only=True)
class CalibrationRecipe:
    text: str = "builtin"  # "builtin", a text file with one sample a line, or "dataset:<id>[:column]"
    samples: int = 128
    max_length_tokens: int = 256
    method: str = "minmax"  # a clipped outlier costs more than coarse steps do, on every student tried
    percentile: float = 99.99  # of method "percentile"


@dataclass(frozen=True, kw_only=True)
class QualityRecipe:
    min_fidelity: float = 0.99  # mean cosine to the reference, for embeddings
    max_kl: float = 0.05  # mean KL divergence in nats, for heads and decoders
    min_top1: float = 0.97  # agreement of the most probable class, for heads; a decoder only reports it
    max_perplexity_ratio: float = 1.05  # over the reference's perplexity on held-out text, for decoders
    samples: int = 128  # held-out texts, never seen by calibration
    limits: Mapping[str, float] = field(default_factory=dict)  # of a kind's own figures; at least or at most is its say


@dataclass(frozen=True, kw_only=True)
class RuntimeRecipe:
    threads: int | None = None  # None: the target's cores
    kernels: str = "auto"  # "auto", "none", or names of KERNELS with commas between


@dataclass(frozen=True, kw_only=True)
class EngineRecipe:
    """The optimization profile of an engine: the least, the usual and the most of each axis that varies."""

    batch: tuple[int, int, int] | None = None  # None: 1, 8, 32 texts; of a decoder 1, 1, 4
    # None: from 1 to the student's maximum, usually half of it. Of a decoder: the new ones of a call, 1, 1, 512.
    length_tokens: tuple[int, int, int] | None = None
    context_tokens: int | None = None  # that a decoder's KV cache holds; None: the student's maximum, at most 4096
    workspace_mib: int = 1024  # this and the next two are TensorRT's, for a build on the device
    hardware_compatibility: str = "none"  # one of HARDWARE_COMPATIBILITY
    version_compatible: bool = False  # runs with later versions of TensorRT too


@dataclass(frozen=True, kw_only=True)
class Recipe:
    target: str = "local"
    backend: str | None = None  # one of the target's; None: the first of them that this version has
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
