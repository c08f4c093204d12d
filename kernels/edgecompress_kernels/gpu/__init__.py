"""Kernels for NVIDIA GPUs in Triton: called from torch, or compiled ahead of time and launched without torch.

They are compiled for every chip in ``chips.py`` and tested in Triton's interpreter. ``catalogue.RUN_ON`` lists the GPUs
that they have run on.
"""
