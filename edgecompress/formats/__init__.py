"""Reads and writes dataclasses as files, each with a published JSON Schema."""
