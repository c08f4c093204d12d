"""Dataclass to file and back, each with a published JSON Schema."""
