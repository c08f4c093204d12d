"""``edgecompress export``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgecompress.backends import backends, target_names
from edgecompress.cli.engine_lines import describe_build, describe_engine
from edgecompress.cli.export_lines import candidate_table, describe, kernel_table
from edgecompress.cli.operands import require_checkpoint
from edgecompress.errors import UsageError
from edgecompress.kinds import kinds, known_tasks
from edgecompress.terminal import add_json_flag, emit_json, note, progress, table
from edgecompress.types.precision import AUTO, PRECISIONS
from edgecompress.types.provenance import POLICIES
from edgecompress.types.recipe import (
    BLOCK_METHODS,
    BUNDLE,
    CALIBRATION_METHODS,
    HARDWARE_COMPATIBILITY,
    KERNELS,
    KV_CACHES,
    Recipe,
)

if TYPE_CHECKING:
    from edgecompress.export.pipeline import ExportResult
    from edgecompress.export.plan import Plan

# flag -> (group of the recipe or "", field)
_FIELDS = {
    "target": ("", "target"),
    "backend": ("", "backend"),
    "precision": ("", "precision"),
    "format": ("", "format"),
    "checkpoint": ("student", "source"),
    "task": ("student", "task"),
    "revision": ("student", "revision"),
    "max_length": ("student", "max_length_tokens"),
    "allow_pickle": ("student", "allow_pickle"),
    "trust_remote_code": ("student", "trust_remote_code"),
    "smooth_alpha": ("quantize", "smooth_alpha"),
    "bias_correction": ("quantize", "bias_correction"),
    "quantize_embeddings": ("quantize", "quantize_embeddings"),
    "block_size": ("quantize", "block_size"),
    "method": ("quantize", "method"),
    "symmetric": ("quantize", "symmetric"),
    "head_bits": ("quantize", "head_bits"),
    "embedding_bits": ("quantize", "embedding_bits"),
    "mean_bits": ("quantize", "mean_bits"),
    "accuracy_level": ("quantize", "accuracy_level"),
    "kv_cache": ("quantize", "kv_cache"),
    "calibration": ("calibration", "text"),
    "calibration_samples": ("calibration", "samples"),
    "calibration_method": ("calibration", "method"),
    "min_fidelity": ("quality", "min_fidelity"),
    "max_kl": ("quality", "max_kl"),
    "min_top1": ("quality", "min_top1"),
    "max_perplexity_ratio": ("quality", "max_perplexity_ratio"),
    "threads": ("runtime", "threads"),
    "kernels": ("runtime", "kernels"),
    "engine_batch": ("engine", "batch"),
    "engine_tokens": ("engine", "length_tokens"),
    "engine_context": ("engine", "context_tokens"),
    "engine_workspace": ("engine", "workspace_mib"),
    "engine_compatible": ("engine", "hardware_compatibility"),
    "engine_any_version": ("engine", "version_compatible"),
    "provenance": ("provenance", "policy"),
    "accept": ("provenance", "accept"),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    absent = argparse.SUPPRESS  # only flags that are given override a recipe file
    parser.add_argument(
        "checkpoint", nargs="?", default=absent, metavar="CHECKPOINT", help="checkpoint folder or hub id"
    )
    parser.add_argument("-o", "--output", type=Path, help="the folder to create for the bundle")
    parser.add_argument(
        "--target", default=absent, help="a name from `edgecompress targets`, a .toml file, or local (local)"
    )
    parser.add_argument(
        "--backend",
        default=absent,
        help=f"backend of the target: {', '.join(target_names())} (default: the target's first)",
    )
    parser.add_argument("--precision", default=absent, help=_precision_help())
    parser.add_argument("--format", default=absent, help=_format_help())
    parser.add_argument("--recipe", type=Path, help="read settings from a TOML file; flags override it")
    student = parser.add_argument_group("student")
    student.add_argument(
        "--task",
        default=absent,
        help=f"task of the model (default: read from the checkpoint): {', '.join(known_tasks())}",
    )
    student.add_argument("--revision", default=absent, help="branch, tag or commit on the hub")
    student.add_argument(
        "--max-length", type=int, default=absent, metavar="TOKENS", help="longest text (default: the model's maximum)"
    )
    student.add_argument(
        "--allow-pickle", action="store_true", default=absent, help="load pickled weights, which can run code"
    )
    student.add_argument(
        "--trust-remote-code", action="store_true", default=absent, help="run Python code from the checkpoint"
    )
    quantize = parser.add_argument_group("quantization")
    quantize.add_argument(
        "--calibration", default=absent, help="builtin, a text file, or dataset:ID[:COLUMN] (builtin)"
    )
    quantize.add_argument("--calibration-samples", type=int, default=absent, metavar="N", help="number of texts")
    quantize.add_argument(
        "--calibration-method", default=absent, help=f"how ranges are found: {', '.join(CALIBRATION_METHODS)}"
    )
    quantize.add_argument(
        "--smooth-alpha", type=float, default=absent, help="strength of SmoothQuant, 0 to 1; 0 turns it off"
    )
    quantize.add_argument(
        "--no-bias-correction",
        dest="bias_correction",
        action="store_false",
        default=absent,
        help="do not correct biases for the error of quantized weights",
    )
    quantize.add_argument(
        "--no-quantize-embeddings",
        dest="quantize_embeddings",
        action="store_false",
        default=absent,
        help="keep embedding tables in float32",
    )
    quantize.add_argument(
        "--block-size", type=int, default=absent, help="weights that share a scale, in weight-only precisions"
    )
    quantize.add_argument(
        "--method", default=absent, help=f"how weight-only precisions round: {', '.join(BLOCK_METHODS)}"
    )
    quantize.add_argument(
        "--zero-points",
        dest="symmetric",
        action="store_false",
        default=absent,
        help="asymmetric weights: a zero point per block",
    )
    quantize.add_argument("--head-bits", type=int, default=absent, help="bits of a decoder's last layer: 4 or 8")
    quantize.add_argument(
        "--embedding-bits", type=int, default=absent, help="bits of a decoder's embedding table: 4 or 8"
    )
    quantize.add_argument(
        "--mean-bits", type=float, default=absent, help="--precision mixed: mean bits per weight, 4 to 8 (4.5)"
    )
    quantize.add_argument(
        "--accuracy-level",
        type=_level,
        default=absent,
        help="inputs of MatMulNBits: 0 or 1 for float32, 4 for int8, auto to measure 4 and 1 (4)",
    )
    quantize.add_argument(
        "--kv-cache",
        default=absent,
        help=f"KV cache of a decoder: {', '.join(KV_CACHES)}; int8 calibrates a scale per channel",
    )
    quality = parser.add_argument_group("quality budget")
    quality.add_argument("--min-fidelity", type=float, default=absent, help="least mean cosine to the reference (0.99)")
    quality.add_argument(
        "--max-kl", type=float, default=absent, help="most mean KL divergence of a head or decoder, in nats (0.05)"
    )
    quality.add_argument(
        "--min-top1", type=float, default=absent, help="least agreement with a head's first choice (0.97)"
    )
    quality.add_argument(
        "--max-perplexity-ratio",
        type=float,
        default=absent,
        help="most perplexity of a decoder over the reference's (1.05)",
    )
    parser.add_argument(
        "--threads", type=int, default=absent, help="threads of the runtime (default: the target's cores)"
    )
    parser.add_argument(
        "--kernels",
        default=absent,
        help=f"auto to measure the kernels of edgecompress and use the faster ones, none, or: {', '.join(KERNELS)}",
    )
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine-batch",
        type=_range,
        default=absent,
        metavar="MIN,OPT,MAX",
        help="texts per call (1,8,32; decoders: 1,1,4)",
    )
    engine.add_argument(
        "--engine-tokens",
        type=_range,
        default=absent,
        metavar="MIN,OPT,MAX",
        help="tokens per text (default: 1 to the model's maximum); decoders: new tokens per call (1,1,512)",
    )
    engine.add_argument(
        "--engine-context", type=int, default=absent, metavar="TOKENS", help="capacity of a decoder's KV cache (4096)"
    )
    engine.add_argument(
        "--engine-workspace", type=int, default=absent, metavar="MIB", help="TensorRT: workspace of a layer (1024)"
    )
    engine.add_argument(
        "--engine-compatible",
        default=absent,
        help=f"TensorRT: run on other GPUs too: {', '.join(HARDWARE_COMPATIBILITY)}",
    )
    engine.add_argument(
        "--engine-any-version", action="store_true", default=absent, help="TensorRT: run with later versions too"
    )
    provenance = parser.add_argument_group("provenance")
    provenance.add_argument(
        "--provenance",
        default=absent,
        metavar="POLICY",
        help=f"what to do when licence terms are restricted or unknown: {', '.join(POLICIES)} (warn)",
    )
    provenance.add_argument(
        "--accept", default=absent, metavar="REASON", help="export despite the policy; REASON is recorded in the bundle"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="print the resolved recipe, stages and estimates, and stop"
    )
    parser.add_argument("--force", action="store_true", help="replace the output if it is a bundle")
    add_json_flag(parser)


def _precision_help() -> str:
    short = [(f"{kind.name}s", kind.plan.SHORT_PRECISIONS) for kind in kinds().values()]
    short += [(backend.name, backend.plan.precisions(True)) for backend in backends().values()]
    return "; ".join([", ".join((AUTO, *PRECISIONS)), *(f"{who}: {', '.join(names)}" for who, names in short if names)])


def _format_help() -> str:
    forms = [form for kind in kinds().values() for form in kind.plan.FORMATS]
    return " or ".join([BUNDLE, *(f"{form.name}, a bundle that {form.title} can run too" for form in forms)])


def _level(text: str) -> int | str:
    return text if text == "auto" else int(text)


_level.__name__ = "accuracy level"  # argparse names it in its errors


def _range(text: str) -> tuple[int, int, int]:
    try:
        least, usual, most = map(int, text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"three whole numbers such as 1,8,32, not '{text}'") from None
    return least, usual, most


def recipe_from(options: argparse.Namespace) -> Recipe:
    """The recipe file, if given, overridden by the flags.

    Raises UsageError without a checkpoint, RecipeError for a file that is not valid.
    """
    if options.recipe is not None:
        from edgecompress.formats.recipe import read_recipe

        recipe = read_recipe(options.recipe)
    else:
        recipe = Recipe()
    for flag, (group, field) in _FIELDS.items():
        if flag not in options:
            continue
        value: Any = getattr(options, flag)
        if group:
            recipe = replace(recipe, **{group: replace(getattr(recipe, group), **{field: value})})
        else:
            recipe = replace(recipe, **{field: value})
    if not recipe.student.source:
        raise UsageError("no checkpoint was given", hint="Give a checkpoint folder or a hub id.")
    return recipe


def run(options: argparse.Namespace) -> int:
    recipe = recipe_from(options)
    require_checkpoint(recipe.student.source)
    if options.output is None and not options.dry_run:
        raise UsageError("no output was given", hint="Give -o PATH, the folder to create.")
    if options.output is not None:
        from edgecompress.export.bundle import check_output

        check_output(options.output, options.force)
    from edgecompress.export.pipeline import export
    from edgecompress.export.plan import plan

    with progress() as show:
        show("reading the checkpoint")
        job = plan(recipe)
        if job.warning is not None:
            note(f"edgecompress: {job.warning}")
        if options.dry_run:
            result = None
        else:
            result = export(recipe, options.output, force=options.force, progress=show, resolved=job)
    if result is None:
        _print_plan(job, options.json)
    else:
        _print_result(result, job, options.json)
    return 0


def _print_plan(job: Plan, as_json: bool) -> None:
    from edgecompress.formats.recipe import recipe_toml

    if as_json:
        emit_json(
            {
                "recipe": job.recipe,
                "candidates": job.candidates,
                "stages": job.stages,
                "measured_here": job.measured_here,
                "estimated_ram_bytes": job.estimate.ram_bytes,
                "estimated_disk_bytes": job.estimate.disk_bytes,
                "estimated_seconds": job.estimate.seconds,
            }
        )
        return
    print(recipe_toml(job.recipe))
    print(table(["stage", "what it does"], [[s.name, s.description] for s in job.stages]))
    memory, disk = job.estimate.ram_bytes / 1e9, job.estimate.disk_bytes / 1e6
    print(f"\nestimates: {memory:.1f} GB of memory, {disk:.0f} MB of disk, {job.estimate.seconds} s")


def _print_result(result: ExportResult, job: Plan, as_json: bool) -> None:
    if as_json:
        emit_json(
            {
                "output": str(result.output),
                "manifest": result.manifest,
                "report": result.report,
                "measurements": result.measurements,
                "seconds": result.seconds,
                "peak_rss_bytes": result.peak_rss_bytes,
            }
        )
        return
    candidates = result.measurements.candidates
    if candidates:
        print(candidate_table(candidates, job.kind.metric) + "\n")
    if result.measurements.kernels:
        print(kernel_table(result.measurements.kernels) + "\n")
    manifest, size = result.manifest, sum(record.bytes for record in result.manifest.files.values())
    print(f"{result.output}: {manifest.name}, {manifest.task}, {manifest.precision} for {manifest.target.name}")
    print(f"  fidelity  {describe(result.report.fidelity, job.kind.metric)}")
    cache = result.report.kv_cache
    if cache is not None:
        saved = f"{cache.bytes_per_token:_} bytes a token (float32: {cache.float_bytes_per_token:_})"
        print(f"  KV cache  {cache.dtype}, {saved}, perplexity ratio of the cache alone {cache.perplexity_ratio:.4f}")
    for row in result.measurements.latencies:
        print(f"  latency   {row.case:<8} p50 {row.p50_ms:.2f} ms, p99 {row.p99_ms:.2f} ms, {row.threads} threads")
    if not result.measurements.latencies:
        print(f"  latency   not measured: this machine is not a {manifest.target.name}")
    for variant in manifest.variants:
        if variant.engine is not None:
            print(f"  engine    {describe_engine(variant.engine)}")
        if variant.build is not None:
            print(f"  engine    {describe_build(variant.build, result.output)}")
    print(f"  size      {size / 1e6:.1f} MB")
    if job.format is not None:
        print(f"  {job.format.name:<9} {job.format.title} can run this folder too")
    spent = ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in result.seconds.items())
    total, memory = sum(result.seconds.values()), result.peak_rss_bytes / 1e9
    print(f"  took      {total:.1f} s ({spent}), peak memory {memory:.2f} GB")
