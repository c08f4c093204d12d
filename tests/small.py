"""A decoder that has really learned something, small and quick enough to be trained by the tests."""

from __future__ import annotations

from pathlib import Path

import torch

from benchmarks.small_decoder import Settings, TrainingResult, train

SETTINGS = Settings(
    vocab_size=512,
    hidden_size=128,
    layers=2,
    heads=4,
    kv_heads=2,
    intermediate_size=256,
    context_tokens=64,
    batch=16,
    learning_rate=5e-3,
    characters=400_000,
    held_out_tokens=8192,
    packages=(),
)
STEPS = 150


def small_decoder(folder: Path) -> TrainingResult:
    """Train and save a checkpoint in ``folder``: Qwen2's architecture, half a million parameters, seconds."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the sums, and so the weights, are then the same on every run
    try:
        return train(folder, SETTINGS, steps=STEPS)
    finally:
        torch.set_num_threads(threads)
