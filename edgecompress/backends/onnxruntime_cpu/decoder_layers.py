"""Fuses a decoder's layer into one op, from norm to residual, which dispatches to threads once.

No layer structure is hard-coded: starting at each attention, neighbouring operators that ``DecoderLayer`` supports as
steps are added as long as a single value leaves the group. The op runs the steps as a program, so it works for every
architecture with layers of these steps; other layers stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from edgecompress_kernels.cpu.abi import DECODER_LAYER, StepField, StepKind

from edgecompress.backends.onnxruntime_cpu.kernels import (
    KerneledGraph,
    by_speed,
    names_of,
    on_request,
    require_named,
    unmeasured,
)
from edgecompress.graph import timing as latency
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.sessions import open_session
from edgecompress.types.arrays import Feed
from edgecompress.types.case import Case
from edgecompress.types.graph import Graph
from edgecompress.types.report import KernelUse
from edgecompress.types.target import Target

KERNEL = "layer"
FIELDS = len(StepField)
NORM, ADD, GATE, MATMUL, ATTENTION = StepKind
_MOST_STEPS = 12  # of at most five values each, plus the inputs: the op has room for 64
_PROGRAM = DECODER_LAYER.input_index("program")  # the values follow it
_ATTENTIONS = ("CachedAttention", "CachedAttentionInt8")
_OF_ATTENTION = ("num_heads", "kv_num_heads", "scale", "head_size", "local_window_size")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One or more nodes that form one step. ``rows`` are its activations, ``others`` its weights."""

    kind: int
    nodes: tuple[ir.Node, ...]
    rows: tuple[ir.Value, ...]
    others: tuple[ir.Value | None, ...]
    made: ir.Value
    sizes: tuple[int, int, int, int] = (0, 0, 0, 0)
    constant: float = 0.0


@dataclass(kw_only=True)
class Layer:
    """Steps in order, their inputs, and the attention among them."""

    start: ir.Value
    attention: ir.Node
    steps: list[Step] = field(default_factory=list)


def use_layers(
    made: KerneledGraph,
    target: Target,
    wanted: str,
    threads: int,
    out_dir: Path,
    *,
    cases: Mapping[Case, Feed] | None,
) -> KerneledGraph:
    """Write ``layers-<precision>.onnx`` and return that graph, or the given graph with our kernels if it is not slower.

    ``wanted``: "auto", "none" or names of KERNELS. ``cases``: inputs for timing both graphs, by new tokens; None if
    this machine is not the target. Raises RecipeError if layers are requested by name but cannot be fused.
    """
    named = names_of(wanted)
    if made.graph.library is None:
        require_named([KERNEL] if KERNEL in named else [], set(), made.uses)
        return made
    model = ir.load(made.graph.path)
    layers = find_layers(model.graph)
    if not layers:
        reason = "operators around attention have no fused step, or use ONNX Runtime's op"
        refused = KernelUse(kernel=KERNEL, what="the layers", nodes=0, used=False, reason=reason)
        require_named([KERNEL] if KERNEL in named else [], set(), [refused])
        return replace(made, uses=(*made.uses, refused))
    what = f"{' or '.join(sorted({str(len(layer.steps)) for layer in layers}))} steps as one op"
    use = KernelUse(kernel=KERNEL, what=what, nodes=len(layers), used=False, reason="", speedups={})
    if named and KERNEL not in named:
        return replace(made, uses=(*made.uses, replace(use, reason=on_request(KERNEL, named, measured_here=True)[1])))
    join_layers(model.graph, layers)
    path = out_dir / f"layers-{made.graph.precision}.onnx"
    ir.save(model, path)
    graph = replace(made.graph, path=path, weights_of=made.graph.path)
    if named:
        verdict = on_request(KERNEL, named, measured_here=cases is not None)
    elif cases is None:
        verdict = unmeasured(target)
    else:
        verdict = by_speed(_speedups(made.graph, graph, threads, cases), target)
    used, reason, speedups = verdict
    use = replace(use, used=used, reason=reason, speedups=speedups)
    return replace(made, graph=graph if used else made.graph, uses=(*made.uses, use))


def _speedups(apart: Graph, joined: Graph, threads: int, cases: Mapping[Case, Feed]) -> dict[str, float]:
    """Time the whole graphs alternately: case -> speedup over separate kernels."""
    sides = {name: open_session(g.path, threads, g.library) for name, g in (("apart", apart), ("joined", joined))}
    found = {}
    for case, feed in cases.items():
        tokens = case.sizes["tokens"]
        speedup = latency.compare(sides, [feed])["joined"].speedup
        found["a step" if tokens == 1 else f"a prompt of {tokens}"] = round(speedup, 3)
    return found


def find_layers(graph: ir.Graph) -> list[Layer]:
    """Find the layers that can be fused, in order, without overlap."""
    taken: set[ir.Node] = set()
    found = []
    for node in graph:
        if node.domain == DOMAIN and node.op_type in _ATTENTIONS:
            layer = _layer_of(node, taken)
            if layer is not None:
                taken.update(n for step in layer.steps for n in step.nodes)
                found.append(layer)
    return found


def join_layers(graph: ir.Graph, layers: Sequence[Layer]) -> None:
    """Replace each layer by one op."""
    for layer in reversed(layers):  # a layer's input is the output of the one before
        _replace(graph, layer)


def _replace(graph: ir.Graph, layer: Layer) -> None:
    """Replace a layer's nodes by the op, whose first output is the layer's."""
    values: list[ir.Value] = [layer.start]
    for step in layer.steps:
        values += [value for value in step.others if value is not None and value not in values]
    inputs = len(values)
    made = [step.made for step in layer.steps]
    number = {value: i for i, value in enumerate([*values, *made])}
    rows = [[inputs, inputs + len(made)] + [0] * (FIELDS - 2)]
    for step in layer.steps:
        constant = int(np.float32(step.constant).view(np.int32))
        read = [number[value] if value is not None else -1 for value in (*step.rows, *step.others)]
        rows.append([step.kind, number[step.made], *read, *[-1] * (5 - len(read)), *step.sizes, constant])
    attention = layer.attention
    cache = [*attention.inputs[3:], *[None] * (12 - len(attention.inputs))]
    program = ir.Value(
        name=f"{layer.steps[-1].made.name}.program", const_value=ir.tensor(np.array(rows, dtype=np.int64))
    )
    graph.register_initializer(program)
    node = ir.node(
        f"DecoderLayer{'Int8' * attention.op_type.endswith('Int8')}",
        [*cache, program, *values],
        attributes={name: attention.attributes[name].value for name in _OF_ATTENTION},
        domain=DOMAIN,
        num_outputs=3,
        name=attention.name,
    )
    last = layer.steps[-1].nodes[-1]
    graph.insert_after(last, node)
    for old, new in zip((layer.steps[-1].made, *attention.outputs[1:]), node.outputs, strict=False):
        name = old.name
        new.type, new.shape = old.type, old.shape
        ir.convenience.replace_all_uses_with(old, new, replace_graph_outputs=True)
        old.name, new.name = None, name
    for step in reversed(layer.steps):
        for gone in reversed(step.nodes):
            graph.remove(gone, safe=True)


def weight_bits(node: ir.Node) -> dict[ir.Value, int]:
    """Matrices of a fused layer, and their scales, with their bits; empty for another op."""
    if not node.op_type.startswith("DecoderLayer"):
        return {}
    program = node.inputs[_PROGRAM]
    assert program is not None
    assert program.const_value is not None
    values = node.inputs[_PROGRAM + 1 :]
    steps = [row for row in program.const_value.numpy()[1:].tolist() if row[StepField.KIND] == MATMUL]
    read = (StepField.OTHER, StepField.SCALES, StepField.ZEROS)
    return {values[row[field]]: row[StepField.BITS] for row in steps for field in read if row[field] >= 0}


def _layer_of(attention: ir.Node, taken: set[ir.Node]) -> Layer | None:
    steps: list[Step] = []
    middle = _step(attention)
    if middle is None:
        return None
    before: ir.Value | None = middle.rows[0]
    while before is not None and len(steps) < 2:  # a product and its preceding norm
        maker = before.producer()
        step = _step(maker) if maker is not None and maker not in taken else None
        if step is None or step.kind not in (NORM, MATMUL) or len(list(before.uses())) != 1:
            break
        steps.insert(0, step)
        before = step.rows[0]
    steps.append(middle)
    start = steps[0].rows[0]
    _grow(steps, start)
    return Layer(start=start, attention=attention, steps=steps) if len(steps) > 1 else None


def _grow(steps: list[Step], start: ir.Value) -> None:
    """Add steps whose inputs are all available, then remove steps until a single value leaves: the last one's."""
    there = {start, *(step.made for step in steps)}
    while len(steps) < _MOST_STEPS:
        following = (node for value in there for node, _ in value.uses())
        inside = {node for step in steps for node in step.nodes}
        new = next(filter(None, (_fits(node, there, inside) for node in _in_order(following))), None)
        if new is None:
            break
        steps.append(new)
        there.add(new.made)
    while len(steps) > 1 and _leaving(steps) != [steps[-1].made]:
        if steps[-1].kind == ATTENTION:
            steps.clear()
            return
        steps.pop()


def _in_order(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    found = list(dict.fromkeys(nodes))
    order = {node: i for i, node in enumerate(found[0].graph)} if found and found[0].graph is not None else {}
    return sorted(found, key=lambda node: order.get(node, 0))


def _fits(node: ir.Node, there: set[ir.Value], inside: set[ir.Node]) -> Step | None:
    step = _step(node) if node not in inside else None
    return step if step is not None and step.kind != ATTENTION and set(step.rows) <= there else None


def _leaving(steps: Sequence[Step]) -> list[ir.Value]:
    inside = {node for step in steps for node in step.nodes}
    return [s.made for s in steps if s.made.is_graph_output() or any(n not in inside for n, _ in s.made.uses())]


def _step(node: ir.Node) -> Step | None:
    """The step that the node starts, if any."""
    inputs = [value if value is not None and value.name else None for value in node.inputs]
    attributes: dict[str, Any] = {name: a.value for name, a in node.attributes.items()}
    first = inputs[0] if inputs else None
    if first is None:
        return None
    if node.domain == DOMAIN and node.op_type == "MatMulBlocks":
        sizes = tuple(int(attributes[name]) for name in ("K", "N", "bits", "block_size"))
        others = tuple([*inputs[1:], *[None] * (5 - len(inputs))])
        if sizes[1] % 16:
            return None
        return Step(kind=MATMUL, nodes=(node,), rows=(first,), others=others, made=node.outputs[0], sizes=sizes)  # type: ignore[arg-type]
    if node.domain == DOMAIN and node.op_type in _ATTENTIONS:
        if inputs[1] is not None or inputs[2] is not None:
            return None  # keys and values are separate inputs
        return Step(kind=ATTENTION, nodes=(node,), rows=(first,), others=(), made=node.outputs[0])
    if node.op_type == "SimplifiedLayerNormalization" and inputs[1] is not None and inputs[1].const_value is not None:
        if inputs[1].dtype != ir.DataType.FLOAT or len(node.outputs) != 1 or int(attributes.get("axis", -1)) != -1:
            return None
        epsilon = float(attributes.get("epsilon", 1e-5))
        return Step(
            kind=NORM, nodes=(node,), rows=(first,), others=(inputs[1],), made=node.outputs[0], constant=epsilon
        )
    if node.op_type == "Add" and node.domain == "" and inputs[1] is not None and inputs[1].const_value is None:
        return Step(kind=ADD, nodes=(node,), rows=(first, inputs[1]), others=(), made=node.outputs[0])
    return _gate(node, attributes) if node.op_type == "Split" else None


def _gate(split: ir.Node, attributes: dict[str, Any]) -> Step | None:
    """The step of a Split, QuickGelu of the first half and Mul with the second."""
    first = split.inputs[0]
    if len(split.outputs) != 2 or int(attributes.get("axis", 0)) != -1 or first is None:
        return None
    widths = split.inputs[1].const_value if len(split.inputs) > 1 and split.inputs[1] is not None else None
    if widths is None or len(set(widths.numpy().tolist())) != 1 or int(widths.numpy()[0]) % 16:
        return None
    uses = [[node for node, _ in output.uses()] for output in split.outputs]
    if len(uses[0]) != 1 or len(uses[1]) != 1 or uses[0][0].op_type != "QuickGelu" or uses[1][0].op_type != "Mul":
        return None
    bent, product = uses[0][0], uses[1][0]
    if [node for node, _ in bent.outputs[0].uses()] != [product]:
        return None
    alpha = float(bent.attributes["alpha"].value) if "alpha" in bent.attributes else 1.702
    nodes = (split, bent, product)
    return Step(kind=GATE, nodes=nodes, rows=(first,), others=(), made=product.outputs[0], constant=alpha)
