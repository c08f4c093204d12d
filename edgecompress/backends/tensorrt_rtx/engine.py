"""Compiles for TensorRT-RTX: an engine for one compute capability, built without a GPU.

The engine is built from a strongly typed graph (:mod:`edgecompress.lower.standard`), which fixes the precision. Its
kernels are completed when it is first loaded on its GPU. It is not loaded here, since that needs a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import platform
import re
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import onnx_ir as ir

from edgecompress.backends.engine_layers import read_layers, require_claimed
from edgecompress.errors import EngineError, HostError
from edgecompress.formats.codec import dumps
from edgecompress.types.bundle import EngineRecord, ShapeRange
from edgecompress.types.graph import Graph

NAME = "tensorrt-rtx"
ENGINE = "model.engine"
LAYERS = "model.engine.layers.txt"

_PACKAGE = "tensorrt_rtx"
_INSTALL = "pip install 'edgecompress[tensorrt-rtx]'"
_NAMED_ERRORS = 5
_LONGEST = 600  # characters of a builder message


class BuiltFor(Protocol):
    """The properties of a target that the builder needs."""

    @property
    def name(self) -> str: ...

    @property
    def compute_capability(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Engine:
    record: EngineRecord
    engine: Path
    layers: Path
    matrices: Mapping[str, int]  # type -> number of layers that multiply by a constant matrix of that type


def require_builder(target: BuiltFor) -> None:
    """Raises HostError if TensorRT-RTX is not installed, or cannot build for the target's compute capability."""
    _capability(_builder(), target)


def build_engine(graph: Graph, target: BuiltFor, profile: Mapping[str, ShapeRange], out_dir: Path) -> Engine:
    """Build ``model.engine`` from a lowered graph, and write the builder's description of its layers beside it.

    Raises EngineError if the parser rejects a node, if the build fails or crashes, or if the engine computes in wider
    types than the graph; HostError as :func:`require_builder`.
    """
    trt = _builder()
    engine, account = out_dir / ENGINE, out_dir / LAYERS
    said = _run_builder(trt, graph, _capability(trt, target), profile, engine)
    model = ir.load(graph.path)
    if "refused" in said:
        raise _refused_nodes(trt, said["refused"], graph.precision)
    if "error" in said:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} cannot build the {graph.precision} graph: {said['error'][:_LONGEST]}",
            hint="Use another --precision, or export for another backend.",
        )
    layers, weights_bytes = said["layers"], said["weights_bytes"]
    if not layers or weights_bytes is None:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} does not describe the engine, so its precision cannot be checked",
            hint=f"Install a version that does: {_INSTALL}",
        )
    matrices = require_claimed(model, read_layers(layers), weights_bytes, graph.precision)
    account.write_text(layers, encoding="utf-8")
    assert target.compute_capability is not None
    record = EngineRecord(
        path=ENGINE,
        layers=LAYERS,
        builder=NAME,
        version=str(trt.__version__),
        os=platform.system().lower(),
        compute_capability=target.compute_capability,
        profile=profile,
        weights_bytes=weights_bytes,
    )
    return Engine(record=record, engine=engine, layers=account, matrices=matrices)


def _run_builder(
    trt: Any, graph: Graph, capability: str, profile: Mapping[str, ShapeRange], engine: Path
) -> dict[str, Any]:
    """Run the builder process and return its result. Raises EngineError if it crashes."""
    job, said = engine.with_suffix(".job.json"), engine.with_suffix(".said.json")
    said.unlink(missing_ok=True)
    engine.unlink(missing_ok=True)
    job.write_text(
        dumps(
            {
                "graph": graph.path,
                "capability": capability,
                "profile": profile,
                "engine": engine,
                "said": said,
            }
        ),
        encoding="utf-8",
    )
    command = [sys.executable, "-P", "-m", "edgecompress.backends.tensorrt_rtx.builder_process", str(job)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        try:
            _, complaint = process.communicate()
        except BaseException:  # Ctrl-C and SIGTERM too: the builder would keep running
            process.kill()
            process.wait()
            raise
    if process.returncode != 0 or not said.exists():
        reason = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["the builder gives no reason"]
        if process.returncode < 0:
            reason = [f"it was killed by {signal.Signals(-process.returncode).name}"]
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} failed to build the {graph.precision} graph: {reason[0][:_LONGEST]}",
            hint="Use another --precision, or export for another backend.",
        )
    result: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    return result


def _builder() -> Any:
    if importlib.util.find_spec(_PACKAGE) is None:
        raise HostError(
            "the package tensorrt-rtx, which builds the engine, is not installed",
            hint=f"{_INSTALL}  (no GPU needed)",
        )
    try:
        return importlib.import_module(_PACKAGE)
    except Exception as error:  # a missing library raises OSError, a wrong one ImportError
        raise HostError(
            f"the package tensorrt-rtx cannot be loaded: {str(error).splitlines()[0][:200]}",
            hint=f"Reinstall it on Linux on x86-64: {_INSTALL}",
        ) from error


def _capability(trt: Any, target: BuiltFor) -> str:
    """The builder's name of the target's compute capability, "SM89"."""
    assert target.compute_capability is not None
    known = [name for name in vars(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    major, minor = target.compute_capability
    wanted = f"SM{major}{minor}"
    if wanted not in known:
        names = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda name: int(name[2:])))
        raise HostError(
            f"TensorRT-RTX {trt.__version__} does not support compute capability {major}.{minor} ({target.name})",
            hint=f"Choose a target with one of these: {names}.",
        )
    return wanted


def _refused_nodes(trt: Any, refused: Sequence[tuple[str, str, str]], precision: str) -> EngineError:
    """The error for nodes that the parser rejects."""
    lines = [f"{name or 'unnamed'} ({op or 'the graph'}): {why}" for name, op, why in refused[:_NAMED_ERRORS]]
    more = len(refused) - _NAMED_ERRORS
    if more > 0:
        lines.append(f"and {more} more")
    return EngineError(
        f"the parser of TensorRT-RTX {trt.__version__} rejects the {precision} graph:"
        + "".join(f"\n  {line}" for line in lines),
        hint="Export the student for a CPU target.",
    )
