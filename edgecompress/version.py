"""The version, by itself, so that nobody imports the whole package for it."""

__version__ = "0.1.0"
