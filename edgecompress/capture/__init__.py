"""Captures a student as a portable ONNX graph, through transformers and PyTorch's exporter."""
