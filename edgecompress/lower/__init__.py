"""Lowers portable ops to the target's ops."""
