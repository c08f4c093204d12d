"""Jobs for a fleet: a bundle, the label of the devices that it is for, and what is asked of it."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgecompress.devices.push import Parcel, bundle_parcels
from edgecompress.devices.run import flags_of, profile_command, send_traces
from edgecompress.errors import EdgeCompressError, UsageError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import MANIFEST, file_sha256, open_bundle
from edgecompress.profile.run import Asked, check
from edgecompress.types.bundle import Manifest

_LIKE = 'Each line is a JSON object such as {"bundle": "s.bundle", "target": "raspberry-pi-5", "shapes": "1x128"}.'
_NAMED = re.compile(r"'([A-Za-z_]+)")


@dataclass(frozen=True, kw_only=True)
class Job:
    id: str  # of what it is: the same job has the same
    bundle: Path
    identity: str
    label: str
    flags: tuple[str, ...]
    command: tuple[str, ...]  # on the device
    run: int
    parcels: tuple[Parcel, ...]

    @property
    def cargo(self) -> str:
        """What it needs there, told from what others need."""
        return ",".join(sorted({each.path.rpartition("/")[0] for each in self.parcels}))


@dataclass(frozen=True, kw_only=True)
class Wish:
    bundle: Path
    label: str | None  # None: of every device
    asked: Asked
    run: int = 0  # a number that tells repetitions apart
    where: str = ""  # it was read, for messages


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a file of jobs. What is None is as the command line says."""

    bundle: str | None = None
    target: str | None = None
    run: int = 0
    shapes: str | None = None
    threads: tuple[int, ...] | int | None = None
    duration_s: float | None = None
    percentile: float | None = None
    scenarios: tuple[str, ...] | None = None
    per_s: float | None = None
    bound_ms: float | None = None
    new_tokens: int | None = None
    device: int | None = None
    cold: bool | None = None
    operators: bool | None = None
    allow_mismatch: bool | None = None


def read_lines(path: Path) -> list[tuple[int, Line]]:
    """Number and content of each. Raises UsageError with line and column of the first that is broken."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the jobs {path} cannot be read: {error}", hint="Give a file of JSON lines.") from None
    found = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            found.append((number, from_jsonable(Line, json.loads(text))))
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number}, column {error.colno}: {error.msg}", hint=_LIKE) from None
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}, column {_column(text, str(error))}: {error}", hint=_LIKE
            ) from None
    if not found:
        raise UsageError(f"the jobs {path} are empty", hint=_LIKE)
    return found


def _column(text: str, message: str) -> int:
    """Of the key that the message names."""
    named = _NAMED.search(message)
    return 1 + max(0, text.find(f'"{named[1]}"')) if named else 1


def read_wishes(path: Path, bundle: Path | None, asked: Asked) -> list[Wish]:
    """Of a file. ``bundle`` and ``asked`` are for what a line leaves out. Raises UsageError, naming the line."""
    wishes = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        source = Path(line.bundle) if line.bundle is not None else bundle
        if source is None:
            raise UsageError(f"{where}: it names no bundle", hint=_LIKE)
        wishes.append(
            Wish(bundle=source, label=line.target, asked=_asked(line, asked), run=line.run, where=f"{where}: ")
        )
    return wishes


def _asked(line: Line, base: Asked) -> Asked:
    names = {field.name for field in dataclasses.fields(Asked)}
    given: dict[str, Any] = {
        field.name: value
        for field in dataclasses.fields(line)
        if field.name in names and (value := getattr(line, field.name)) is not None
    }
    if isinstance(given.get("threads"), int):
        given["threads"] = (given["threads"],)
    return replace(base, **given)


class Plan:
    """Wishes that were found to make sense, and their bundles, opened once each."""

    def __init__(self, wishes: Sequence[Wish]) -> None:
        """Raises UsageError and BundleError, naming the line."""
        self._wishes = wishes
        self._bundles: dict[Path, tuple[str, Manifest, tuple[Parcel, ...]]] = {}
        self._made: list[tuple[Wish, Job]] = []  # for no label yet
        for wish in wishes:
            try:
                self._made.append((wish, self._job(wish)))
            except EdgeCompressError as error:
                raise type(error)(f"{wish.where}{error.message}", hint=error.hint) from None

    def labels(self, given: Sequence[str]) -> list[str]:
        """Those that must be there. ``given``: for wishes that name none; empty is for all that there are."""
        named = [wish.label for wish in self._wishes if wish.label is not None]
        return list(dict.fromkeys([*named, *given] if len(named) < len(self._wishes) else named))

    def jobs(self, labels: Sequence[str]) -> list[Job]:
        """``labels``: for wishes that name none. Raises UsageError if two wishes are for the same job."""
        found: dict[str, Job] = {}
        by: dict[str, Wish] = {}
        for wish, made in self._made:
            for label in [wish.label] if wish.label is not None else dict.fromkeys(labels):
                key = json.dumps([made.identity, label, made.command, made.run])
                job = replace(made, label=label, id=hashlib.sha256(key.encode()).hexdigest()[:16])
                if job.id in found:
                    raise UsageError(
                        f"{wish.where}it is the same job as {by[job.id].where.removesuffix(': ')}",
                        hint='Remove it; a repetition has a number of its own: "run": 1.',
                    )
                found[job.id], by[job.id] = job, wish
        return list(found.values())

    def _job(self, wish: Wish) -> Job:
        check(wish.asked)
        if any(threads < 1 for threads in wish.asked.threads):
            raise UsageError("threads are at least 1", hint="Leave them out for the target's choice.")
        if wish.bundle not in self._bundles:
            manifest, folder = open_bundle(wish.bundle)
            parcels = tuple(bundle_parcels(manifest, folder))
            self._bundles[wish.bundle] = file_sha256(folder / MANIFEST), manifest, parcels
        identity, manifest, parcels = self._bundles[wish.bundle]
        shapes, traces = send_traces(wish.asked.shapes, manifest)
        return Job(
            id="",
            bundle=wish.bundle,
            identity=identity,
            label="",
            flags=tuple(flags_of(wish.asked)),
            command=tuple(profile_command(identity, flags_of(replace(wish.asked, shapes=shapes)))),
            run=wish.run,
            parcels=(*parcels, *traces),
        )
