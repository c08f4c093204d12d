"""Lowers ``edgecompress::CachedAttention`` to standard ops (opset 24), with the KV cache updated in place.

TensorScatter writes the new keys and values [B, Hk, T, D] into the cache [B, Hk, C, D], starting at each row's first
position. Engine builders update the cache's own memory, which requires C to be a constant. Attention then reads the
first S tokens of the cache, where attention_mask is int64 [B, S]. Without this Slice, TensorRT-RTX 1.7.1 writes the
whole cache out once per query head.

The mask is bool [B, 1, T, S], computed once per model from positions alone: key j is visible to the query at position p
if j <= p and, with a window, p - j <= window. That also covers rows padded on the right: everything after a row's last
token has a larger position.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from edgecompress.errors import RecipeError
from edgecompress.graph.ops import DOMAIN
from edgecompress.graph.rewrite import constant, replace_heads

OPSET = 24
"""The first opset with TensorScatter."""

POSITIONS, MASK = "position_ids", "attention_mask"
_PREFIX = "graph/cache"
_HINT = "Export it for a CPU target."


def lower_to_standard_cached_attention(model: ir.Model, capacity_tokens: int) -> int:
    """Rewrite every CachedAttention of ``model`` in place; return how many. Needs opset 24 or later.

    ``capacity_tokens`` is C of every cache. Raises RecipeError for attention that the standard op cannot express.
    """
    graph = model.graph
    nodes = [n for n in graph if n.domain == DOMAIN and n.op_type == "CachedAttention"]
    if not nodes:
        return 0
    shared = _Shared(graph)
    for node in nodes:
        _lower_one(graph, node, shared, capacity_tokens)
    return len(nodes)


class _Shared:
    """Values that all layers share: write positions, the number of tokens to read from the cache, and masks."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._last: ir.Node | None = None  # the last shared node; they read graph inputs only and come first
        self._masks: dict[int | None, ir.Value] = {}
        inputs = {value.name: value for value in graph.inputs}
        missing = [name for name in (POSITIONS, MASK) if name not in inputs]
        if missing:
            raise RecipeError(f"the graph has no input {missing[0]}, which its KV cache needs", hint=_HINT)
        positions, mask = inputs[POSITIONS], inputs[MASK]
        # int64 [1]: S
        self.total = self._op("Shape", [mask], "total_tokens", ir.Shape([1]), start=1, end=2)
        first_column = self._op("Slice", [positions, self._ints([0]), self._ints([1]), self._ints([1])], "first_column")
        # int64 [B]
        self.places = self._op("Squeeze", [first_column, self._ints([1])], "first_places")
        scalar = self._op("Squeeze", [self.total, self._ints([0])], "total_tokens_scalar", ir.Shape([]))
        self._columns = self._op("Range", [self._ints(0), scalar, self._ints(1)], "columns")  # int64 [S]
        self._rows = self._op("Unsqueeze", [positions, self._ints([1, 3])], "rows")  # int64 [B, 1, T, 1]

    def mask(self, window: int | None) -> ir.Value:
        """bool [B, 1, T, S]; ``window`` is the number of visible past tokens, None for all."""
        if window not in self._masks:
            seen = self._op("LessOrEqual", [self._columns, self._rows], "not_behind", dtype=ir.DataType.BOOL)
            if window is not None:
                oldest = self._op("Sub", [self._rows, self._ints(window)], f"oldest_of_{window}")
                near = self._op("GreaterOrEqual", [self._columns, oldest], f"within_{window}", dtype=ir.DataType.BOOL)
                seen = self._op("And", [seen, near], f"seen_within_{window}", dtype=ir.DataType.BOOL)
            self._masks[window] = seen
        return self._masks[window]

    def used(self, cache: ir.Value, node: ir.Node) -> ir.Value:
        """[B, Hk, C, D] -> [B, Hk, S, D], before ``node``."""
        cut = ir.node(
            "Slice", [cache, self._ints([0]), self.total, self._ints([2])], name=f"{node.name}/{cache.name}/used"
        )
        self._graph.insert_before(node, cut)
        cut.outputs[0].type = cache.type
        assert cache.shape is not None
        cut.outputs[0].shape = ir.Shape([*cache.shape[:2], "total_tokens", cache.shape[3]])
        return cut.outputs[0]

    def _op(
        self,
        kind: str,
        inputs: list[ir.Value],
        name: str,
        shape: ir.Shape | None = None,
        dtype: ir.DataType = ir.DataType.INT64,
        **attributes: int,
    ) -> ir.Value:
        node = ir.node(kind, inputs, attributes, name=f"{_PREFIX}/{name}")
        if self._last is None:
            self._graph.insert_before(self._graph[0], node)
        else:
            self._graph.insert_after(self._last, node)
        self._last = node
        node.outputs[0].type, node.outputs[0].shape = ir.TensorType(dtype), shape
        return node.outputs[0]

    def _ints(self, values: int | list[int]) -> ir.Value:
        text = str(values).strip("[]").replace(", ", "_")
        kind = "scalar" if isinstance(values, int) else "list"
        return constant(self._graph, f"{_PREFIX}_{kind}_{text}", np.array(values, dtype=np.int64))


def _lower_one(graph: ir.Graph, node: ir.Node, shared: _Shared, capacity_tokens: int) -> None:
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    heads, size = int(attributes["num_heads"]), int(attributes["head_size"])
    query, key, value, past_key, past_value = node.inputs[:5]
    assert query is not None
    if len(node.inputs) > 6 and node.inputs[6] is not None:
        raise RecipeError(f"{node.name}: standard Attention has no sinks", hint=_HINT)
    if value is None or value.shape is None or value.shape[3] != size:
        raise RecipeError(
            f"{node.name}: its values and queries ({size}) have different widths, which standard Attention does not "
            "support",
            hint=_HINT,
        )
    stores = []
    for new, past, present in ((key, past_key, node.outputs[1]), (value, past_value, node.outputs[2])):
        assert past is not None
        assert past.shape is not None
        past.shape = ir.Shape([*past.shape[:2], capacity_tokens, past.shape[3]])
        written = ir.node(
            "TensorScatter",
            [past, new, shared.places],
            {"axis": 2, "mode": "linear"},
            name=f"{node.name}/{past.name}/TensorScatter",
        )
        graph.insert_before(node, written)
        made, name = written.outputs[0], present.name
        made.type, made.shape = past.type, past.shape
        ir.convenience.replace_all_uses_with(present, made, replace_graph_outputs=True)
        present.name, made.name = None, name
        stores.append(made)
    options: dict[str, ir.Attr | int | float] = {"scale": float(attributes["scale"])}
    if "softcap" in attributes:
        options["softcap"] = float(attributes["softcap"])
    window = attributes.get("window")
    inputs = [query, *(shared.used(cache, node) for cache in stores)]
    inputs.append(shared.mask(int(window) if window is not None else None))
    made_node = ir.node("Attention", inputs, options, name=(node.name or "").replace("/CachedAttention", "/Attention"))
    rows = ir.node("Transpose", made_node.outputs, {"perm": [0, 2, 1, 3]}, name=f"{node.name}/rows")
    width = constant(graph, f"graph/rows_{heads}x{size}", np.array([0, 0, heads * size], dtype=np.int64))
    merged = ir.node("Reshape", [rows.outputs[0], width], name=f"{node.name}/merge_heads")
    graph.insert_before(node, [made_node, rows, merged])
    old, out = node.outputs[0], merged.outputs[0]
    for step in (made_node, rows, merged):
        step.outputs[0].type = old.type
    if old.shape is not None:
        batch, tokens = old.shape[0], old.shape[1]
        made_node.outputs[0].shape = ir.Shape([batch, heads, tokens, size])
        rows.outputs[0].shape = ir.Shape([batch, tokens, heads, size])
        out.shape = ir.Shape([batch, tokens, heads * size])
    replace_heads(graph, node, out, heads, size)
