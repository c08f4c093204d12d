"""The Hessians that GPTQ needs, ``X^T X`` of each layer's inputs over the calibration text, in bounded memory.

A Hessian has K x K entries: those of a 1.5 B decoder would take ten gigabytes at once. :class:`StreamedHessians` keeps
one group of layers at a time and runs the text again for the next, through only that part of the graph which the group
needs. Inputs come from the float graph, not from one whose earlier layers are already rounded.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecompress.errors import CalibrationError
from edgecompress.quantize.numerics import Float

Batches = Callable[[], Iterable[Mapping[str, npt.NDArray[Any]]]]

GROUP_BYTES = 3_000_000_000  # of Hessians held at a time; factoring the largest of them takes two more
_IN_MEMORY_BYTES = 1_500_000_000  # a protobuf ends at 2 GiB


class FloatGraph:
    """A float graph that calibration runs, its weights in a file of its own where one protobuf could not hold them."""

    def __init__(self, runnable: ir.Model) -> None:
        self.model = runnable
        if _bytes_in_memory(runnable) > _IN_MEMORY_BYTES:
            folder = Path(tempfile.mkdtemp(prefix="edgecompress-calibration-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            self.model = _mapped(runnable, folder)

    def session(self, overridable: Sequence[str]) -> ort.InferenceSession:
        """A session in which a run may feed the initializers of these names in place of their own values."""
        model = self.model.clone()
        model.graph.inputs.extend(model.graph.initializers[name] for name in overridable)
        return _open(model)


class StreamedHessians(Mapping[str, Float]):
    """Name of a tensor [..., K] -> float32 [K, K], the mean of ``x^T x`` over all rows.

    Ask in the order of ``tensors``: asking for one computes its whole group and lets go of the one before. A group is
    as many neighbours as fit in ``group_bytes``, and at least one.
    """

    def __init__(
        self, runnable: ir.Model, tensors: Mapping[str, int], batches: Batches, *, group_bytes: int = GROUP_BYTES
    ) -> None:
        self._float, self._batches = FloatGraph(runnable), batches
        self._tensors = dict(tensors)
        self._groups = groups(self._tensors, group_bytes)
        self._held: dict[str, Float] = {}

    def __getitem__(self, name: str) -> Float:
        if name not in self._tensors:
            raise KeyError(name)
        if name not in self._held:
            self._held = {}  # before the next group is made, not after
            group = next(g for g in self._groups if name in g)
            self._held = collect_hessians(self._float.model, {n: self._tensors[n] for n in group}, self._batches())
        return self._held[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def groups(tensors: Mapping[str, int], group_bytes: int) -> list[tuple[str, ...]]:
    """Neighbours whose Hessians take at most ``group_bytes`` together, or one alone that takes more."""
    found: list[tuple[str, ...]] = []
    current: list[str] = []
    held = 0
    for name, width in tensors.items():
        size = 4 * width * width
        if current and held + size > group_bytes:
            found.append(tuple(current))
            current, held = [], 0
        current.append(name)
        held += size
    return [*found, tuple(current)] if current else found


def collect_hessians(
    runnable: ir.Model, tensors: Mapping[str, int], batches: Iterable[Mapping[str, npt.NDArray[Any]]]
) -> dict[str, Float]:
    """Run the batches through ``runnable`` and sum up the named tensors [..., K]; see StreamedHessians.

    A batch maps input names to arrays; rows that its ``attention_mask`` calls padding are left out. ``runnable`` stays
    as it is; weights that do not lie in a file must fit into one protobuf. Raises CalibrationError if there is no batch
    or a value is not finite.
    """
    sums = {name: np.zeros((width, width), dtype=np.float32) for name, width in tensors.items()}
    rows = dict.fromkeys(tensors, 0)
    session = _open(_part(runnable, list(tensors)))
    wanted = {i.name for i in session.get_inputs()}
    for batch in batches:
        outputs = session.run(list(tensors), {k: v for k, v in batch.items() if k in wanted})
        mask = batch.get("attention_mask")
        for name, x in zip(tensors, outputs, strict=True):
            real = x[mask.astype(bool)] if mask is not None and x.shape[:2] == mask.shape else x
            flat = np.ascontiguousarray(real.reshape(-1, tensors[name]), dtype=np.float32)
            sums[name] += flat.T @ flat
            rows[name] += len(flat)
    for name, total in sums.items():
        if not rows[name]:
            raise CalibrationError("there is no calibration text", way_out="Give --calibration FILE, one text a line.")
        if not np.isfinite(total).all():
            raise CalibrationError(
                f"the student gives values that are not finite at '{name}' on the calibration text",
                way_out="Its weights or the text are broken; nothing can be calibrated on them.",
            )
        total /= rows[name]
    return sums


def _part(runnable: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy that computes the named values only. Weights are shared with ``runnable``, not copied."""
    part = runnable.clone()
    values = {value.name: value for node in part.graph for value in node.outputs}
    values |= {value.name: value for value in part.graph.inputs}
    part.graph.outputs.clear()
    for name in names:
        value = values[name]
        value.type = value.type or ir.TensorType(ir.DataType.FLOAT)
        part.graph.outputs.append(value)
    RemoveUnusedNodesPass()(part)
    return part


def _mapped(model: ir.Model, folder: Path) -> ir.Model:
    """The same model, its weights in a file of ``folder``."""
    ir.save(model, folder / "runnable.onnx", external_data="runnable.onnx.data")
    return ir.load(folder / "runnable.onnx")


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def _bytes_in_memory(model: ir.Model) -> int:
    """Of weights that do not lie in a file, or are made anew whenever they are read."""
    return sum(tensor.nbytes for tensor in _weights(model) if not isinstance(tensor, ir.ExternalTensor))


def _open(model: ir.Model) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Packed copies of the weights would hold the model twice.
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    # Weights that lie in a file are mapped from there, not copied.
    for name in {str(tensor.base_dir) for tensor in _weights(model) if isinstance(tensor, ir.ExternalTensor)}:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", name)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
