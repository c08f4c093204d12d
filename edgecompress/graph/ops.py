"""The names of operator sets: once, for whoever writes or reads a node."""

from __future__ import annotations

DOMAIN = "edgecompress"
"""Our own ops: portable ones, which a lowering replaces, and those that our kernels compute."""

MICROSOFT = "com.microsoft"
"""ONNX Runtime's."""
