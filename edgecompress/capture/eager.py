"""Runs a PyTorch module eagerly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from edgecompress.types.arrays import Feed, FloatArray


def run_module(module: torch.nn.Module, feeds: Sequence[Feed]) -> list[list[FloatArray]]:
    """The module's outputs for each feed; a feed's arrays are the arguments in order."""
    with torch.no_grad():
        return [
            [output.numpy() for output in module(*(torch.from_numpy(value) for value in feed.values()))]
            for feed in feeds
        ]
