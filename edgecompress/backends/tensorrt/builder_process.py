"""Builds one engine with TensorRT: ``python -m edgecompress.backends.tensorrt.builder_process JOB``.

It prints one line per phase to stdout, and writes the result to the file that the job names. SIGTERM and Ctrl-C end the
build at its next step.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

_WEIGHTS = re.compile(r"Total Weights Memory: (\d+)")


def build(trt: Any, job: dict[str, Any], stop: Any) -> dict[str, Any]:
    """Build the engine; return the messages of parser and builder. ``stop()`` is called at every step."""
    log = _log(trt)
    builder = trt.Builder(log)
    # TensorRT 10 needs this flag for a strongly typed network; 11 accepts it, and all networks are strongly typed.
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    version = str(trt.__version__)
    if not parser.parse_from_file(job["graph"]):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        refused = [[e.node_name(), e.node_operator(), " ".join(e.desc().split())] for e in errors]
        return {"version": version, "refused": refused}
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, job["workspace_bytes"])
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, job["hardware_compatibility"])
    if job["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    ranges = builder.create_optimization_profile()
    for name, shapes in job["profile"].items():
        ranges.set_shape(name, shapes["smallest"], shapes["usual"], shapes["largest"])
    config.add_optimization_profile(ranges)
    before = job["timing_cache_before"]
    cache = config.create_timing_cache(Path(before).read_bytes() if before else b"")
    config.set_timing_cache(cache, ignore_mismatch=False)
    config.progress_monitor = _monitor(trt, stop)
    built = builder.build_serialized_network(network, config)
    if built is None:
        if stop():
            return {"version": version, "error": "the build was interrupted"}
        return {"version": version, "error": log.errors[-1] if log.errors else "the builder gives no reason"}
    Path(job["engine"]).write_bytes(built)
    timed = config.get_timing_cache()
    Path(job["timing_cache"]).write_bytes(timed.serialize())
    runtime = trt.Runtime(log)
    if job["version_compatible"]:
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(built)
    if engine is None:
        return {
            "version": version,
            "error": log.errors[-1] if log.errors else "the engine that it built cannot be loaded",
        }
    inspector = engine.create_engine_inspector()
    layers = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
    Path(job["layers"]).write_text(layers, encoding="utf-8")
    return {"version": version, "weights_bytes": log.weights_bytes}


def _log(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps the needed builder messages."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.weights_bytes: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(" ".join(message.split()))
            elif match := _WEIGHTS.search(message):
                self.weights_bytes = int(match[1])

    return Log()


def _monitor(trt: Any, stop: Any) -> Any:
    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        """Prints top-level phases, and ends the build on request."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            if parent_phase is None:
                print(f"{phase_name}, {num_steps} steps", flush=True)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return not stop()

        def phase_finish(self, phase_name: str) -> None:
            """Prints nothing: the next phase prints its start."""

    return Monitor()


def main(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    stopped: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: stopped.append(signum))
    os.environ["CUDA_VISIBLE_DEVICES"] = str(job["device"])
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # NVML's order, in which the device was chosen
    said = build(importlib.import_module("tensorrt"), job, lambda: bool(stopped))
    Path(job["said"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
