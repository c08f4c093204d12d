"""Distributions by the names that package managers know them by."""

from __future__ import annotations

ONNXRUNTIME = "onnxruntime"
"""What captures, calibrates and verifies here, whatever a bundle is for."""

TORCH = "torch"

EXPORT = (TORCH, "transformers", "onnx", "onnx-ir", "onnxscript", ONNXRUNTIME, "tokenizers", "numpy")
"""What makes a bundle, and is written down in it."""

RUNTIME = ("numpy", ONNXRUNTIME, "tokenizers", "jinja2")
"""What the base install brings."""

MODULES = {
    "OpenSSL": "pyopenssl",
    "PIL": "pillow",
    "cuda.bindings": "cuda-bindings",
    "cuda.core": "cuda-core",
    "cyclonedx": "cyclonedx-python-lib",
    "dask": "distributed",
    "yaml": "pyyaml",
}
"""Import name -> distribution, where they differ by more than ``_`` and ``-``."""
