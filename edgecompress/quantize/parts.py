"""Runs a float graph for calibration, whole or in parts, so that only a part of its weights is mapped at a time.

A part is a range of the graph's nodes. Values that later parts read from earlier ones are carried along as arrays: the
text passes once through all parts, and a part can run again without the parts before it.
"""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx_ir as ir
import onnxruntime as ort
from onnx_ir.passes.common import RemoveUnusedNodesPass

from edgecompress.types.arrays import Array, Feed

_IN_MEMORY_BYTES = 1_500_000_000  # a protobuf is limited to 2 GiB


class FloatGraph:
    """A float graph; weights too large for one protobuf are in a temporary file, removed with this object."""

    def __init__(self, runnable: ir.Model) -> None:
        self.model = runnable
        if sum(t.nbytes for t in _weights(runnable) if not isinstance(t, ir.ExternalTensor)) > _IN_MEMORY_BYTES:
            folder = Path(tempfile.mkdtemp(prefix="edgecompress-calibration-"))
            weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
            ir.save(runnable, folder / "runnable.onnx", external_data="runnable.onnx.data")
            self.model = ir.load(folder / "runnable.onnx")


class Chain:
    """A graph cut after the nodes at the given ascending indices. Nodes after the last cut are in no part."""

    def __init__(self, model: ir.Model, ends: Sequence[int]) -> None:
        self.model, self.ends = model, tuple(ends)
        self._made: dict[str, int] = {}  # value -> index of its node
        self._last_read: dict[str, int] = {}
        for index, node in enumerate(model.graph):
            self._made |= {value.name: index for value in node.outputs if value.name}
            for name in _reads(node):
                self._last_read[name] = index

    def __len__(self) -> int:
        return len(self.ends)

    def start(self, index: int) -> int:
        return self.ends[index - 1] if index else 0

    def part_of(self, place: int) -> int:
        """Index of the part that contains the node at index ``place``."""
        return next(i for i, end in enumerate(self.ends) if place < end)

    def carried(self, place: int) -> list[str]:
        """Values computed before index ``place`` and read at or after it."""
        return [name for name, made in self._made.items() if made < place <= self._last_read.get(name, -1)]

    def part(self, index: int, wanted: Sequence[str], carried: Feed, overridable: Sequence[str] = ()) -> Part:
        """Prepare a part to run. ``carried``: the values from the part before, for their dtypes."""
        start, end = self.start(index), self.ends[index]
        model = self.model.clone()
        graph = model.graph
        values = {value.name: value for node in graph for value in node.outputs}
        values |= {value.name: value for value in graph.inputs}
        graph.outputs.clear()
        for name in self.carried(start):
            given = ir.Value(name=name, type=ir.TensorType(ir.DataType.from_numpy(carried[name].dtype)))
            values[name].replace_all_uses_with(given)
            graph.inputs.append(given)
        kept = [name for name in self.carried(end) if self._made[name] >= start]
        made = list(dict.fromkeys([*(name for name in wanted if name not in carried), *kept]))
        for name in made:
            if values[name].type is None and name in wanted:
                values[name].type = ir.TensorType(ir.DataType.FLOAT)
            graph.outputs.append(values[name])
        RemoveUnusedNodesPass()(model)
        graph.inputs.extend(graph.initializers[name] for name in overridable if name in graph.initializers)
        return Part(model, wanted, made, self.carried(end))


class Part:
    """A range of a graph's nodes with an open session, which is freed with this object."""

    def __init__(self, model: ir.Model, wanted: Sequence[str], made: Sequence[str], carried: Sequence[str]) -> None:
        self._wanted, self._made, self._carried = list(wanted), list(made), list(carried)
        self._session = calibration_session(model)
        inputs = [*self._session.get_inputs(), *self._session.get_overridable_initializers()]
        self._inputs = {value.name for value in inputs}

    def run(self, feed: Feed, carried: Feed) -> tuple[list[Array], dict[str, Array]]:
        """(wanted values for one feed, values that the next part needs in addition to the feed)."""
        given = {name: value for name, value in {**feed, **carried}.items() if name in self._inputs}
        known = {**carried, **dict(zip(self._made, self._session.run(self._made, given), strict=True))}
        return [known[name] for name in self._wanted], {name: known[name] for name in self._carried}


def places(model: ir.Model, names: Sequence[str]) -> dict[str, int]:
    """Value -> index of the node that computes it; -1 for an input of the graph."""
    made = {value.name: index for index, node in enumerate(model.graph) for value in node.outputs}
    return {name: made.get(name, -1) for name in names}


def ends_by_weight(model: ir.Model, most_bytes: int) -> list[int]:
    """Cuts such that no part with several nodes reads more than ``most_bytes`` of weights; the last is the end."""
    ends: list[int] = []
    held = 0
    seen: set[str] = set()
    count = 0
    for index, node in enumerate(model.graph):
        count = index + 1
        new = {name for name in _reads(node) if name in model.graph.initializers} - seen
        size = sum(_bytes(model.graph.initializers[name]) for name in new)
        if held and held + size > most_bytes:
            ends.append(index)
            held, seen = 0, set()
        seen |= new
        held += size
    return [*ends, count]


def readers(model: ir.Model, name: str) -> list[int]:
    """Indices of the nodes that read a value."""
    return [index for index, node in enumerate(model.graph) if name in set(_reads(node))]


def _reads(node: ir.Node) -> Iterator[str]:
    """Names of a node's inputs, including those of its subgraphs."""
    for value in node.inputs:
        if value is not None and value.name:
            yield value.name
    for attribute in node.attributes.values():
        inner = [attribute.value] if attribute.type == ir.AttributeType.GRAPH else []
        for graph in attribute.value if attribute.type == ir.AttributeType.GRAPHS else inner:
            for child in graph:
                yield from _reads(child)


def _bytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0


def _weights(model: ir.Model) -> list[ir.TensorProtocol]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def calibration_session(model: ir.Model, *, packed: bool = False) -> ort.InferenceSession:
    """A session for calibration. Weights in a file are mapped; with ``packed`` they are also prepacked into a copy."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if not packed:
        options.add_session_config_entry("session.disable_prepacking", "1")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    find_weights(options, model)
    return ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])


def find_weights(options: ort.SessionOptions, model: ir.Model) -> None:
    """Set the folder of external weights, which a session needs for a model that is passed as bytes."""
    for name in {str(tensor.base_dir) for tensor in _weights(model) if isinstance(tensor, ir.ExternalTensor)}:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", name)
