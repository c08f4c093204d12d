"""What a device imports: numpy, onnxruntime, tokenizers; jinja2 for chats. Never torch, transformers or onnx."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from edgecompress.runtime.encoder import Encoder
from edgecompress.runtime.loading import load

if TYPE_CHECKING:
    from edgecompress.runtime.generator import Generator, Session
    from edgecompress.runtime.results import Generated, Piece, Statistics
    from edgecompress.runtime.stream import Stream

__all__ = ["Encoder", "Generated", "Generator", "Piece", "Session", "Statistics", "Stream", "load"]

# What only text generation needs, so that an encoder's cold start does not pay for it.
_MODULES = {
    "Generator": "generator",
    "Session": "generator",
    "Generated": "results",
    "Piece": "results",
    "Statistics": "results",
    "Stream": "stream",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'edgecompress.runtime' has no attribute '{name}'")
    return getattr(importlib.import_module(f"edgecompress.runtime.{_MODULES[name]}"), name)
