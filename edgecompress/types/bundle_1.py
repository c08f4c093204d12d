"""How schema 1 of the manifest said what schema 2 says: kept so that bundles of then still load."""

from __future__ import annotations

KINDS = (("generation", "decoder"), ("image", "vision"), ("text", "encoder"))
"""A key that is not null -> the kind; the first that fits."""

SETTINGS = {
    "decoder": ("text", "generation"),
    "vision": ("image", "labels"),
    "encoder": ("text", "labels"),
}
"""Keys of the manifest that are now in the kind's own record."""

BACKENDS = {
    ("onnxruntime", "CPUExecutionProvider"): "onnxruntime-cpu",
    ("onnxruntime", "CUDAExecutionProvider"): "onnxruntime-cuda",
}
"""(backend, first provider) -> a name of today's registry; other backends have kept theirs."""
