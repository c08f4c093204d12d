"""Names of operator domains, and checks for ops that several stages use."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "edgecompress"
"""Domain of our own ops: portable ops, which a lowering replaces, and ops of our kernels."""

MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's ops."""


def has_cached_attention(model: ir.Model) -> bool:
    """Whether the portable graph has a KV cache, as a decoder's does."""
    return any(node.op_type == "CachedAttention" for node in model.graph)
