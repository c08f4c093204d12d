"""Kernels for edgecompress: ``cpu`` for custom ops of ONNX Runtime, ``gpu`` in Triton, of which Hopper's were run."""
