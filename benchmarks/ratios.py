"""Ratios in files of results: which row is which, and whether a new one has become worse than the old one.

Absolute times are remarks, since machines are shared. A ratio has p10 and p90 of its own pairs: it is worse when those
of the new one lie wholly below those of the old one (above, where less is better). Figures of another kind of host are
not compared: a ratio of kernels belongs to the instruction sets that it was measured with.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).with_name("results")
IDENTITY = (
    "kind", "name", "what", "side", "variant", "bundle", "kernels", "precision", "shape", "threads", "heads",
    "kv_heads", "head_size", "head", "batch", "length", "tokens", "dtype", "kv_cache", "context_tokens", "against",
    "prompt_tokens", "checkpoint", "sampling",
)  # fmt: skip
_LESS_IS_BETTER = ("time_over_chosen",)
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Ratio:
    """One ratio of one row."""

    row: tuple[tuple[str, Any], ...]  # what identifies the row
    name: str
    median: float
    p10: float
    p90: float

    @property
    def key(self) -> tuple[Any, ...]:
        return (self.row, self.name)

    @property
    def title(self) -> str:
        told = [(name, value) for name, value in self.row if name != "kind"]
        said = ", ".join(str(value) if isinstance(value, str) else f"{name} {value}" for name, value in told)
        return f"{said}: {self.name}"

    def worse_than(self, old: Ratio) -> bool:
        if self.name.split(".")[0] in _LESS_IS_BETTER:
            return self.p10 > old.p90
        return self.p90 < old.p10


def read_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def host_of(rows: Iterable[Row]) -> tuple[Any, ...] | None:
    """What kind of machine a file's rows are of: the processor and its features that decide about kernels."""
    for row in rows:
        host = row.get("host") if isinstance(row.get("host"), Mapping) else row
        if host is not None and "cpu" in host:
            features = host.get("features") or [f for f in host.get("isa", ()) if f.startswith(("avx", "amx"))]
            return (host["cpu"], host.get("cpu_family_model"), tuple(sorted(features)))
    return None


def ratios(rows: Iterable[Row]) -> dict[tuple[Any, ...], Ratio]:
    """Every ratio that has a spread, by its key."""
    found = {}
    for row in rows:
        identity = tuple((name, row[name]) for name in IDENTITY if isinstance(row.get(name), str | int | float | bool))
        for name, median, p10, p90 in _spreads(row):
            ratio = Ratio(identity, name, median, p10, p90)
            found[ratio.key] = ratio
    return found


def _spreads(row: Row, prefix: str = "") -> Iterable[tuple[str, float, float, float]]:
    if {"ratio_median", "ratio_p10", "ratio_p90"} <= row.keys():
        yield prefix + "ratio", row["ratio_median"], row["ratio_p10"], row["ratio_p90"]
    if {"median", "p10", "p90"} <= row.keys():
        yield prefix.rstrip("."), row["median"], row["p10"], row["p90"]
    for name, value in row.items():
        if isinstance(value, Mapping) and name != "host":
            yield from _spreads(value, f"{prefix}{name}.")


@dataclass(frozen=True)
class Checked:
    """``compared`` ratios, of which ``worse`` have become worse: (old, new). ``why`` where nothing was compared."""

    compared: int
    worse: tuple[tuple[Ratio, Ratio], ...]
    why: str = ""


def check(stored: str, fresh: str) -> Checked:
    """Two texts of JSON lines."""
    old_rows, new_rows = read_lines(stored), read_lines(fresh)
    old_host, new_host = host_of(old_rows), host_of(new_rows)
    if old_host is None or new_host is None:
        return Checked(0, (), "one of the two does not say what it was measured on")
    if old_host != new_host:
        return Checked(
            0, (), f"not comparable: stored on {old_host[0]} {old_host[1]}, now on {new_host[0]} {new_host[1]}"
        )
    old, new = ratios(old_rows), ratios(new_rows)
    both = [(old[key], new[key]) for key in old if key in new]
    if not both:
        return Checked(0, (), "no row is in both")
    return Checked(len(both), tuple((before, now) for before, now in both if now.worse_than(before)))
