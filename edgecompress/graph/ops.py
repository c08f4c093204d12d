"""The names of operator sets and of ops that several stages ask for."""

from __future__ import annotations

import onnx_ir as ir

DOMAIN = "edgecompress"
"""Our own ops: portable ones, which a lowering replaces, and those that our kernels compute."""

MICROSOFT = "com.microsoft"
"""ONNX Runtime's."""


def has_cached_attention(model: ir.Model) -> bool:
    """Whether the portable graph keeps keys and values between its runs, as one that generates does."""
    return any(node.op_type == "CachedAttention" for node in model.graph)
