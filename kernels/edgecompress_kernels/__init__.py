"""Attention kernels for edgecompress. None is built yet: this version runs ONNX Runtime's own kernels."""
