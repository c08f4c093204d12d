"""A GPU as its driver reports it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Gpu:
    name: str
    memory_bytes: int
    compute_capability: tuple[int, int]

    @property
    def capability(self) -> str:
        """The compute capability as NVIDIA writes it: "8.9"."""
        return ".".join(map(str, self.compute_capability))


def describe_gpus(gpus: Sequence[Gpu]) -> str:
    """The GPUs with their numbers, for messages."""
    return "; ".join(f"{index}: {gpu.name}, {gpu.capability}" for index, gpu in enumerate(gpus))
