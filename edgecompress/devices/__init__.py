"""Profiling on devices that the user owns: one over SSH, or a fleet of them over Dask."""
