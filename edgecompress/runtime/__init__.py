"""What kinds and backends share on a device: numpy, onnxruntime, tokenizers. Never torch, transformers or onnx.

:func:`edgecompress.load` is here by its name too: an application embeds ``edgecompress.runtime`` and nothing else.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # it opens any kind on any backend, so it lies above both and is looked up when asked for
        return importlib.import_module("edgecompress.loading").load
    raise AttributeError(f"module 'edgecompress.runtime' has no attribute '{name}'")
