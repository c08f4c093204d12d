"""Builds a decoder without its weights, and reads the weights from the checkpoint one at a time.

A model of 1.8 billion parameters takes 7 GB in float32, and the exporter needs none of the values. So parameters are
allocated but never written, which costs no memory, and the graph's initializers read the checkpoint file on demand.
Buffers (such as rotary frequencies) have their values from the start.

This works only if the checkpoint stores every parameter under its own name and shape. If transformers renames or merges
weights while loading (such as the experts of a mixture), it loads the whole model instead.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import torch
import transformers
from safetensors import safe_open
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.initialization import no_init_weights

from edgecompress.capture.attention import UNSUPPORTED
from edgecompress.capture.checkpoint import weight_files
from edgecompress.capture.model import load_model
from edgecompress.errors import StudentError
from edgecompress.types.student import Student


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """Where one weight is stored."""

    path: Path
    name: str
    shape: tuple[int, ...]

    def read(self) -> torch.Tensor:
        """Read it as float32, whatever dtype the file has."""
        with safe_open(self.path, framework="pt") as file:
            return file.get_tensor(self.name).to(torch.float32)  # type: ignore[no-any-return]


@dataclass(frozen=True, kw_only=True)
class Skeleton:
    """A model in evaluation mode. ``stored`` maps the parameters without values; empty if all have values."""

    model: torch.nn.Module
    stored: Mapping[str, StoredTensor]


def skeleton(student: Student, attention: str, experts: str) -> Skeleton:
    """Build a checkpoint's causal language model, if possible without reading its weights.

    Raises StudentError if the checkpoint is quantized or lacks weights, and ValueError as :func:`load_model` does.
    """
    transformers.utils.logging.disable_progress_bar()
    config = transformers.AutoConfig.from_pretrained(student.path, trust_remote_code=student.trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise StudentError("the checkpoint is already quantized", hint="Give the original checkpoint, in float.")
    files = weight_files(student.path, student.allow_pickle)
    if files and not student.trust_remote_code:
        with no_init_weights():
            model = transformers.AutoModelForCausalLM.from_config(
                copy.deepcopy(config),
                attn_implementation=attention,
                experts_implementation=experts,
                dtype=torch.float32,
            )
        model.tie_weights()
        stored = _match(model, stored_tensors(files))
        if stored is not None:
            return Skeleton(model=model.eval(), stored=stored)
        del model
    return Skeleton(model=load_model(student, attention, experts), stored={})


def stored_tensors(files: Sequence[Path]) -> dict[str, StoredTensor]:
    """Name -> tensor, for every tensor of the safetensors files."""
    found = {}
    for path in files:
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                found[name] = StoredTensor(path=path, name=name, shape=tuple(file.get_slice(name).get_shape()))
    return found


def _match(model: torch.nn.Module, found: Mapping[str, StoredTensor]) -> dict[str, StoredTensor] | None:
    """The stored tensor of every parameter, after filling buffers; None if transformers must load the model itself."""
    if any(_touches(transform, found) for transform in get_model_conversion_mapping(model)):
        return None
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    stored: dict[str, StoredTensor] = {}
    for name, parameter in model.named_parameters():
        sources = [found[alias] for alias in names[id(parameter)] if alias in found]
        if not sources or any(source.shape != tuple(parameter.shape) for source in sources):
            return None
        if len(sources) > 1 and not all(torch.equal(sources[0].read(), other.read()) for other in sources[1:]):
            return None  # tied in the config but not equal: leave it to transformers
        for alias in names[id(parameter)]:
            stored[alias] = sources[0]
        assert name in stored
    parameters = set(stored)
    for name, buffer in model.state_dict().items():
        if name in parameters:
            continue
        if name not in found or found[name].shape != tuple(buffer.shape):
            return None
        with torch.no_grad():
            buffer.copy_(found[name].read())
    return stored


def _touches(transform: object, found: Mapping[str, StoredTensor]) -> bool:
    """True if transformers would rename or merge any tensor of the checkpoint."""
    rename = getattr(transform, "rename_source_key", None)
    if rename is None:
        return True
    for name in found:
        renamed, pattern = rename(name)
        if pattern is not None or renamed != name:
            return True
    return False


def fill_initializers(model: ir.Model, made: Skeleton) -> None:
    """Make the initializers that are parameters of ``made`` read the checkpoint on demand, and fold their transposes.

    A weight that is read both directly and transposed (a tied embedding and head) becomes two initializers of one
    stored tensor, ``name`` and ``name.transposed``. Initializers are matched to parameters by memory address, so that
    none with unwritten values can slip through under another name. Raises StudentError if the exporter reshaped one.
    """
    graph = model.graph
    parameters = dict(made.model.named_parameters(remove_duplicate=False))
    addresses = {parameters[name].data_ptr(): source for name, source in made.stored.items()}
    for name, value in list(graph.initializers.items()):
        raw = getattr(value.const_value, "raw", None)
        source = addresses.get(raw.data_ptr()) if isinstance(raw, torch.Tensor) and raw.numel() else None
        if source is None:
            continue
        if tuple(value.const_value.shape) != source.shape:  # type: ignore[union-attr]
            raise StudentError(
                f"the exporter reshaped the weight '{name}', so its values cannot be read from the checkpoint",
                hint=UNSUPPORTED,
            )
        value.const_value = _lazy(source, name)
        for node in [n for n, _ in value.uses() if n.op_type == "Transpose" and not n.domain]:
            if list(node.attributes["perm"].as_ints()) == [1, 0]:
                ir.convenience.replace_all_uses_with(node.outputs[0], transposed(graph, value))
                graph.remove(node, safe=True)
        if not value.uses() and not value.is_graph_output():
            del graph.initializers[name]


def transposed(graph: ir.Graph, value: ir.Value) -> ir.Value:
    """The initializer ``value`` [K, N] as [N, K]: ``name.transposed``, created once and transposed when it is read."""
    name = f"{value.name}.transposed"
    if name not in graph.initializers:
        tensor = value.const_value
        assert tensor is not None

        def read() -> ir.TensorProtocol:
            return ir.tensor(np.ascontiguousarray(tensor.numpy().T), name=name)

        shape = ir.Shape(tuple(reversed(tensor.shape.numpy())))
        lazy = ir.LazyTensor(read, dtype=tensor.dtype, shape=shape, name=name)
        made = ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=lazy)
        graph.register_initializer(made)
    return graph.initializers[name]


def _lazy(source: StoredTensor, name: str) -> ir.LazyTensor:
    def read() -> ir.TensorProtocol:
        return ir.tensor(source.read().numpy(), name=name)

    return ir.LazyTensor(read, dtype=ir.DataType.FLOAT, shape=ir.Shape(source.shape), name=name)
