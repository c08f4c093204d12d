"""Results of a fleet's jobs, one JSON line each. Only the first profile of a job is kept; duplicates are counted."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from edgecompress.errors import OutputError
from edgecompress.formats.codec import from_jsonable, to_jsonable
from edgecompress.types.fleet import FleetRow


class ResultStore:
    """Results of one run. A failure is recorded too, but another run retries the job."""

    def __init__(self, file: IO[bytes] | None = None) -> None:
        self._file = file
        self.rows: dict[str, FleetRow] = {}
        self.duplicates = 0

    def has(self, job: str) -> bool:
        row = self.rows.get(job)
        return row is not None and row.profile is not None

    def add(self, row: FleetRow) -> bool:
        """Append the row. False: the job already has a profile, and this one is dropped."""
        if self.has(row.job):
            self.duplicates += row.profile is not None
            return False
        if self._file is not None:
            self._file.write(json.dumps(to_jsonable(row), sort_keys=True, ensure_ascii=False).encode() + b"\n")
            os.fsync(self._file.fileno())
        self.rows[row.job] = row
        return True


@contextlib.contextmanager
def open_store(path: Path | None) -> Iterator[ResultStore]:
    """A store with the results of earlier runs in ``path``; None keeps no file.

    A last line without a newline is an interrupted write, and is removed. Raises OutputError for an invalid line.
    """
    if path is None:
        yield ResultStore()
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b", buffering=0) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(f"another run is writing {path}", hint="Wait for it, or give another -o DIR.") from None
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        store = ResultStore(file)
        for number, line in enumerate(whole.splitlines(), 1):
            row = _row(line, path, number)
            if not store.has(row.job):
                store.rows[row.job] = row
        if len(whole) < len(content):
            file.truncate(len(whole))
        yield store


def _row(line: bytes, path: Path, number: int) -> FleetRow:
    hint = "Remove the line to run its job again, or give another -o DIR."
    try:
        return from_jsonable(FleetRow, json.loads(line))
    except json.JSONDecodeError as error:
        raise OutputError(f"{path}, line {number}, column {error.colno}: {error.msg}", hint=hint) from None
    except (ValueError, UnicodeDecodeError) as error:
        raise OutputError(f"{path}, line {number}: {error}", hint=hint) from None
