"""The inputs that a captured graph runs with before it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgecompress.types.arrays import Feed


def no_feeds() -> Iterable[Feed]:
    return ()


@dataclass(frozen=True, kw_only=True)
class GraphFeeds:
    """Each call iterates over the samples from the start."""

    calibration: Callable[[], Iterable[Feed]]  # for statistics and Hessians
    probes: Callable[[], Iterable[Feed]] = no_feeds  # a few short ones, to run once per weight
    smooths: bool = True  # SmoothQuant may move activation outliers into the weights
