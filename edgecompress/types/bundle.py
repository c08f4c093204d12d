"""What a bundle's manifest says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SCHEMA_VERSION = 2

MODEL = "model"
"""The name of a bundle's model where it has only one."""


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class TensorSpec:
    """One input or output of the model; a str in ``shape`` is a dynamic axis."""

    name: str
    dtype: str  # NumPy's name: "int64", "float32"
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class TargetRecord:
    """The part of the target that a load must check."""

    name: str
    arch: str
    isa: tuple[str, ...]  # CPU features the model relies on for right answers or for its speed
    isa_reason: str = ""  # why a mismatch is refused


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    tokenizer: str  # path inside the bundle
    max_length_tokens: int
    lower_case: bool = False
    pad_token_id: int = 0
    pad_token: str = "[PAD]"
    mask_token: str | None = None
    prompts: Mapping[str, str] = field(default_factory=dict)
    default_prompt: str | None = None


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Pixel values are ``(image / 255 * ... - mean) / std``, channels first, float32 [B, 3, height, width]."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    rescale: float = 1 / 255
    resample: int = 3  # Pillow's constant, as preprocessor_config.json gives it
    resize: int | None = None  # shortest edge before the centre crop; None: straight to (height, width)


@dataclass(frozen=True, kw_only=True)
class RuntimeSettings:
    """How the session is made: chosen for the target at compile time."""

    threads: int | None  # None: as many as the machine that loads it has cores for
    graph_optimization: str  # "disabled": the model was optimized offline
    session_config: Mapping[str, str] = field(default_factory=dict)
    cpu_memory_arena: bool = True
    batch_tokens: int = 256  # encode() puts texts of one length into batches of at most this many tokens
    mixed_lengths: bool = False  # texts of any lengths make one batch: padding is not computed, or costs little


@dataclass(frozen=True, kw_only=True)
class KernelLibrary:
    """A library of custom ops in the bundle, for one instruction set, and where the weights that it reads lie."""

    path: str
    isa: str  # e.g. "x86-64-v4-vnni"
    weights: str  # a JSON file: the initializers that are read into memory of their own, in huge pages where there are


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """What an engine takes for one input, axis by axis; it is fastest at ``usual``."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """How an engine is built from the bundle's graph on the device itself: ``edgecompress build`` does it."""

    builder: str  # "tensorrt"
    minimum_version: str  # of the builder: the first whose parser takes the graph's ops, e.g. "10.14"
    compute_capability: tuple[int, int]
    profile: Mapping[str, ShapeRange]  # input -> shapes
    workspace_bytes: int  # that a layer may use beside its tensors, at most
    timing_cache: str  # path in the bundle: what was timed once is not timed again
    hardware_compatibility: str = "none"  # or "ampere-plus", "same-compute-capability"
    version_compatible: bool = False
    prices: tuple[str, ...] = ()  # what the choices that are not the defaults cost, in words


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """A compiled engine in the bundle, and what a machine must be to run it. Nothing else runs in its place."""

    path: str  # ends in ".engine"
    layers: str  # a text file: the builder's own account of each layer, with the type of every tensor
    builder: str  # "tensorrt-rtx" or "tensorrt"
    version: str  # of the builder; another version refuses the engine
    os: str  # that it was built on: "linux"
    compute_capability: tuple[int, int]
    profile: Mapping[str, ShapeRange]  # input -> shapes
    weights_bytes: int  # 0: its builder does not say
    gpu: str = ""  # the GPU that it was built on, and is for; "": any of the compute capability


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """What a decoder's runtime must know: its cache, its special tokens and how its checkpoint samples."""

    context_length_tokens: int
    layers: int
    kv_heads: int
    head_size: int
    vocab_size: int
    kv_dtype: str = "float32"  # of past_key_values.* and present.*: "float32" or "int8"
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int
    chat_template: str | None = None  # path of a file in the bundle (Jinja)
    think_start: str | None = None  # reasoning tags, e.g. "<think>"
    think_end: str | None = None
    temperature: float = 1.0  # this and the next four: generation_config.json's
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    prefill_chunk_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a model."""

    backend: str  # a name of ``edgecompress.backends``: "onnxruntime-cpu"
    path: str  # of the ONNX file inside the bundle; beside an engine the graph that it was built from
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: RuntimeSettings
    providers: tuple[str, ...] = ()  # ONNX Runtime execution providers, in order; all must be live in the session
    kernels: KernelLibrary | None = None
    engine: EngineRecord | None = None  # what runs in the place of the graph
    build: BuildPlan | None = None  # an engine is built from the graph on the device, before anything runs
    data: str | None = None  # path of the weights' file; variants of one model may share it


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """``variants`` over the same weights, the one that the export chose first; a device takes one of them."""

    variants: tuple[Variant, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    tool_version: str
    name: str
    kind: str  # a name of ``edgecompress.kinds``
    task: str
    architecture: str
    precision: str
    target: TargetRecord
    models: Mapping[str, ModelRecord]  # by the names that the kind gives them; one alone is MODEL
    settings: Mapping[str, Any] = field(default_factory=dict)  # the record of its kind, which alone reads it
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # every file but the manifest and the measurements
    versions: Mapping[str, str] = field(default_factory=dict)  # packages that made it
    schema_version: int = SCHEMA_VERSION

    def variant(self, model: str = MODEL) -> Variant:
        """What runs of a model. Raises KeyError if the bundle has no such model."""
        return self.models[model].variants[0]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """What runs of each model, in order of their names."""
        return tuple(self.variant(name) for name in sorted(self.models))

    @property
    def bytes(self) -> int:
        """Of all its files together."""
        return sum(record.bytes for record in self.files.values())


def with_variant(manifest: Manifest, variant: Variant, model: str = MODEL) -> Manifest:
    """The manifest with another first variant of a model."""
    record = ModelRecord(variants=(variant, *manifest.models[model].variants[1:]))
    return replace(manifest, models={**manifest.models, model: record})
