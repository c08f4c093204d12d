"""The contents of a bundle's manifest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

SCHEMA_VERSION = 2

MODEL = "model"
"""Name of the model in bundles with a single model."""


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
    """The part of the target that ``load`` checks."""

    name: str
    arch: str
    isa: tuple[str, ...]  # CPU features that the model needs for correct results or for its speed
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
    """Session settings, chosen for the target at compile time."""

    threads: int | None  # None: the number of cores of the machine that loads it
    graph_optimization: str  # "disabled": the model was optimized offline
    session_config: Mapping[str, str] = field(default_factory=dict)
    cpu_memory_arena: bool = True
    batch_tokens: int = 256  # encode() puts texts of one length into batches of at most this many tokens
    mixed_lengths: bool = False  # batches may mix lengths, because padding costs little or nothing


@dataclass(frozen=True, kw_only=True)
class KernelLibrary:
    """A library of custom ops in the bundle, for one instruction set, with the location of its weights."""

    path: str
    isa: str  # e.g. "x86-64-v4-vnni"
    weights: str  # a JSON file: initializers to read into separate memory, in huge pages if available


@dataclass(frozen=True, kw_only=True)
class ShapeRange:
    """The shapes that an engine accepts for one input (min, opt, max), axis by axis; fastest at ``usual``."""

    smallest: tuple[int, ...]
    usual: tuple[int, ...]
    largest: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuildPlan:
    """How ``edgecompress build`` builds an engine from the bundle's graph on the device."""

    builder: str  # "tensorrt"
    minimum_version: str  # of the builder: the first version that parses the graph's ops, e.g. "10.14"
    compute_capability: tuple[int, int]
    profile: Mapping[str, ShapeRange]  # input -> shapes
    workspace_bytes: int  # limit for a layer's scratch memory
    timing_cache: str  # path in the bundle; speeds up later builds
    hardware_compatibility: str = "none"  # or "ampere-plus", "same-compute-capability"
    version_compatible: bool = False
    prices: tuple[str, ...] = ()  # the costs of non-default choices, in words


@dataclass(frozen=True, kw_only=True)
class EngineRecord:
    """A compiled engine in the bundle, and the machine that it needs. There is no fallback."""

    path: str  # ends in ".engine"
    layers: str  # a text file: the builder's description of each layer, with the type of every tensor
    builder: str  # "tensorrt-rtx" or "tensorrt"
    version: str  # of the builder; another version refuses the engine
    os: str  # of the build, e.g. "linux"
    compute_capability: tuple[int, int]
    profile: Mapping[str, ShapeRange]  # input -> shapes
    weights_bytes: int  # 0: the builder does not report it
    gpu: str = ""  # the GPU model that it was built on and needs; "": any with the compute capability


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Settings of a decoder's runtime: KV cache, special tokens and the checkpoint's sampling defaults."""

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
    temperature: float = 1.0  # like the next four, from generation_config.json
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    do_sample: bool = False
    prefill_chunk_tokens: int = 512


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to run a model."""

    backend: str  # a name of ``edgecompress.backends``: "onnxruntime-cpu"
    path: str  # of the ONNX file in the bundle; with an engine, the graph that it was built from
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    runtime: RuntimeSettings
    providers: tuple[str, ...] = ()  # ONNX Runtime execution providers, in order; the session must have all of them
    kernels: KernelLibrary | None = None
    engine: EngineRecord | None = None  # what runs instead of the graph
    build: BuildPlan | None = None  # the engine is built from the graph on the device, before the first run
    data: str | None = None  # path of the weights' file; variants of a model may share it


@dataclass(frozen=True, kw_only=True)
class ModelRecord:
    """``variants`` of the same weights, the export's choice first; a device uses one of them."""

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
    models: Mapping[str, ModelRecord]  # by the kind's names; a single model is named MODEL
    settings: Mapping[str, Any] = field(default_factory=dict)  # read by the bundle's kind only
    files: Mapping[str, FileRecord] = field(default_factory=dict)  # every file except the manifest and the measurements
    versions: Mapping[str, str] = field(default_factory=dict)  # of the packages that wrote it
    schema_version: int = SCHEMA_VERSION

    def variant(self, model: str = MODEL) -> Variant:
        """The variant of a model that runs. Raises KeyError if the bundle has no such model."""
        return self.models[model].variants[0]

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The variant of each model that runs, sorted by model name."""
        return tuple(self.variant(name) for name in sorted(self.models))

    @property
    def bytes(self) -> int:
        """Total size of its files."""
        return sum(record.bytes for record in self.files.values())


def with_variant(manifest: Manifest, variant: Variant, model: str = MODEL) -> Manifest:
    """The manifest with ``variant`` as the first variant of a model."""
    record = ModelRecord(variants=(variant, *manifest.models[model].variants[1:]))
    return replace(manifest, models={**manifest.models, model: record})
