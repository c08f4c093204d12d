"""Maps schema 1 of the manifest to schema 2, so that old bundles still load."""

from __future__ import annotations

KINDS = (("generation", "decoder"), ("image", "vision"), ("text", "encoder"))
"""(manifest key, kind): the first key that is not null decides the kind."""

SETTINGS = {
    "decoder": ("text", "generation"),
    "vision": ("image", "labels"),
    "encoder": ("text", "labels"),
}
"""Keys of the old manifest that are now in the settings of the kind."""

BACKENDS = {
    ("onnxruntime", "CPUExecutionProvider"): "onnxruntime-cpu",
    ("onnxruntime", "CUDAExecutionProvider"): "onnxruntime-cuda",
}
"""(old backend, first provider) -> current backend name; other names are unchanged."""
