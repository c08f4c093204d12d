"""Plans a build with TensorRT 10 or 11, and runs it on the device.

TensorRT can build only on the target GPU, so an export ends with the graph and a plan. Both versions accept the same
strongly typed graph; TensorRT 10 needs a flag for it. This module has not run on a GPU yet; tests/engines check every
name that it uses against TensorRT's bindings.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecompress.backends.engine_layers import most_bytes
from edgecompress.errors import EngineError, HostError
from edgecompress.formats.codec import dumps
from edgecompress.runtime.cuda.device import is_out_of_memory
from edgecompress.types.bundle import BuildPlan, EngineRecord, ShapeRange
from edgecompress.types.gpu import Gpu, describe_gpus
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import EngineRecipe
from edgecompress.types.target import Target

NAME = "tensorrt"
ENGINE = "model.engine"
LAYERS = "model.engine.layers.json"
TIMING_CACHE = "timing.cache"

# Parser support: Attention since 10.14, TensorScatter as an in-place update since 10.15.
_FIRST_WITH_ATTENTION, _FIRST_WITH_CACHES = "10.14", "10.15"
_PRICES = {
    "ampere-plus": "ampere-plus: runs on Ampere and later GPUs; can be slower, because kernels are limited to 48 KiB "
    "of shared memory and have fewer fusions",
    "same-compute-capability": "same-compute-capability: runs on every GPU with this compute capability; can be "
    "slower, because it is not tuned to one GPU's number of multiprocessors",
}
_ANY_VERSION = (
    "any version: runs with later versions of TensorRT too; can be slower, and the engine contains a runtime, so load "
    "it only from a trusted source"
)
_LONGEST = 600
_STOP_S = 20  # grace period for the builder to end at its next step

Progress = Callable[[str], None]


def build_plan(graph: Graph, target: Target, recipe: EngineRecipe, profile: Mapping[str, ShapeRange]) -> BuildPlan:
    """Raises HostError for a setting that the target does not support. ``recipe`` is resolved."""
    assert target.compute_capability is not None
    if recipe.hardware_compatibility != "none" and target.arch == "aarch64":
        raise HostError(
            f"--engine-compatible is not available for {target.name}: JetPack does not support it",
            hint="Omit --engine-compatible.",
        )
    caches = any(node.op_type == "TensorScatter" for node in ir.load(graph.path).graph)
    prices = [_PRICES[recipe.hardware_compatibility]] if recipe.hardware_compatibility != "none" else []
    return BuildPlan(
        builder=NAME,
        minimum_version=_FIRST_WITH_CACHES if caches else _FIRST_WITH_ATTENTION,
        compute_capability=target.compute_capability,
        profile=profile,
        workspace_bytes=recipe.workspace_mib << 20,
        timing_cache=TIMING_CACHE,
        hardware_compatibility=recipe.hardware_compatibility,
        version_compatible=recipe.version_compatible,
        prices=(*prices, *([_ANY_VERSION] if recipe.version_compatible else [])),
    )


def trtexec_line(plan: BuildPlan, model: str) -> str:
    """The equivalent command of NVIDIA's trtexec, to run in the bundle's folder."""

    def shapes(which: str) -> str:
        return ",".join(f"{name}:{'x'.join(map(str, getattr(r, which)))}" for name, r in plan.profile.items())

    words = [
        "trtexec",
        f"--onnx={model}",
        f"--saveEngine={ENGINE}",
        "--stronglyTyped",  # accepted by 11 too, where it is the default
        f"--minShapes={shapes('smallest')}",
        f"--optShapes={shapes('usual')}",
        f"--maxShapes={shapes('largest')}",
        f"--memPoolSize=workspace:{plan.workspace_bytes >> 20}",
        f"--timingCacheFile={plan.timing_cache}",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={LAYERS}",
        "--skipInference",
    ]
    if plan.hardware_compatibility == "ampere-plus":
        words.append("--hardwareCompatibilityLevel=ampere+")
    elif plan.hardware_compatibility == "same-compute-capability":
        words.append("--hardwareCompatibilityLevel=sameComputeCapability")
    if plan.version_compatible:
        words.append("--versionCompatible")
    return " ".join(words)


def require_device(plan: BuildPlan, gpus: list[Gpu], device: int | None, model: str) -> tuple[int, Gpu]:
    """Return the index and the GPU to build on.

    Raises HostError if there is no GPU, if several match, if it does not match the plan, or if TensorRT is missing or
    too old.
    """
    wanted = ".".join(map(str, plan.compute_capability))
    if not gpus:
        raise HostError(
            f"TensorRT builds an engine only on its GPU, here of compute capability {wanted}, but this machine has no "
            "GPU: neither libnvidia-ml.so.1 nor libcuda.so.1 finds one",
            hint=f"Build on the device, or run there in the bundle's folder: {trtexec_line(plan, model)}",
        )
    fitting = [i for i, gpu in enumerate(gpus) if gpu.compute_capability == plan.compute_capability]
    listed = describe_gpus(gpus)
    if device is None and len(fitting) > 1:
        raise HostError(f"several GPUs match: {listed}", hint="Choose one with --device N.")
    if device is not None and not 0 <= device < len(gpus):
        raise HostError(f"there is no GPU {device}; this machine has {listed}", hint="Choose another with --device N.")
    index = device if device is not None else fitting[0] if fitting else 0
    if index not in fitting:
        raise HostError(
            f"the bundle is for compute capability {wanted}, which GPU {index} does not have: {listed}",
            hint="Export the student for this GPU; `edgecompress targets` lists the target names.",
        )
    if importlib.util.find_spec("tensorrt") is None:
        raise HostError(
            "the package tensorrt, with libnvinfer, is not installed",
            hint=f"Install TensorRT {plan.minimum_version} or later (JetPack brings it), or run in the bundle's "
            f"folder: {trtexec_line(plan, model)}",
        )
    version = importlib.metadata.version("tensorrt")
    if _numbers(version) < _numbers(plan.minimum_version):
        raise HostError(
            f"TensorRT {version} does not support the ops of this graph, which need {plan.minimum_version}",
            hint=f"Install TensorRT {plan.minimum_version} or later: on a Jetson, JetPack 7.2.",
        )
    return index, gpus[index]


def build_on_device(
    graph: Graph, plan: BuildPlan, device: int, gpu: Gpu, folder: Path, out_dir: Path, progress: Progress
) -> tuple[EngineRecord, dict[str, Path]]:
    """Build from ``graph`` on the GPU; return the record and the files to add to the bundle, name -> path.

    ``folder`` is the bundle's; its timing cache is used if it has one. The build runs in a separate process, which ends
    at the builder's next step when this one is interrupted. Raises EngineError.
    """
    said = out_dir / "said.json"
    cache, old = out_dir / plan.timing_cache, folder / plan.timing_cache
    job: dict[str, Any] = {
        "graph": graph.path,
        "device": device,
        "profile": plan.profile,
        "workspace_bytes": plan.workspace_bytes,
        "hardware_compatibility": plan.hardware_compatibility.upper().replace("-", "_"),
        "version_compatible": plan.version_compatible,
        "timing_cache_before": old if old.exists() else None,
        "timing_cache": cache,
        "engine": out_dir / ENGINE,
        "layers": out_dir / LAYERS,
        "said": said,
    }
    (out_dir / "job.json").write_text(dumps(job), encoding="utf-8")
    result = _run(
        [sys.executable, "-P", "-m", "edgecompress.backends.tensorrt.builder_process", str(out_dir / "job.json")],
        said,
        progress,
    )
    if "refused" in result:
        lines = [f"{name or 'unnamed'} ({op or 'the graph'}): {why}" for name, op, why in result["refused"][:5]]
        raise EngineError(
            f"the parser of TensorRT {result['version']} rejects the {graph.precision} graph:\n  " + "\n  ".join(lines),
            hint=f"Use TensorRT {plan.minimum_version} or later, or export the student for a CPU target.",
        )
    if "error" in result:
        text = result["error"][:_LONGEST]
        hint = "Use another --precision, or export for another backend."
        if is_out_of_memory(text):
            hint = (
                "Stop other programs on the GPU, or export with a smaller --engine-batch, --engine-tokens or "
                "--engine-workspace."
            )
        raise EngineError(f"TensorRT {result['version']} cannot build the {graph.precision} graph: {text}", hint=hint)
    weights = int(result["weights_bytes"] or 0)
    stored, most = most_bytes(ir.load(graph.path))
    if weights > most:
        raise EngineError(
            f"the engine's weights take {weights:_} bytes, but only {stored:_} in the {graph.precision} graph: the "
            "builder stored them in a wider type",
            hint="Use --precision fp16, or another version of TensorRT.",
        )
    record = EngineRecord(
        path=ENGINE,
        layers=LAYERS,
        builder=NAME,
        version=result["version"],
        os=platform.system().lower(),
        compute_capability=plan.compute_capability,
        profile=plan.profile,
        weights_bytes=weights,
        gpu=gpu.name if plan.hardware_compatibility == "none" else "",
    )
    return record, {ENGINE: out_dir / ENGINE, LAYERS: out_dir / LAYERS, plan.timing_cache: cache}


def _run(command: list[str], said: Path, progress: Progress) -> dict[str, Any]:
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                progress(line.strip())
            _, complaint = process.communicate()
        except BaseException:  # Ctrl-C and SIGTERM too: the builder ends at its next step
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    if process.returncode != 0 or not said.exists():
        reason = complaint.strip().splitlines()[-1:] or ["the builder gives no reason"]
        if process.returncode < 0:
            reason = [f"it was killed by {signal.Signals(-process.returncode).name}"]
        raise EngineError(
            f"TensorRT's build process failed: {reason[0][:_LONGEST]}",
            hint="Use another --precision, or export for another backend.",
        )
    result: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    return result


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdigit())
