"""Names of distributions, as package managers use them."""

from __future__ import annotations

ONNXRUNTIME = "onnxruntime"
"""Captures, calibrates and verifies during an export, for every target."""

TORCH = "torch"

EXPORT = (TORCH, "transformers", "onnx", "onnx-ir", "onnxscript", ONNXRUNTIME, "tokenizers", "numpy")
"""Packages that make a bundle; their versions are recorded in it."""

RUNTIME = ("numpy", ONNXRUNTIME, "tokenizers", "jinja2")
"""Packages of the base install."""

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
