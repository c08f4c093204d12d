"""Captures a causal language model as one graph for prefill and decode, with an external KV cache.

Inputs: input_ids int64 [B, T], attention_mask int64 [B, S], position_ids int64 [B, T], logits_positions int64 [N], and
past_key_values.{i}.key and .value float32 [B, Hk, C, D]. Outputs: logits float32 [B, N, V], present.{i}.key and .value.
(A compiled graph has the same ones; its past and present can be int8, see ``lower/kv_cache.py``.)
Rows are padded on the right, so the ones of a row's mask come first. Each layer's attention is one op that appends to
its past, so a runtime can bind past and present to one buffer.
"""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import onnx_ir as ir
import onnxscript.optimizer
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from edgecompress.capture.cached_attention import (
    IMPLEMENTATION,
    AttentionCall,
    CachedRun,
    HandThroughCache,
    register,
    running,
)
from edgecompress.capture.experts import IMPLEMENTATION as EXPERTS
from edgecompress.capture.experts import arrange_experts, find_gates, register_experts
from edgecompress.capture.export import cannot_capture, quiet, write_captured
from edgecompress.capture.lazy_weights import fill_initializers, skeleton, transposed
from edgecompress.capture.pieces import RotaryTables, whole_pieces
from edgecompress.errors import StudentError
from edgecompress.types.graph import Graph
from edgecompress.types.student import Student

INPUTS = ("input_ids", "attention_mask", "position_ids", "logits_positions")

_BATCH, _TOKENS, _CAPACITY, _WANTED = 2, 5, 16, 3  # sizes of the traced example; all are dynamic in the graph


class Decoder(torch.nn.Module):
    """Wraps the model with the graph's inputs and outputs."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model
        self.table_names: dict[Any, tuple[str, str]] = {}
        self.keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def add_tables(self, tables: RotaryTables) -> None:
        for index, (key, halves) in enumerate(tables.halves().items()):
            names = (f"rotary_{index}_cos", f"rotary_{index}_sin")
            for name, half in zip(names, halves, strict=True):
                self.register_buffer(name, half, persistent=False)
            self.table_names[key] = names

    def run(
        self,
        run: CachedRun,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        logits_positions: torch.Tensor,
    ) -> torch.Tensor:
        """Return logits [B, N, V]; ``run`` collects the inputs and outputs of attention."""
        given: dict[str, Any] = {"logits_to_keep": logits_positions} if self.keeps_logits else {}
        with running(run):
            output = self.model(
                input_ids=input_ids,
                attention_mask=run.attention_mask,
                position_ids=position_ids,
                past_key_values=HandThroughCache(run),
                use_cache=True,
                **given,
            )
        logits: torch.Tensor = output.logits
        return logits if self.keeps_logits else logits[:, logits_positions]

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        position_ids: torch.Tensor,
        logits_positions: torch.Tensor,
        past: list[torch.Tensor],
    ) -> tuple[torch.Tensor, ...]:
        """``past``: key and value of each layer, alternating."""
        run = CachedRun(
            attention_mask=attention_mask,
            past=list(zip(past[::2], past[1::2], strict=True)),
            tables={key: (getattr(self, a), getattr(self, b)) for key, (a, b) in self.table_names.items()},
        )
        logits = self.run(run, input_ids, position_ids, logits_positions)
        return (logits, *run.presents)


def capture(student: Student, out_dir: Path, *, opset: int) -> Graph:
    """Write ``captured.onnx`` (float32, every axis dynamic) and return it.

    Weights are read from the checkpoint one at a time while the file is written, if its layout allows it.
    Raises StudentError if the architecture cannot be captured without changing its results.
    """
    register()
    register_experts()
    try:
        made = skeleton(student, IMPLEMENTATION, EXPERTS)
    except (ValueError, KeyError, ImportError) as error:
        if IMPLEMENTATION in str(error):
            raise _no_interface(student.architecture) from error
        raise cannot_capture(student, error) from error
    find_gates(made.model)
    wrapper = Decoder(made.model).eval()
    assert student.max_length_tokens is not None
    tables = RotaryTables(context_tokens=student.max_length_tokens)
    with whole_pieces(made.model, tables):
        try:
            layers = probe(wrapper)
            if not layers:
                raise _no_interface(student.architecture)
            wrapper.add_tables(tables)
            model = _export(wrapper, layers, opset)
        except StudentError:
            raise
        except Exception as error:
            raise cannot_capture(student, error) from error
    fill_initializers(model, made)
    arrange_experts(model)
    _products_as_matmul(model)
    onnxscript.optimizer.optimize_ir(model)
    _name_axes(model)
    path = out_dir / "captured.onnx"
    write_captured(model, path, student, plain_attention=False)
    return Graph(path=path, stage="captured")


def _no_interface(architecture: str) -> StudentError:
    return StudentError(
        f"'{architecture}' does not go through transformers' attention interface",
        hint="This version cannot capture its attention; see `edgecompress architectures` for those it can.",
    )


def probe(wrapper: Decoder) -> list[AttentionCall]:
    """Describe each attention call, found by a forward pass on fake tensors."""
    with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
        ids = torch.zeros((_BATCH, _TOKENS), dtype=torch.long)
        run = CachedRun(attention_mask=torch.ones((_BATCH, _TOKENS + 4), dtype=torch.long))
        wrapper.run(run, ids, torch.zeros_like(ids), torch.zeros((_WANTED,), dtype=torch.long))
    return run.calls


def _export(wrapper: Decoder, layers: list[AttentionCall], opset: int) -> ir.Model:
    past = [
        torch.zeros((_BATCH, layer.kv_heads, _CAPACITY, size))
        for layer in layers
        for size in (layer.head_size, layer.value_head_size)
    ]
    ids = torch.ones((_BATCH, _TOKENS), dtype=torch.long)
    positions = torch.arange(_TOKENS)[None].expand(_BATCH, _TOKENS).contiguous()
    mask = torch.ones((_BATCH, _TOKENS + 4), dtype=torch.long)
    batch, tokens, total, wanted, capacity = map(
        torch.export.Dim, ("batch", "tokens", "total_tokens", "wanted", "capacity")
    )
    shapes: tuple[Any, ...] = (
        {0: batch, 1: tokens},
        {0: batch, 1: total},
        {0: batch, 1: tokens},
        {0: wanted},
        [{0: batch, 2: capacity} for _ in past],
    )
    names = list(INPUTS)
    outputs = ["logits"]
    for index in range(len(layers)):
        names += [f"past_key_values.{index}.key", f"past_key_values.{index}.value"]
        outputs += [f"present.{index}.key", f"present.{index}.value"]
    with quiet(), torch.no_grad():
        # Without fallbacks: the exporter would retry with other tracing modes, which are not checked.
        program = torch.export.export(
            wrapper,
            (ids, mask, positions, torch.arange(_WANTED), past),
            dynamic_shapes=shapes,
            strict=False,
        )
        made = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=names,
            output_names=outputs,
            optimize=False,
            verbose=False,
        )
    assert made is not None
    return made.model


def _products_as_matmul(model: ir.Model) -> None:
    """Replace Gemm with a constant weight by MatMul and Add, the form that later stages look for."""
    graph = model.graph
    for node in [n for n in graph if not n.domain and n.op_type == "Gemm"]:
        x, weight, bias = [*node.inputs, None][:3]
        flags = {name: attribute.value for name, attribute in node.attributes.items()}
        plain = flags.get("alpha", 1.0) == 1.0 and flags.get("beta", 1.0) == 1.0
        if not plain or flags.get("transA", 0):
            continue
        if x is None or weight is None or weight.const_value is None or len(weight.const_value.shape) != 2:
            continue
        if flags.get("transB", 0):
            weight = transposed(graph, weight)
        product = ir.node("MatMul", [x, weight], name=node.name)
        made = [product]
        if bias is not None:
            made.append(ir.node("Add", [product.outputs[0], bias], name=node.name))
        old = node.outputs[0]
        for step in made:
            step.outputs[0].type, step.outputs[0].shape = old.type, old.shape
            step.metadata_props.update(node.metadata_props)
        graph.insert_before(node, made)
        ir.convenience.replace_all_uses_with(old, made[-1].outputs[0], replace_graph_outputs=True)
        graph.remove(node, safe=True)
    for name in [n for n, value in graph.initializers.items() if not value.uses() and not value.is_graph_output()]:
        del graph.initializers[name]


def _name_axes(model: ir.Model) -> None:
    """Rename the exporter's numbered axes (s10, s70) to their documented names."""
    graph = model.graph
    names: dict[str, str] = {}
    wanted = (("batch", "tokens"), ("batch", "total_tokens"), ("batch", "tokens"), ("wanted",))
    rows = list(zip(graph.inputs, wanted, strict=False))
    rows += [(value, ("batch", "heads", "capacity", "width")) for value in graph.inputs[len(INPUTS) :]]
    for value, axes in rows:
        for size, name in zip(value.shape or (), axes, strict=True):
            if not isinstance(size, int):
                names.setdefault(str(size), name)
    known = re.compile("|".join(rf"\b{re.escape(name)}\b" for name in names) or r"\b\B")

    def renamed(shape: ir.Shape) -> ir.Shape:
        return ir.Shape([s if isinstance(s, int) else known.sub(lambda m: names[m[0]], str(s)) for s in shape])

    for value in [*graph.inputs, *(output for node in graph for output in node.outputs)]:
        if value.shape is not None:
            value.shape = renamed(value.shape)
    logits, *presents = graph.outputs
    assert logits.shape is not None
    logits.shape = ir.Shape(["batch", "wanted", logits.shape[2]])
    for value in presents:
        assert value.shape is not None
        value.shape = ir.Shape(["batch", value.shape[1], "capacity", value.shape[3]])
