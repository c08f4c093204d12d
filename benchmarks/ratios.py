"""Ratios in result files: matches rows, and tells whether a new ratio is worse than the stored one.

Machines are shared, so only ratios are compared, not absolute times. The tolerance comes from the measurement: a ratio
has a span, p10 to p90 of its own pairs of calls (for ``compare`` its interval; for bytes half a unit of the last
digit). It is worse when the new span is entirely beyond the old one, on the bad side. A noisy minute widens the span,
so it can hide a regression, but not cause a false one.

Results of another kind of host are not compared: a ratio of kernels depends on the instruction sets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.result_lines import HostKind, Results, Row, read
from benchmarks.suites import Bench, Field, RatioRule

Key = tuple[tuple[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """One ratio of one row, and the span that it was measured in."""

    key: Key  # what identifies the row
    name: str  # of the ratio in it, with the peer that it is to
    median: float
    low: float
    high: float
    field: Field

    @property
    def identity(self) -> tuple[Key, str]:
        return self.key, self.name

    @property
    def title(self) -> str:
        return ", ".join(filter(None, (told(self.key), self.name)))

    def worse_than(self, old: Ratio) -> bool:
        below, above = self.high < old.low, self.low > old.high
        return {"more": below, "less": above, "same": below or above}[self.field.better]


def told(key: Iterable[tuple[str, Any]]) -> str:
    """Texts as they are, numbers with their names."""
    return ", ".join(value if isinstance(value, str) else f"{name} {value}" for name, value in key)


def ratios(results: Results, held: RatioRule, *, all_sides: bool = False) -> dict[tuple[Key, str], Ratio]:
    """Those of our rows, or of all. A row that lacks a field of the key is identified by the rest of it."""
    found: dict[tuple[Key, str], Ratio] = {}
    for row in results.rows:
        if not all_sides and any(row.get(name) not in values for name, values in held.only.items()):
            continue
        key = tuple((name, row[name]) for name in held.key if name in row)
        for field in held.fields:
            for name, median, low, high in _spans(row, field):
                ratio = Ratio(key=key, name=name, median=median, low=low, high=high, field=field)
                found[ratio.identity] = ratio
    return found


def _spans(row: Row, field: Field) -> Iterator[tuple[str, float, float, float]]:
    if field.value:
        if field.value in row:
            middle = row[field.value]
            half = row[field.half_width] if field.half_width else 0.5 * 10**-field.digits
            yield field.value, middle, middle - half, middle + half
        return
    for name, place in _at(row, [part for part in field.path.split(".") if part]):
        prefix = "ratio_" if "ratio_median" in place else ""
        if f"{prefix}median" in place:
            low, high = place[f"{prefix}p10"], place[f"{prefix}p90"]
            peer = f"{name} ({place['name']})" if name and "name" in place else name
            yield peer, place[f"{prefix}median"], low, high


def _at(place: Mapping[str, Any], path: list[str], name: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    if not path:
        yield name, place
        return
    wanted = list(place) if path[0] == "*" else [path[0]]
    for each in wanted:
        if isinstance(place.get(each), Mapping):
            yield from _at(place[each], path[1:], f"{name} {each}".strip())


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``worse``: (old, new). ``untouched`` stored ratios were not measured anew. ``why``: nothing was compared."""

    compared: int = 0
    untouched: int = 0
    worse: tuple[tuple[Ratio, Ratio], ...] = ()
    why: str = ""


def stored_files(folder: Path, bench: Bench) -> list[Path]:
    """``encoder.jsonl``, and those of other kinds of host: ``encoder-zen5.jsonl``."""
    return sorted([*folder.glob(f"{bench.results}.jsonl"), *folder.glob(f"{bench.results}-*.jsonl")])


def stored_for(folder: Path, bench: Bench, kind: HostKind) -> tuple[Path | None, str]:
    """The file whose figures can be held against those of that kind of host, or None and why there is none."""
    others = []
    for path in stored_files(folder, bench):
        there = read(path).host_kind
        if there is not None and (there.comparable(kind) or (bench.held is not None and bench.held.any_host)):
            return path, ""
        others.append(str(there or "an unknown host"))
    if not others:
        return None, "nothing is stored"
    return None, f"not comparable: stored on {'; '.join(dict.fromkeys(others))}; this is {kind}"


def check(stored: Results, fresh: Results, held: RatioRule) -> Comparison:
    """Of figures of the same kind of host."""
    old, new = ratios(stored, held), ratios(fresh, held)
    both = [(old[key], new[key]) for key in old if key in new]
    if not both:
        return Comparison(untouched=len(old), why="no row is in both")
    return Comparison(
        compared=len(both),
        untouched=len(old) - len(both),
        worse=tuple((before, now) for before, now in both if now.worse_than(before)),
    )
