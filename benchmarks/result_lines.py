"""Result files: JSON lines, the first of which describes the host.

Older files have the host in every row, or in a line of its own. All of them can be read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.hosts import TELLING_FEATURES, describe_host

RESULTS = Path(__file__).with_name("results")
Row = dict[str, Any]


@dataclass(frozen=True)
class HostKind:
    """The properties of a machine that decide the ratios of kernels."""

    cpu: str
    model: str  # "" where it is not told
    features: tuple[str, ...]
    gpu: str = ""

    def __str__(self) -> str:
        gpu = f" with {self.gpu}" if self.gpu else ""
        return f"{self.cpu} {self.model or 'of a model that is not told'} ({', '.join(self.features) or '—'}){gpu}"

    def comparable(self, other: HostKind) -> bool:
        """False if a model is unknown: "AMD EPYC" is the name of many."""
        return self == other and bool(self.model)


@dataclass(frozen=True, kw_only=True)
class Results:
    """``about``: the header's keys besides the host. ``rows`` are without hosts."""

    host: Mapping[str, Any]
    about: Mapping[str, Any]
    rows: Sequence[Row]

    @property
    def host_kind(self) -> HostKind | None:
        """None if the file does not describe its host."""
        if "cpu" not in self.host:
            return None
        features = {*self.host.get("features", ()), *self.host.get("isa", ())}
        return HostKind(
            cpu=self.host["cpu"],
            model=self.host.get("cpu_family_model", ""),
            features=tuple(name for name in TELLING_FEATURES if name in features),
            gpu=self.host.get("gpu", {}).get("name", ""),
        )


def header(**about: Any) -> Row:
    """The first line: this host, and ``about``, which applies to all rows."""
    return {"kind": "header", "host": describe_host(), **about}


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Written to a temporary file, then renamed: an interrupted run leaves no partial file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    part.replace(path)


def lines_of(text: str) -> list[Row]:
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def parse(text: str) -> Results:
    host: Mapping[str, Any] = {}
    about: Row = {}
    rows = []
    for line in lines_of(text):
        if line.get("kind") == "host":
            host = host or line
            continue
        told = line.pop("host", None)
        host = host or told or {}
        if line.get("kind") == "header" or (told and "kind" not in line):
            about |= {key: value for key, value in line.items() if key != "kind"}
        else:
            rows.append(line)
    return Results(host=host, about=about, rows=rows)


def read(path: Path) -> Results:
    return parse(path.read_text(encoding="utf-8"))
