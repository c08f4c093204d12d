"""Jobs for a fleet: a bundle, the label of the devices to measure it on, and the settings of the profile."""

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
    id: str  # a hash of its content: the same job has the same id
    bundle: Path
    identity: str
    label: str
    flags: tuple[str, ...]
    command: tuple[str, ...]  # on the device
    run: int
    parcels: tuple[Parcel, ...]

    @property
    def payload(self) -> str:
        """Names the set of files that the job needs on a device."""
        return ",".join(sorted({each.path.rpartition("/")[0] for each in self.parcels}))


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    bundle: Path
    label: str | None  # None: every label
    asked: Asked
    run: int = 0  # tells repetitions apart
    where: str = ""  # where it was read, for messages


@dataclass(frozen=True, kw_only=True)
class JobLine:
    """One line of a file of jobs. A field that is None takes the command line's value."""

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


def read_lines(path: Path) -> list[tuple[int, JobLine]]:
    """Number and content of each line. Raises UsageError with line and column of the first invalid one."""
    try:
        texts = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"cannot read the jobs in {path}: {error}", hint="Give a file of JSON lines.") from None
    found = []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            found.append((number, from_jsonable(JobLine, json.loads(text))))
        except json.JSONDecodeError as error:
            raise UsageError(f"{path}, line {number}, column {error.colno}: {error.msg}", hint=_LIKE) from None
        except ValueError as error:
            raise UsageError(
                f"{path}, line {number}, column {_column(text, str(error))}: {error}", hint=_LIKE
            ) from None
    if not found:
        raise UsageError(f"{path} holds no jobs", hint=_LIKE)
    return found


def _column(text: str, message: str) -> int:
    """Column of the key that the message names."""
    named = _NAMED.search(message)
    return 1 + max(0, text.find(f'"{named[1]}"')) if named else 1


def read_job_requests(path: Path, bundle: Path | None, asked: Asked) -> list[JobRequest]:
    """The jobs of a file; ``bundle`` and ``asked`` are defaults. Raises UsageError that names the line."""
    requests = []
    for number, line in read_lines(path):
        where = f"{path}, line {number}"
        source = Path(line.bundle) if line.bundle is not None else bundle
        if source is None:
            raise UsageError(f"{where}: no bundle", hint=_LIKE)
        requests.append(
            JobRequest(bundle=source, label=line.target, asked=_asked(line, asked), run=line.run, where=f"{where}: ")
        )
    return requests


def _asked(line: JobLine, base: Asked) -> Asked:
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
    """Validated requests, and their bundles, each opened once."""

    def __init__(self, requests: Sequence[JobRequest]) -> None:
        """Raises UsageError and BundleError that name the line."""
        self._requests = requests
        self._bundles: dict[Path, tuple[str, Manifest, tuple[Parcel, ...]]] = {}
        self._templates: list[tuple[JobRequest, Job]] = []  # for no label yet
        for request in requests:
            try:
                self._templates.append((request, self._job(request)))
            except EdgeCompressError as error:
                raise type(error)(f"{request.where}{error.message}", hint=error.hint) from None

    def labels(self, given: Sequence[str]) -> list[str]:
        """Labels that need a worker. ``given``: for requests that name none; empty means every label of the fleet."""
        named = [request.label for request in self._requests if request.label is not None]
        return list(dict.fromkeys([*named, *given] if len(named) < len(self._requests) else named))

    def jobs(self, labels: Sequence[str]) -> list[Job]:
        """``labels``: for requests that name none. Raises UsageError if two requests are for the same job."""
        found: dict[str, Job] = {}
        by: dict[str, JobRequest] = {}
        for request, template in self._templates:
            for label in [request.label] if request.label is not None else dict.fromkeys(labels):
                key = json.dumps([template.identity, label, template.command, template.run])
                job = replace(template, label=label, id=hashlib.sha256(key.encode()).hexdigest()[:16])
                if job.id in found:
                    raise UsageError(
                        f"{request.where}the same job as {by[job.id].where.removesuffix(': ')}",
                        hint='Remove it, or number the repetition: "run": 1.',
                    )
                found[job.id], by[job.id] = job, request
        return list(found.values())

    def _job(self, request: JobRequest) -> Job:
        check(request.asked)
        if any(threads < 1 for threads in request.asked.threads):
            raise UsageError("threads must be at least 1", hint="Leave them out for the target's default.")
        if request.bundle not in self._bundles:
            manifest, folder = open_bundle(request.bundle)
            parcels = tuple(bundle_parcels(manifest, folder))
            self._bundles[request.bundle] = file_sha256(folder / MANIFEST), manifest, parcels
        identity, manifest, parcels = self._bundles[request.bundle]
        shapes, traces = send_traces(request.asked.shapes, manifest)
        return Job(
            id="",
            bundle=request.bundle,
            identity=identity,
            label="",
            flags=tuple(flags_of(request.asked)),
            command=tuple(profile_command(identity, flags_of(replace(request.asked, shapes=shapes)))),
            run=request.run,
            parcels=(*parcels, *traces),
        )
