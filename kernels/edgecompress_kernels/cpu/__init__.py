"""Kernels for CPUs: written with numba, compiled ahead of time into one library of custom ops for ONNX Runtime."""
