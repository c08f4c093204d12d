"""Kernels for edgecompress: ``cpu`` for custom ops of ONNX Runtime, ``gpu`` in Triton (not yet run on a GPU)."""
