"""Compile for TensorRT-RTX: an engine for one compute capability, built without a GPU.

The engine is made from a strongly typed graph (:mod:`edgecompress.lower.tensorrt`); no precision is chosen here. Its
kernels are finished on the GPU that runs it when it is first loaded there. It is not loaded here: that needs a GPU.
"""

from __future__ import annotations

import importlib
import importlib.util
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from edgecompress.compile.engine_layers import read_layers, require_claimed
from edgecompress.errors import EngineError, HostError
from edgecompress.types.bundle import EngineRecord, ShapeRange
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import TENSORRT_RTX, EngineRecipe
from edgecompress.types.target import Target

ENGINE = "model.engine"
LAYERS = "model.engine.layers.txt"

_PACKAGE = "tensorrt_rtx"
_INSTALL = "pip install 'edgecompress[tensorrt-rtx]'"
_NAMED_ERRORS = 5
_WEIGHTS = re.compile(r"^Total Weights Memory: (\d+) bytes")


@dataclass(frozen=True, kw_only=True)
class Engine:
    record: EngineRecord
    engine: Path
    layers: Path
    matrices: Mapping[str, int]  # type -> layers of the engine that multiply by a constant matrix of it


def require_builder(target: Target) -> None:
    """Raises HostError if TensorRT-RTX is not installed, or does not build for the target's compute capability."""
    _capability(_builder(), target)


def build_engine(graph: Graph, target: Target, profile: Mapping[str, ShapeRange], out_dir: Path) -> Engine:
    """Build ``model.engine`` from a lowered graph, and write down the builder's account of its layers beside it.

    Raises EngineError if the parser does not take a node, if nothing could be built, or if what was built computes in
    more bits than the graph; HostError as :func:`require_builder`.
    """
    trt = _builder()
    log = _log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    model = ir.load(graph.path)
    if not parser.parse_from_file(str(graph.path)):
        raise _refused_nodes(trt, parser, graph.precision, len(model.graph))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    config.set_compute_capability(_capability(trt, target), 0)
    ranges = builder.create_optimization_profile()
    for name, shapes in profile.items():
        ranges.set_shape(name, shapes.smallest, shapes.usual, shapes.largest)
    config.add_optimization_profile(ranges)
    built = builder.build_serialized_network(network, config)
    if built is None:
        raise EngineError(
            f"TensorRT-RTX {trt.__version__} cannot build the {graph.precision} graph: {log.last_error()}",
            way_out="Use another --precision, or export for another backend.",
        )
    layers, weights_bytes = log.account(trt.__version__)
    matrices = require_claimed(model, read_layers(layers), weights_bytes, graph.precision)
    engine, account = out_dir / ENGINE, out_dir / LAYERS
    engine.write_bytes(built)
    account.write_text(layers, encoding="utf-8")
    assert target.compute_capability is not None
    record = EngineRecord(
        path=ENGINE,
        layers=LAYERS,
        builder=TENSORRT_RTX,
        version=str(trt.__version__),
        os=platform.system().lower(),
        compute_capability=target.compute_capability,
        profile=profile,
        weights_bytes=weights_bytes,
    )
    return Engine(record=record, engine=engine, layers=account, matrices=matrices)


def profile_of(graph: Graph, recipe: EngineRecipe) -> dict[str, ShapeRange]:
    """The recipe's shapes for each input of the graph: its first varying axis is the batch, a second one the tokens."""
    profile = {}
    for value in ir.load(graph.path).graph.inputs:
        assert value.shape is not None
        axes = [(size,) * 3 if isinstance(size, int) else None for size in value.shape]
        axes = [recipe.batch if a is None and i == 0 else a or recipe.length_tokens for i, a in enumerate(axes)]
        smallest, usual, largest = zip(*(axis for axis in axes if axis is not None), strict=True)
        profile[value.name or ""] = ShapeRange(smallest=smallest, usual=usual, largest=largest)
    return profile


def _builder() -> Any:
    if importlib.util.find_spec(_PACKAGE) is None:
        raise HostError(
            "an engine is built by the package tensorrt-rtx, which is not installed",
            way_out=f"{_INSTALL}; no GPU is needed.",
        )
    try:
        return importlib.import_module(_PACKAGE)
    except Exception as error:  # a library that is missing is an OSError, a wrong one an ImportError
        raise HostError(
            f"the package tensorrt-rtx cannot be loaded: {str(error).splitlines()[0][:200]}",
            way_out=f"{_INSTALL} again; it needs Linux on x86-64.",
        ) from error


def _capability(trt: Any, target: Target) -> Any:
    assert target.compute_capability is not None
    known = {name[2:]: value for name, value in vars(trt.ComputeCapability).items() if re.fullmatch(r"SM\d+", name)}
    major, minor = target.compute_capability
    wanted = f"{major}{minor}"
    if wanted not in known:
        names = ", ".join(f"{name[:-1]}.{name[-1]}" for name in sorted(known, key=int))
        raise HostError(
            f"TensorRT-RTX {trt.__version__} builds no engine for compute capability {major}.{minor} ({target.name})",
            way_out=f"It builds for {names}.",
        )
    return known[wanted]


def _refused_nodes(trt: Any, parser: Any, precision: str, nodes: int) -> EngineError:
    """The parser's verdict, node by node."""
    verdicts = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        operator = error.node_operator() or "the graph"
        verdicts.append(f"{error.node_name() or 'unnamed'} ({operator}): {' '.join(error.desc().split())}")
    more = len(verdicts) - _NAMED_ERRORS
    lines = verdicts[:_NAMED_ERRORS] + ([f"and {more} more"] if more > 0 else [])
    return EngineError(
        f"TensorRT-RTX {trt.__version__} does not take {len(verdicts)} of the {nodes} nodes of the {precision} graph:"
        + "".join(f"\n  {line}" for line in lines),
        way_out="Export this student for a CPU target.",
    )


def _log(trt: Any) -> Any:
    """A logger of TensorRT's that keeps what is needed of the builder's messages, and prints nothing."""

    class Log(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []
            self.layers = ""
            self.weights_bytes: int | None = None

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.ERROR, trt.ILogger.INTERNAL_ERROR):
                self.errors.append(message)
            elif message.startswith("Layers:\n"):
                self.layers = message.removeprefix("Layers:\n")
            elif match := _WEIGHTS.match(message):
                self.weights_bytes = int(match[1])

        def last_error(self) -> str:
            return " ".join(self.errors[-1].split())[:300] if self.errors else "it does not say why"

        def account(self, version: str) -> tuple[str, int]:
            """The engine's layers and the bytes of its weights. Raises EngineError if the builder tells neither."""
            if not self.layers or self.weights_bytes is None:
                raise EngineError(
                    f"TensorRT-RTX {version} does not tell what it built, so its precision cannot be checked",
                    way_out=f"{_INSTALL} installs a version that does.",
                )
            return self.layers, self.weights_bytes

    return Log()
