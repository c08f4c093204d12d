"""Builds one engine: ``python -m edgecompress.backends.tensorrt_rtx.builder_process JOB``, a JSON file.

The builder is native code that can crash on an unexpected graph and writes to stderr. So it runs in a separate process,
and :mod:`edgecompress.backends.tensorrt_rtx.engine` reports the result.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import tensorrt_rtx as trt

_WEIGHTS = re.compile(r"^Total Weights Memory: (\d+) bytes")
_LAYERS = "Layers:\n"


class Log(trt.ILogger):  # type: ignore[misc]
    """Keeps the needed builder messages."""

    def __init__(self) -> None:
        trt.ILogger.__init__(self)
        self.errors: list[str] = []
        self.layers = ""
        self.weights_bytes: int | None = None

    def log(self, severity: Any, message: str) -> None:
        if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
            self.errors.append(" ".join(message.split()))
        elif message.startswith(_LAYERS):
            self.layers = message.removeprefix(_LAYERS)
        elif match := _WEIGHTS.match(message):
            self.weights_bytes = int(match[1])


def build(job: dict[str, Any]) -> dict[str, Any]:
    """Build and write the engine; return the messages of parser and builder."""
    log = Log()
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(job["graph"]):
        errors = [parser.get_error(index) for index in range(parser.num_errors)]
        return {"refused": [[e.node_name(), e.node_operator(), " ".join(e.desc().split())] for e in errors]}
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, job["capability"]), 0)
    ranges = builder.create_optimization_profile()
    for name, shapes in job["profile"].items():
        ranges.set_shape(name, shapes["smallest"], shapes["usual"], shapes["largest"])
    config.add_optimization_profile(ranges)
    built = builder.build_serialized_network(network, config)
    if built is None:
        return {"error": log.errors[-1] if log.errors else "the builder gives no reason"}
    Path(job["engine"]).write_bytes(built)
    return {"layers": log.layers, "weights_bytes": log.weights_bytes}


def main(path: Path) -> None:
    job = json.loads(path.read_text(encoding="utf-8"))
    said = build(job)
    Path(job["said"]).write_text(json.dumps(said), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
