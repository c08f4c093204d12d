"""Fidelity against the reference, and the quality gate."""
