"""Frozen dataclasses that the stages pass to each other. Standard library only."""
