"""Kernels for NVIDIA GPUs, written with Triton: called from torch, or compiled ahead of time and launched without it.

None has run on a GPU yet: they are compiled for every chip in ``chips.py`` and tested in Triton's interpreter.
"""
