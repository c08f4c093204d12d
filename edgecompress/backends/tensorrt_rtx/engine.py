"""Compile for TensorRT-RTX: an engine for one compute capability, built without a GPU.

The engine is made from a strongly typed graph (:mod:`edgecompress.lower.standard`); no precision is chosen here. Its
kernels are finished on the GPU that runs it when it is first loaded there. It is not loaded here: that needs a GPU.
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
_LONGEST = 600  # of a message of the builder


class BuiltFor(Protocol):
    """What must be known of a target."""

    @property
    def name(self) -> str: ...

    @property
    def compute_capability(self) -> tuple[int, int] | None: ...


@dataclass(frozen=True, kw_only=True)
class Engine:
    record: EngineRecord
    engine: Path
    layers: Path
    matrices: Mapping[str, int]  # type -> layers of the engine that multiply by a constant matrix of it


def require_builder(target: BuiltFor) -> None:
    """Raises HostError if TensorRT-RTX is not installed, or does not build for the target's compute capability."""
    _capability(_builder(), target)


def build_engine(graph: Graph, target: BuiltFor, profile: Mapping[str, ShapeRange], out_dir: Path) -> Engine:
    """Build ``model.engine`` from a lowered graph, and write down the builder's account of its layers beside it.

    Raises EngineError if the parser does not take a node, if nothing could be built or the builder crashes, or if what
    was built computes in more bits than the graph; HostError as :func:`require_builder`.
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
            f"TensorRT-RTX {trt.__version__} does not tell what it built, so its precision cannot be checked",
            hint=f"{_INSTALL} installs a version that does.",
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
    """What the builder's own process says. Raises EngineError if it breaks off."""
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
        except BaseException:  # Ctrl-C and SIGTERM too: it would go on without us
            process.kill()
            process.wait()
            raise
    if process.returncode != 0 or not said.exists():
        reason = complaint.decode(errors="replace").strip().splitlines()[-1:] or ["it does not say why"]
        if process.returncode < 0:
            reason = [f"it was ended by {signal.Signals(-process.returncode).name}"]
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} broke off while it built the {graph.precision} graph: "
            f"{reason[0][:_LONGEST]}",
            hint="Use another --precision, or export for another backend.",
        )
    result: dict[str, Any] = json.loads(said.read_text(encoding="utf-8"))
    return result


def _builder() -> Any:
    if importlib.util.find_spec(_PACKAGE) is None:
        raise HostError(
            "an engine is built by the package tensorrt-rtx, which is not installed",
            hint=f"{_INSTALL}; no GPU is needed.",
        )
    try:
        return importlib.import_module(_PACKAGE)
    except Exception as error:  # a library that is missing is an OSError, a wrong one an ImportError
        raise HostError(
            f"the package tensorrt-rtx cannot be loaded: {str(error).splitlines()[0][:200]}",
            hint=f"{_INSTALL} again; it needs Linux on x86-64.",
        ) from error


def _capability(trt: Any, target: BuiltFor) -> str:
    """The target's compute capability as the builder names it, "SM89"."""
    assert target.compute_capability is not None
    known = [name for name in vars(trt.ComputeCapability) if re.fullmatch(r"SM\d+", name)]
    major, minor = target.compute_capability
    wanted = f"SM{major}{minor}"
    if wanted not in known:
        names = ", ".join(f"{name[2:-1]}.{name[-1]}" for name in sorted(known, key=lambda name: int(name[2:])))
        raise HostError(
            f"TensorRT-RTX {trt.__version__} builds no engine for compute capability {major}.{minor} ({target.name})",
            hint=f"It builds for {names}.",
        )
    return wanted


def _refused_nodes(trt: Any, refused: Sequence[tuple[str, str, str]], precision: str) -> EngineError:
    """The parser's verdict, node by node."""
    lines = [f"{name or 'unnamed'} ({op or 'the graph'}): {why}" for name, op, why in refused[:_NAMED_ERRORS]]
    more = len(refused) - _NAMED_ERRORS
    if more > 0:
        lines.append(f"and {more} more")
    return EngineError(
        f"the parser of TensorRT-RTX {trt.__version__} does not take the {precision} graph:"
        + "".join(f"\n  {line}" for line in lines),
        hint="Export this student for a CPU target.",
    )
