"""Benchmarks against peers. Run from the repository's root: ``python -m benchmarks.bench_encoder``."""
