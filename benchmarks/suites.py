"""All benchmarks in one table: what each runs, needs, takes and feeds, and which of its ratios are checked.

This is data; ``benchmarks.suite`` runs it. Arguments may name inputs that are made first: {work}, {student} (the real
MiniLM's folder), an entry of INPUTS, or the python of a peer's environment.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

GB = 1_000_000_000


@dataclass(frozen=True, kw_only=True)
class Field:
    """A ratio of a row. ``path`` leads to it: "" is the row itself, "a.*" every entry of ``a``."""

    path: str = ""
    better: Literal["more", "less", "same"] = "more"
    value: str = ""  # a number without p10 and p90 of its own
    half_width: str = ""  # what says how far ``value`` may be off; else it is exact but for its last digit
    digits: int = 3
    drawn: bool = True


@dataclass(frozen=True, kw_only=True)
class RatioRule:
    """Which ratios of a file are checked: ``key`` identifies a row, ``only`` selects our rows."""

    fields: tuple[Field, ...] = (Field(),)
    key: tuple[str, ...]
    lines: tuple[str, ...]  # of the key: what tells lines of one plot apart
    only: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    any_host: bool = False  # bytes are the same everywhere


@dataclass(frozen=True, kw_only=True)
class Part:
    """One command: ``python -m benchmarks.MODULE ARGUMENTS --out FILE``."""

    module: str
    arguments: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Bench:
    """``results`` is its file in results/ without the ending; another kind of host has it as ``results-NAME``.

    ``minutes`` are those of two cores, without making inputs. ``python``: the peer in whose environment it runs.
    ``peers`` may be missing, which is reported: peer -> the option that takes its python. ``feeds``: tables of
    README.md and docs/benchmarks.md. ``quick`` is a short form, for ``check`` alone.
    """

    parts: tuple[Part, ...]
    results: str
    minutes: int
    inputs: tuple[str, ...] = ()  # that no argument names
    python: str = ""
    peers: Mapping[str, str] = field(default_factory=dict)
    packages: tuple[str, ...] = ()
    gpu: bool = False
    memory_bytes: int = 4 * GB
    disk_bytes: int = 2 * GB
    feeds: tuple[str, ...] = ()
    held: RatioRule | None = None
    quick: Part | None = None
    quick_minutes: int = 0


@dataclass(frozen=True, kw_only=True)
class Input:
    """Made once in the work folder as ``path``: ``python COMMAND``."""

    path: str
    command: tuple[str, ...]
    minutes: int
    inputs: tuple[str, ...] = ()
    disk_bytes: int = GB


_EXPORT = ("-m", "edgecompress", "export")
_LOOSE = ("--max-kl", "100", "--max-perplexity-ratio", "100")  # random weights have no quality to keep
INPUTS: Mapping[str, Input] = {
    "minilm": Input(
        path="minilm.bundle", command=(*_EXPORT, "{student}", "--precision", "int8-dynamic", "-o", "{path}"), minutes=1
    ),
    "decoder": Input(
        path="small-decoder", command=("-m", "benchmarks.small_decoder", "{path}", "--minutes", "8"), minutes=9
    ),
    "decoder_bundle": Input(
        path="small.bundle",
        command=(*_EXPORT, "{decoder}", "--precision", "int4", "--method", "gptq", "-o", "{path}"),
        minutes=1,
    ),
    "r1": Input(path="r1-shape", command=("-m", "benchmarks.r1_shape", "{path}"), minutes=2, disk_bytes=4 * GB),
    # with the record of its export, which bench_decoder keeps beside it
    "r1_bundle": Input(
        path="ours-128.bundle",
        command=("-m", "benchmarks.bench_decoder", "--work", "{work}", "--ours-only", "--prepare"),
        minutes=5,
        inputs=("r1",),
        disk_bytes=2 * GB,
    ),
    "r1_stock": Input(
        path="none.bundle",
        command=(*_EXPORT, "{r1}", "--precision", "int4", "--kernels", "none", *_LOOSE, "-o", "{path}"),
        minutes=4,
        disk_bytes=2 * GB,
    ),
}

_ENCODER = RatioRule(
    fields=(Field(), Field(path="best_peer", drawn=False)),
    key=("shape", "threads", "name"),
    lines=("name",),
    only={"ours": (True,)},
)
_DECODER = RatioRule(
    fields=(Field(path="against.*"),),
    key=("what", "tokens", "threads", "name"),
    lines=("name",),
    only={"ours": (True,)},
)
_CHOICES = Field(path="time_over_chosen")  # of what was left over what was chosen: falls where the choice gets slow
_R1_GB = 8 * GB

BENCHES: Mapping[str, Bench] = {
    "encoder": Bench(
        parts=(Part(module="bench_encoder", arguments=("--work", "{work}/encoder")),),
        results="encoder",
        minutes=40,
        python="openvino",
        peers={"optimum": "--optimum-python"},
        feeds=("encoder-1", "encoder-2", "encoder-fidelity", "encoder-zen3", "summary"),
        held=_ENCODER,
        quick=Part(
            module="bench_encoder",
            arguments=(
                *("--work", "{work}/encoder-quick", "--threads", "2", "--shape", "1x16", "1x128"),
                *("--side", "onnxruntime fp32", "--rounds", "0.5"),
            ),
        ),
        quick_minutes=3,
    ),
    "encoder_kernels": Bench(
        parts=(
            Part(
                module="bench_encoder",
                arguments=(
                    *("--work", "{work}/encoder", "--side", "openvino nncf int8"),
                    *("--shape", "1x16", "1x128", "8x128", "mixed", "--rounds", "0.5"),
                ),
            ),
        ),
        results="encoder_kernels",
        minutes=15,
        python="openvino",
        feeds=("encoder-kernels", "encoder-kernels-xeon-amx", "summary"),
        held=_ENCODER,
        quick=Part(
            module="bench_encoder",
            arguments=(
                *("--work", "{work}/encoder-quick", "--threads", "2", "--shape", "1x16", "1x128"),
                *("--side", "onnxruntime fp32", "--rounds", "0.5"),
            ),
        ),
        quick_minutes=3,
    ),
    "cold_start": Bench(
        parts=(Part(module="cold_start"),),
        results="cold_start",
        minutes=5,
        feeds=("cold-start", "summary"),
        held=RatioRule(
            fields=(Field(path="against_torch"),), key=("what", "name"), lines=("name",), only={"ours": (True,)}
        ),
        quick=Part(
            module="cold_start", arguments=("--bundle", "{minilm}", "--precision", "int8-dynamic", "--rounds", "3")
        ),
        quick_minutes=2,
    ),
    "decoder": Bench(
        parts=(Part(module="bench_decoder", arguments=("--work", "{work}")),),
        results="decoder",
        inputs=("r1_bundle",),
        minutes=90,
        peers={"genai": "--python-genai", "llama": "--python-llama", "openvino-genai": "--python-openvino"},
        memory_bytes=14 * GB,
        disk_bytes=15 * GB,
        feeds=("decoder", "decoder-ratios", "summary"),
        held=_DECODER,
    ),
    "decoder_roof": Bench(
        parts=(Part(module="bench_decoder", arguments=("--work", "{work}", "--ours-only", "--rounds", "8")),),
        results="decoder_roof",
        inputs=("r1_bundle",),
        minutes=20,
        memory_bytes=_R1_GB,
        disk_bytes=8 * GB,
    ),
    "export": Bench(
        parts=(
            Part(module="bench_export", arguments=("{r1}", "--out-dir", "{work}/exports", "--kinds", "rtn", "gptq")),
        ),
        results="export",
        minutes=15,
        memory_bytes=_R1_GB,
        disk_bytes=8 * GB,
    ),
    "generation": Bench(
        parts=(
            Part(module="bench_generation", arguments=("--bundle", "{r1_bundle}", "--trained", "{decoder_bundle}")),
        ),
        results="generation",
        minutes=15,
        memory_bytes=_R1_GB,
        disk_bytes=8 * GB,
        held=RatioRule(key=("what", "threads", "bundle"), lines=("what",)),
    ),
    "decode_step": Bench(
        parts=(
            Part(
                module="bench_decode_step",
                arguments=("--baseline", "{r1_stock}", "--bundles", "{r1_bundle}", "--contexts", "128", "8192"),
            ),
        ),
        results="decode_step",
        minutes=15,
        memory_bytes=_R1_GB,
        disk_bytes=10 * GB,
        held=RatioRule(
            key=("bundle", "kv_cache", "threads", "context_tokens"),
            lines=("context_tokens",),
            only={"bundle": ("ours-128.bundle",)},
        ),
    ),
    "cpu_attention": Bench(
        parts=(Part(module="bench_cpu_attention"),),
        results="cpu_attention",
        minutes=25,
        held=RatioRule(
            fields=(Field(path="times_as_fast"),),
            key=("heads", "kv_heads", "head_size", "tokens", "threads", "name", "against"),
            lines=("tokens",),
            only={"name": ("ours float32", "ours int8")},
        ),
        quick=Part(module="bench_cpu_attention", arguments=("--threads", "2", "--rounds", "5")),
        quick_minutes=5,
    ),
    "decoder_quality": Bench(
        parts=(
            Part(module="decoder_quality", arguments=("{decoder}",)),
            Part(module="decoder_quality", arguments=("{decoder}", "--kv-cache")),
        ),
        results="decoder_quality",
        minutes=20,
    ),
    "mixed_bits": Bench(
        parts=(Part(module="decoder_quality", arguments=("{decoder}", "--mixed")),), results="mixed_bits", minutes=15
    ),
    "engines": Bench(
        parts=(Part(module="bench_engines", arguments=("--decoder", "{decoder}")),),
        results="engines",
        minutes=3,
        packages=("tensorrt_rtx",),
        feeds=("engines",),
        held=RatioRule(
            fields=(Field(value="weights_bytes_over_fp16", better="less"),),
            key=("student", "target", "precision"),
            lines=("precision",),
            any_host=True,
        ),
        quick=Part(module="bench_engines"),
        quick_minutes=2,
    ),
    "modelopt": Bench(
        parts=(Part(module="bench_modelopt", arguments=("--modelopt-python", "{modelopt}")),),
        results="modelopt",
        minutes=10,
        feeds=("modelopt",),
        packages=("tensorrt_rtx",),
    ),
    "compare": Bench(
        parts=(Part(module="bench_compare", arguments=("--bundle", "{minilm}")),),
        results="compare",
        minutes=25,
        held=RatioRule(
            fields=(Field(value="median_ratio", half_width="median_least_difference", better="same"),),
            key=("kind", "planted"),
            lines=("kind",),
        ),
        quick=Part(module="bench_compare", arguments=("--bundle", "{minilm}", "--runs", "4")),
        quick_minutes=2,
    ),
    "estimate": Bench(
        parts=(Part(module="bench_estimate", arguments=("--work", "{work}/estimate")),),
        results="estimate",
        minutes=25,
        feeds=("estimate",),
        disk_bytes=6 * GB,
    ),
    "house": Bench(
        parts=(Part(module="bench_house", arguments=("--make", "quick", "--make", "test")),),
        results="house",
        minutes=30,
    ),
    "first_answer": Bench(
        parts=(Part(module="bench_first_answer"),), results="first_answer", minutes=15, packages=("uv",)
    ),
    "fleet": Bench(parts=(Part(module="bench_fleet"),), results="fleet", minutes=4, packages=("distributed",)),
    "distill": Bench(
        parts=(Part(module="bench_distill", arguments=("{work}/distill",)),), results="distill", minutes=60
    ),
    "labelling": Bench(parts=(Part(module="bench_labelling"),), results="labelling", minutes=5, packages=("openai",)),
    "lineage": Bench(
        parts=(Part(module="bench_lineage", arguments=("--work", "{work}/lineage")),),
        results="lineage",
        minutes=5,
        packages=("model_signing",),
        disk_bytes=8 * GB,
    ),
    "serve": Bench(
        parts=(Part(module="bench_serve", arguments=("{decoder_bundle}",)),),
        results="serve",
        minutes=3,
        packages=("fastapi", "uvicorn", "openai"),
    ),
    "graph_choices": Bench(
        parts=(Part(module="bench_graph_choices"),),
        results="graph_choices",
        minutes=10,
        held=RatioRule(fields=(_CHOICES,), key=("precision", "variant", "shape", "threads"), lines=("variant",)),
        quick=Part(module="bench_graph_choices", arguments=("--threads", "2")),
        quick_minutes=5,
    ),
    "decoder_choices": Bench(
        parts=(Part(module="bench_decoder_choices"),),
        results="decoder_choices",
        minutes=5,
        held=RatioRule(
            fields=(_CHOICES,), key=("student", "precision", "variant", "shape", "threads"), lines=("shape",)
        ),
    ),
    "kv_cache": Bench(
        parts=(Part(module="bench_kv_cache"),),
        results="kv_cache",
        minutes=5,
        held=RatioRule(
            fields=(Field(path="time_over_float32", better="less"),),
            key=("new_tokens", "behind", "threads", "cache"),
            lines=("cache",),
            only={"cache": ("int8",)},
        ),
    ),
    "gpu_attention": Bench(
        parts=(Part(module="bench_gpu_attention", arguments=("--rounds", "10")),),
        results="gpu_attention",
        minutes=8,
        gpu=True,
        packages=("triton",),
        held=RatioRule(
            fields=(Field(path="best_peer_time_over_ours"), Field(path="time_over_ours_int8_cache.ours", drawn=False)),
            key=("kind", "head", "batch", "length", "dtype"),
            lines=("length",),
        ),
    ),
    "gpu_backends": Bench(
        parts=(Part(module="bench_gpu_backends", arguments=("--work", "{work}/gpu")),),
        results="gpu_backends",
        minutes=20,
        gpu=True,
        memory_bytes=_R1_GB,
        disk_bytes=20 * GB,
        held=RatioRule(
            fields=tuple(Field(path=f"{what}torch_eager_over_it") for what in ("", "ttft_", "tpot_")),
            key=("kind", "side", "batch", "tokens", "prompt_tokens"),
            lines=("side",),
        ),
    ),
}
