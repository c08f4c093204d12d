"""The runtime that applications embed. It needs numpy, onnxruntime and tokenizers, never torch, transformers or onnx.

``from edgecompress.runtime import load`` is the entry point. The modules here are shared by all kinds and backends.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported on first use: it depends on every kind and backend, which depend on this package
        return importlib.import_module("edgecompress.loading").load
    raise AttributeError(f"module 'edgecompress.runtime' has no attribute '{name}'")
