"""Quantizes weights and activations. One module per scheme; the graph stays portable."""
