"""What a device imports: numpy, onnxruntime, tokenizers. Never torch, transformers or onnx."""

from __future__ import annotations

from edgecompress.runtime.encoder import Encoder, load

__all__ = ["Encoder", "load"]
