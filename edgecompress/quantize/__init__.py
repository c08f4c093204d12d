"""Weights and activations to fewer bits. One module a scheme; the graph stays portable."""
