"""Removes the input ``logits_positions`` for callers that do not give it: the graph finds each row's last token.

Every architecture selects the positions at a different place, so this does not search for it. Instead the graph
computes the positions: the last one of a single row or, if several rows are prefilled, the last one of each row. The
model then returns the logits of all rows at all these positions, and each row keeps its own.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.rewrite import constant

POSITIONS = "logits_positions"
_PREFIX = "last_logits/"


def keep_last_logits(model: ir.Model) -> None:
    """Drop the input logits_positions int64 [N]; the output logits [B, N, V] becomes [B, 1, V]. In place.

    Rows must be padded on the right: row b's last token is the last 1 in the last T columns of attention_mask, int64
    [B, S]. Raises RecipeError if the graph is not a decoder's.
    """
    graph = model.graph
    inputs = {value.name: value for value in graph.inputs}
    missing = [name for name in ("input_ids", "attention_mask", POSITIONS) if name not in inputs]
    if missing or not graph.outputs or graph.outputs[0].name != "logits":
        raise RecipeError(
            f"the graph has no {missing[0] if missing else 'logits'}, so it is not a decoder's",
            hint="Leave out --format to export a bundle.",
        )
    positions = inputs[POSITIONS]
    made = _Nodes(graph)
    tokens = made.add("Shape", [inputs["input_ids"]], "tokens", start=1, end=2)
    rows = made.add("Shape", [inputs["input_ids"]], "rows", start=0, end=1)
    first = made.add("Neg", [tokens], "first_new_column")
    new = made.add("Slice", [inputs["attention_mask"], first, made.ints([2**62]), made.ints([1])], "mask_of_new")
    count = made.add("ReduceSum", [new, made.ints([1])], "new_tokens_of_row", keepdims=0)
    last = made.add("Sub", [count, made.ints([1])], "last_of_row")
    several = made.add("Greater", [tokens, made.ints([1])], "several_tokens")
    # With one token per row, every position is 0, so one is enough.
    wanted = made.add("Where", [several, rows, made.ints([1])], "wanted")
    asked = made.add("Slice", [last, made.ints([0]), wanted, made.ints([0])], "positions")
    graph.insert_before(graph[0], made.nodes)
    ir.convenience.replace_all_uses_with(positions, asked)
    graph.inputs.remove(positions)

    logits, made = graph.outputs[0], _Nodes(graph)
    count_of_rows = made.add("Squeeze", [rows, made.ints([0])], "rows_scalar")
    row = made.add("Range", [made.ints(0), count_of_rows, made.ints(1)], "row")
    largest = made.add("Sub", [wanted, made.ints([1])], "largest_index")
    own = made.add("Min", [row, largest], "own_index")
    index = made.add("Unsqueeze", [own, made.ints([1, 2])], "own_index_of_row")
    kept = made.add("GatherND", [logits, index], "own_logits", batch_dims=1)
    graph.extend(made.nodes)
    assert logits.shape is not None
    kept.type, kept.shape = logits.type, ir.Shape([logits.shape[0], 1, logits.shape[2]])
    logits.name, kept.name = _PREFIX + "of_all_positions", "logits"
    graph.outputs[0] = kept


class _Nodes:
    """Collects new nodes in order; each is named after its output."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self.nodes: list[ir.Node] = []

    def add(self, op: str, inputs: list[ir.Value], name: str, **attributes: int) -> ir.Value:
        node = ir.node(op, inputs, attributes=attributes, name=_PREFIX + name)
        node.outputs[0].name = _PREFIX + name
        self.nodes.append(node)
        return node.outputs[0]

    def ints(self, values: int | list[int]) -> ir.Value:
        text = str(values).strip("[]").replace(", ", "_")
        shape = "scalar" if isinstance(values, int) else "list"
        name = f"{_PREFIX}{shape}_{text}"
        return constant(self._graph, name, np.array(values, dtype=np.int64))
