"""Kernels for edgecompress: ``cpu`` for ONNX Runtime's custom ops, ``gpu`` in Triton, run on Hopper only."""
