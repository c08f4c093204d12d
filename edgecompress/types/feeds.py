"""What a captured graph is run with before it is compiled."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from edgecompress.types.arrays import Feed


def no_feeds() -> Iterable[Feed]:
    return ()


@dataclass(frozen=True, kw_only=True)
class GraphFeeds:
    """Each call goes through the samples anew."""

    calibration: Callable[[], Iterable[Feed]]  # for statistics and Hessians
    probes: Callable[[], Iterable[Feed]] = no_feeds  # a few short ones, for what is run once a weight
    smooths: bool = True  # outliers of activations may be moved into the weights before they are quantized
