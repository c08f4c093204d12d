"""Student to portable ONNX graph. The only place that knows transformers."""
