"""Portable ops to the target's ops."""
