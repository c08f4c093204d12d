"""Captures a PyTorch module as one portable ONNX graph, with one attention op per layer."""

from __future__ import annotations

import ast
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from edgecompress.capture.attention import IMPLEMENTATION, UNSUPPORTED, attention_as_one_op
from edgecompress.capture.model import load_model
from edgecompress.errors import StudentError, first_line
from edgecompress.graph.model import write_model
from edgecompress.graph.ops import DOMAIN
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student
from edgecompress.version import __version__

WrapModel = Callable[[torch.nn.Module], tuple[torch.nn.Module, Mapping[str, torch.Tensor]]]
"""Loaded model -> (module whose forward is exported, example inputs in order)."""


def capture_module(
    student: Student, wrapped: WrapModel, axes: Mapping[int, Any], outputs: Sequence[str], out_dir: Path, *, opset: int
) -> Graph:
    """Write ``captured.onnx`` (float32) and return it. ``axes``: the dynamic axes of every input.

    Raises StudentError if the architecture cannot be captured without changing its results.
    """
    with attention_as_one_op() as calls:
        try:
            model = load_model(student, IMPLEMENTATION)
        except ValueError as error:
            if "attn_implementation" not in str(error) and "does not support" not in str(error):
                raise StudentError(
                    f"transformers cannot load this checkpoint: {first_line(error, type(error).__name__)[:200]}",
                    hint="Check that transformers loads it with from_pretrained().",
                ) from error
            # mpnet and deberta-v2 have a position bias inside their own attention, which is exported unchanged.
            model = load_model(student, "eager")
        module, inputs = wrapped(model)
        program = _export(student, module, inputs, axes, outputs, opset)
    path = out_dir / "captured.onnx"
    write_captured(program.model, path, student, plain_attention=not calls)
    return Graph(path=path, stage="captured")


def _export(
    student: Student,
    module: torch.nn.Module,
    inputs: Mapping[str, torch.Tensor],
    axes: Mapping[int, Any],
    outputs: Sequence[str],
    opset: int,
) -> Any:
    try:
        with quiet(), torch.no_grad():
            return torch.onnx.export(
                module,
                tuple(inputs.values()),
                dynamo=True,
                opset_version=opset,
                dynamic_shapes=tuple(dict(axes) for _ in inputs),
                input_names=list(inputs),
                output_names=list(outputs),
                verbose=False,
            )
    except StudentError:
        raise
    except Exception as error:
        raise cannot_capture(student, error) from error


def cannot_capture(student: Student, error: BaseException) -> StudentError:
    """The StudentError that caused an exporter error, or a new one that names the architecture."""
    return _student_error(error) or StudentError(
        f"the exporter of PyTorch {torch.__version__} cannot capture architecture '{student.architecture}': "
        f"{first_line(error, type(error).__name__)[:200]}",
        hint=UNSUPPORTED,
    )


def _student_error(error: BaseException | None) -> StudentError | None:
    while error is not None:
        if isinstance(error, StudentError):
            return error
        error = error.__cause__ or error.__context__
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the exporter, which logs and warns about packages that are not needed here."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def write_captured(model: ir.Model, path: Path, student: Student, *, plain_attention: bool) -> None:
    """Name the nodes after their modules, remove paths, and save."""
    # The exporter stores source paths and stack traces on every node.
    taken: dict[str, int] = {}
    for node in model.graph.all_nodes():
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        modules = [scope for scope in scopes[:-1] if scope and not scope.startswith("_empty_nn")]
        name = (modules[-1].removeprefix("model.") if modules else "graph") + "/" + node.op_type
        taken[name] = taken.get(name, 0) + 1
        node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    model.metadata_props.update(
        {
            "edgecompress.version": __version__,
            "edgecompress.architecture": student.architecture,
            "edgecompress.task": student.task,
            "edgecompress.attention": "plain" if plain_attention else "one-op",
            "edgecompress.revision": student.revision or "unknown",
        }
    )
    model.producer_name = "edgecompress"
    model.producer_version = __version__
    model.graph.name = student.task
    if not plain_attention:
        model.opset_imports[DOMAIN] = 1
    write_model(model, path)
