"""The one place where the stages are listed in order."""

from __future__ import annotations

import gc
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.backends.gpu_plan import check_engine, cuda_precision, resolve_engine
from edgecompress.errors import OutputError, RecipeError
from edgecompress.export.bundle import check_output, write_bundle
from edgecompress.formats.recipe import resolve_precision, validate_recipe
from edgecompress.lineage.collect import Checkpoint, LineageFiles, collect
from edgecompress.lineage.policy import check
from edgecompress.runtime.memory import check_available
from edgecompress.targets import computable, find_target, matches_host, require_backend, require_precision
from edgecompress.types.bundle import Manifest
from edgecompress.types.precision import FP8, FP16, FP32, INT4_WEIGHTS, INT8_WEIGHTS, MIXED_WEIGHTS, PRECISIONS
from edgecompress.types.recipe import (
    ENGINE_BACKENDS,
    ONNXRUNTIME,
    SHORT_PRECISIONS,
    TENSORRT,
    TENSORRT_RTX,
    EngineRecipe,
    Recipe,
)
from edgecompress.types.report import Measurements, Report
from edgecompress.types.student import Student
from edgecompress.types.target import Target

if TYPE_CHECKING:
    from edgecompress.export.assembly import Made

Progress = Callable[[str], None]

# A decoder's activations grow outliers that one scale a tensor cannot hold, and its steps are bound by reading weights.
_OF_DECODERS = (FP32, INT8_WEIGHTS, INT4_WEIGHTS, MIXED_WEIGHTS)
_PREFILL_WORK_PER_S = 1.4e11  # parameters x tokens, int4 on two threads


@dataclass(frozen=True, kw_only=True)
class Stage:
    name: str
    description: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What an export would do. The estimates are for planning: they come from the student's size alone."""

    recipe: Recipe  # resolved: nothing in it is None that the checkpoint or the target decides
    student: Student
    origin: LineageFiles  # where the student comes from
    warning: str | None  # of the provenance policy, in one line
    target: Target
    backend: str
    candidates: tuple[str, ...]
    measured_here: bool  # False: this machine cannot stand for the target, so no latency is measured
    stages: tuple[Stage, ...]
    estimated_ram_bytes: int
    estimated_disk_bytes: int
    estimated_seconds: int

    @property
    def for_gpu(self) -> bool:
        return self.target.accelerator == "cuda"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    output: Path
    manifest: Manifest
    report: Report
    measurements: Measurements
    seconds: Mapping[str, float]  # stage -> wall time
    peak_rss_bytes: int


def plan(recipe: Recipe) -> Plan:
    """Resolve the recipe against the checkpoint and the target, without computing anything.

    Raises StudentError, UnknownTargetError, RecipeError, HostError or ProvenanceError as the export itself would.
    """
    validate_recipe(recipe)
    target = find_target(recipe.target)
    backend = require_backend(target, recipe.backend)
    if recipe.precision != "auto":
        require_precision(target, SHORT_PRECISIONS.get(recipe.precision, recipe.precision))
    if backend in ENGINE_BACKENDS:
        resolve_precision(recipe.precision, recipe.student.task or "", backend)
    if backend == TENSORRT_RTX:
        from edgecompress.backends.tensorrt_rtx.engine import require_builder

        require_builder(target)
    on_cuda = backend == ONNXRUNTIME and target.accelerator == "cuda"
    if on_cuda:
        recipe = replace(recipe, precision=cuda_precision(recipe.precision))
    from edgecompress.kinds.student import load_student

    student = load_student(recipe.student)
    resolved = replace(
        recipe,
        backend=backend,
        precision=resolve_precision(recipe.precision, student.task, backend),
        student=replace(
            recipe.student,
            revision=student.revision,
            task=student.task,
            max_length_tokens=student.max_length_tokens,
        ),
        runtime=replace(recipe.runtime, threads=recipe.runtime.threads or target.cores),
    )
    if backend in ENGINE_BACKENDS:
        resolved = replace(resolved, engine=resolve_engine(recipe.engine, student))
        check_engine(resolved, student)
    elif on_cuda:
        check_engine(resolved, student)
    if backend not in ENGINE_BACKENDS and recipe.engine != EngineRecipe():
        raise RecipeError(
            f"an optimization profile is an engine's, and {backend} builds none",
            hint="Leave out what begins with --engine, or give --backend tensorrt-rtx or tensorrt.",
        )
    if resolved.format == "genai" and resolved.runtime.kernels not in ("auto", "none"):
        raise RecipeError("onnxruntime-genai cannot load our kernels", hint="Leave --kernels out, or export a bundle.")
    if resolved.format == "genai" and not student.is_decoder:
        raise RecipeError(
            f"onnxruntime-genai runs decoders only, and this student's task is {student.task}",
            hint="Leave --format out: a bundle's model.onnx runs in plain onnxruntime.",
        )
    candidates: tuple[str, ...] = (resolved.precision,)
    if recipe.precision == "auto":
        candidates = tuple(name for name in computable(target) if PRECISIONS[name].searched)
    if student.is_decoder and target.accelerator == "cpu":
        candidates = tuple(name for name in candidates if name in _OF_DECODERS)
        if not candidates:
            raise RecipeError(
                f"a decoder is not exported as {resolved.precision}",
                hint=f"It can be {', '.join(('auto', *_OF_DECODERS))}.",
            )
    if not student.is_decoder and recipe.quantize.kv_cache != "fp32":
        raise RecipeError(
            f"a KV cache is a decoder's, and this student's task is {student.task}", hint="Leave out --kv-cache."
        )
    measured_here = not matches_host(target)
    origin = collect(
        Checkpoint(source=student.source, path=student.path, revision=student.revision, files=student.files),
        resolved.provenance,
    )
    return Plan(
        recipe=resolved,
        student=student,
        origin=origin,
        warning=check(origin.lineage, resolved.provenance.policy),
        target=target,
        backend=backend,
        candidates=candidates,
        measured_here=measured_here,
        stages=_stages(resolved, student, target, backend, candidates, measured_here),
        **_estimates(resolved, student, candidates),
    )


def _estimates(recipe: Recipe, student: Student, candidates: tuple[str, ...]) -> dict[str, int]:
    """What an export takes, fitted to MiniLM (0.023 B parameters) and to R1-Distill-Qwen-1.5B's shape (1.78 B)."""
    float_bytes = student.parameters * 4
    if not student.is_decoder:
        seconds = 15 + 6e-7 * student.parameters + 3 * len(candidates) * (1 + 3e-8 * student.parameters)
        return {
            "estimated_ram_bytes": 700_000_000 + 6 * float_bytes,
            "estimated_disk_bytes": (2 + 3 * len(candidates)) * float_bytes,
            "estimated_seconds": round(seconds),
        }
    # Weights are streamed: in float32 they are only ever whole where float32 itself is a candidate.
    shares = {FP32: 1.0, FP16: 0.5, FP8: 0.27, INT8_WEIGHTS: 0.27, INT4_WEIGHTS: 0.14, MIXED_WEIGHTS: 0.18}
    whole = 3.0 if {FP32, FP16} & set(candidates) else 1.4 if MIXED_WEIGHTS in candidates else 0.7
    alone = 2.5e-7 if MIXED_WEIGHTS in candidates else 0.0  # the float graph runs once a weight
    swept = 3e-7 if recipe.quantize.method == "gptq" else 0.0  # Hessians, their factors, and channel after channel
    copies, calibrating = 3, 0.0  # of each candidate's graph on the disk; seconds a candidate
    if recipe.quantize.kv_cache != "fp32":
        from edgecompress.quantize.texts import affordable_texts

        tokens = recipe.calibration.max_length_tokens
        texts = affordable_texts(student.parameters, tokens, recipe.calibration.samples)
        copies, calibrating = 4, texts * tokens * student.parameters / _PREFILL_WORK_PER_S
    return {
        "estimated_ram_bytes": round(700_000_000 + whole * float_bytes),
        "estimated_disk_bytes": round((1.2 + copies * sum(shares[name] for name in candidates)) * float_bytes),
        "estimated_seconds": round(
            20 + (8e-8 + (5e-8 + swept) * len(candidates) + alone) * student.parameters + calibrating * len(candidates)
        ),
    }


def _stages(
    recipe: Recipe, student: Student, target: Target, backend: str, candidates: tuple[str, ...], measured: bool
) -> tuple[Stage, ...]:
    text = "synthetic images" if student.is_vision else recipe.calibration.text
    stages = [Stage(name="capture", description=f"{student.architecture} to ONNX, attention as one op")]
    if target.accelerator == "cuda" or any(name in ("int8-dynamic", "int8-static") for name in candidates):
        samples = recipe.calibration.samples
        stages.append(Stage(name="calibrate", description=f"{samples} samples of {text}, {recipe.calibration.method}"))
    if recipe.quantize.kv_cache != "fp32":
        scales = f"one scale a channel, from {recipe.calibration.text}"
        stages.append(Stage(name="calibrate", description=f"KV cache in {recipe.quantize.kv_cache}: {scales}"))
    names = ", ".join(candidates)
    stages.append(Stage(name="quantize", description=names))
    stages.append(Stage(name="lower", description=f"to the ops of {backend}, ONNX opset {target.opset}"))
    verify = Stage(name="verify", description=f"{recipe.quality.samples} held-out samples against PyTorch")
    capability = ".".join(map(str, target.compute_capability or ()))
    if backend == TENSORRT_RTX:
        built = f"an engine for compute capability {capability}, built without a GPU"
        stages += [verify, Stage(name="compile", description=built)]
    elif backend == TENSORRT:
        stages += [verify, Stage(name="plan", description="how TensorRT builds the engine, on the device itself")]
    else:
        stages += [Stage(name="compile", description=f"optimize offline for {target.name}"), verify]
    if measured:
        stages.append(Stage(name="measure", description="latency on this machine, candidates in turn"))
    if recipe.format == "genai":
        stages.append(Stage(name="genai", description="a graph and configuration for onnxruntime-genai beside ours"))
    stages.append(Stage(name="bundle", description="manifest, hashes, lineage, SBOM; written beside and renamed"))
    return tuple(stages)


def export(
    recipe: Recipe, output: Path, *, force: bool = False, progress: Progress | None = None, resolved: Plan | None = None
) -> ExportResult:
    """Make a bundle. Nothing is left behind if a stage fails or the run is interrupted.

    Raises the classes of :mod:`edgecompress.errors`; QualityBudgetError if the budget is missed.
    """
    check_output(output, force)
    job = resolved or plan(recipe)
    check_available(
        job.estimated_ram_bytes,
        f"exporting {job.student.parameters / 1e9:.2f} B parameters as {', '.join(job.candidates)}",
        "Close other programs, or name one --precision.",
    )
    clock = Clock(progress or (lambda _: None))
    with workspace(output.absolute().parent) as folder:
        made = _run_stages(job, folder, clock)
        with clock.stage("bundle"):
            manifest = write_bundle(
                output,
                manifest_without_files=made.manifest,
                files=made.files,
                measurements=made.measurements,
                force=force,
                closing=made.closing,
            )
    return ExportResult(
        output=output,
        manifest=manifest,
        report=made.report,
        measurements=made.measurements,
        seconds=clock.seconds,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _run_stages(job: Plan, folder: Path, clock: Clock) -> Made:
    # Heavy packages are imported only now: a bad flag or path is answered at once.
    if job.student.is_decoder:
        from edgecompress.kinds.decoder.export import DecoderRun

        return DecoderRun(job, folder, clock).all()
    from edgecompress.kinds.encoder.export import Run

    return Run(job, folder, clock).all()


class Clock:
    """Tells the caller which stage runs, and remembers how long each took."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str, detail: str = "") -> Iterator[None]:
        self.progress(f"{name} {detail}".strip())
        started = time.perf_counter()
        try:
            yield
        finally:
            # A graph's values and nodes refer to each other: without this, each candidate's weights stay in memory.
            gc.collect()
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - started, 2)


@contextmanager
def workspace(parent: Path) -> Iterator[Path]:
    """A scratch folder on the output's own disk, gone when the block ends, however it ends."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=".edgecompress-", dir=parent))
    except OSError as error:
        raise OutputError(
            f"cannot write in {parent}: {error.strerror}", hint="Give an --output whose folder is writable."
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
