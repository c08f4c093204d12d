"""The store of a teacher's responses: SQLite, one row per prompt, on disk before it counts.

An attempt is recorded before it is sent and removed in the transaction that stores its response. An attempt that is
still recorded when the store is opened was in flight when a run was killed: it may have been billed, so it counts.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from edgecompress.distill.budget import Tokens
from edgecompress.distill.data import CUT
from edgecompress.distill.endpoint import Endpoint
from edgecompress.distill.prompts import Message, Prompt, Sampling
from edgecompress.errors import OutputError, UsageError

_VERSION = 1
_TABLES = """
CREATE TABLE teachers (id INTEGER PRIMARY KEY, url TEXT, model TEXT, sampling TEXT, UNIQUE (url, model, sampling));
CREATE TABLE responses (
    key TEXT PRIMARY KEY, teacher INTEGER NOT NULL REFERENCES teachers, place INTEGER NOT NULL, messages TEXT NOT NULL,
    response TEXT NOT NULL, reasoning TEXT NOT NULL, finish TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
    completion_tokens INTEGER NOT NULL, counted INTEGER NOT NULL, at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE failures (
    key TEXT PRIMARY KEY, teacher INTEGER NOT NULL REFERENCES teachers, place INTEGER NOT NULL, messages TEXT NOT NULL,
    reason TEXT NOT NULL, tries INTEGER NOT NULL, at TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE attempts (
    id INTEGER PRIMARY KEY, key TEXT NOT NULL, teacher INTEGER NOT NULL REFERENCES teachers,
    prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, lost INTEGER NOT NULL DEFAULT 0
);
"""
_ATTEMPT = "key, teacher, prompt_tokens, completion_tokens"
_NO_STORE = "Give the .sqlite file that `edgecompress label` wrote."


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A response of the endpoint. ``tokens`` None: the endpoint reported no usage."""

    text: str
    reasoning: str = ""
    finish: str = "stop"  # CUT: cut off at max_tokens
    tokens: Tokens | None = None


class ResponseStore:
    """Responses of one teacher in one file. Use from one thread at a time."""

    def __init__(self, connection: sqlite3.Connection, endpoint: Endpoint, sampling: Sampling) -> None:
        self._connection = connection
        row = (endpoint.url, endpoint.model, sampling.text)
        with self._transaction():
            connection.execute("INSERT OR IGNORE INTO teachers (url, model, sampling) VALUES (?, ?, ?)", row)
            # in flight when a run was killed
            self.orphans = connection.execute("UPDATE attempts SET lost = 1 WHERE lost = 0").rowcount
        query = "SELECT id FROM teachers WHERE url = ? AND model = ? AND sampling = ?"
        self._teacher: int = connection.execute(query, row).fetchone()[0]
        self._same = "(SELECT id FROM teachers WHERE url = ? AND model = ?)"
        self._who = (endpoint.url, endpoint.model)

    def has(self, key: str) -> bool:
        return self._connection.execute("SELECT 1 FROM responses WHERE key = ?", (key,)).fetchone() is not None

    def begin(self, prompt: Prompt, bound: Tokens) -> int:
        """Record an attempt and return its id. It is on disk before the request is sent."""
        row = (prompt.key, self._teacher, bound.prompt, bound.completion)
        cursor = self._connection.execute(f"INSERT INTO attempts ({_ATTEMPT}) VALUES (?, ?, ?, ?)", row)
        assert cursor.lastrowid is not None
        return cursor.lastrowid

    def settle(self, attempt: int, prompt: Prompt, answer: Answer, tokens: Tokens) -> None:
        """Store the response and remove the attempt in one transaction."""
        counted = answer.tokens is not None
        with self._transaction() as execute:
            execute(
                "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    *(prompt.key, self._teacher, prompt.place, prompt.text, answer.text, answer.reasoning),
                    *(answer.finish, tokens.prompt, tokens.completion, counted, _now()),
                ),
            )
            execute("DELETE FROM failures WHERE key = ?", (prompt.key,))
            execute("DELETE FROM attempts WHERE id = ?", (attempt,))

    def lose(self, attempt: int) -> None:
        """Mark an attempt that was sent and got no complete response."""
        self._connection.execute("UPDATE attempts SET lost = 1 WHERE id = ?", (attempt,))

    def drop(self, attempt: int) -> None:
        """Remove an attempt that cannot have cost anything: rejected, or never sent."""
        self._connection.execute("DELETE FROM attempts WHERE id = ?", (attempt,))

    def fail(self, prompt: Prompt, reason: str, tries: int) -> None:
        row = (prompt.key, self._teacher, prompt.place, prompt.text, reason, tries, _now())
        self._connection.execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", row)

    def spent(self) -> Tokens:
        """Tokens of every run with this endpoint's model: responses' usage, and upper bounds of lost attempts."""
        total = Tokens()
        for table in ("responses", "attempts"):
            row = self._connection.execute(
                "SELECT COALESCE(SUM(prompt_tokens), 0), COALESCE(SUM(completion_tokens), 0) "
                f"FROM {table} WHERE teacher IN {self._same}",
                self._who,
            ).fetchone()
            total += Tokens(*row)
        return total

    def lost(self) -> int:
        """Attempts of all runs without a response that may have been billed."""
        query = f"SELECT COUNT(*) FROM attempts WHERE lost AND teacher IN {self._same}"
        count: int = self._connection.execute(query, self._who).fetchone()[0]
        return count

    def merge(self, other: Path) -> tuple[int, int]:
        """Copy another store's responses and failures. Returns the number of new and of known responses."""
        with contextlib.closing(_connect(other)) as source:
            responses = source.execute("SELECT * FROM responses").fetchall()
            failures = source.execute("SELECT * FROM failures").fetchall()
            lost = source.execute("SELECT key, prompt_tokens, completion_tokens FROM attempts").fetchall()
        new = 0
        with self._transaction() as execute:
            for row in responses:
                mine = (row[0], self._teacher, *row[2:])
                new += execute(
                    "INSERT OR IGNORE INTO responses VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)", mine
                ).rowcount
                execute("DELETE FROM failures WHERE key = ?", (row[0],))
            for row in failures:
                if not self.has(row[0]):
                    mine = (row[0], self._teacher, *row[2:])
                    execute("INSERT OR REPLACE INTO failures VALUES (?, ?, ?, ?, ?, ?, ?)", mine)
            for key, prompt, completion in lost:
                mine = (key, self._teacher, prompt, completion, 1)
                execute(f"INSERT INTO attempts ({_ATTEMPT}, lost) VALUES (?, ?, ?, ?, ?)", mine)
        return new, len(responses) - new

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield self._connection.execute
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")


@contextlib.contextmanager
def open_store(path: Path, endpoint: Endpoint, sampling: Sampling) -> Iterator[ResponseStore]:
    """Open or create a store. Raises OutputError if another run writes to it, or if it is not a store."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path), contextlib.closing(_connect(path, new=True)) as connection, store_errors(path):
        yield ResponseStore(connection, endpoint, sampling)


def read_pairs(
    store: Path, *, think: tuple[str, str] | None = None, whole: bool = False
) -> Iterator[tuple[list[Message], str]]:
    """Each prompt's messages and its response, in the prompts' order, without empty responses.

    ``think``: tags around the reasoning, which then precedes the response. ``whole``: skip responses that were cut off
    at max_tokens. Also reads a .jsonl file of :func:`write_jsonl`. Raises UsageError and OutputError.
    """
    for row in read_rows(store):
        text = str(row["response"])
        if think is not None and row["reasoning"]:
            text = f"{think[0]}\n{row['reasoning']}\n{think[1]}\n\n{text}"
        if text and not (whole and row["finish"] == CUT):
            yield row["messages"], text


def read_rows(store: Path) -> Iterator[dict[str, Any]]:
    """``messages``, ``response``, ``reasoning``, ``finish`` and ``teacher`` of each.

    Raises UsageError and OutputError.
    """
    if not store.is_file():
        raise UsageError(f"no responses at {store}", hint=_NO_STORE)
    if store.suffix == ".jsonl":
        yield from _read_jsonl(store)
        return
    with contextlib.closing(_connect(store)) as connection:
        rows = connection.execute(
            "SELECT messages, response, reasoning, finish, url, model FROM responses "
            "JOIN teachers ON teachers.id = teacher ORDER BY place, teacher, key"
        )
        for messages, response, reasoning, finish, url, model in rows:
            yield {
                "messages": json.loads(messages),
                "response": response,
                "reasoning": reasoning,
                "finish": finish,
                "teacher": str(Endpoint(url, model)),
            }


def answers_of(store: Path, keys: Collection[str]) -> dict[str, tuple[str, str]]:
    """Response and finish of those prompts that have one, by key. Raises UsageError and OutputError."""
    with contextlib.closing(_connect(store)) as connection:
        rows = connection.execute("SELECT key, response, finish FROM responses")
        return {key: (response, finish) for key, response, finish in rows if key in keys}


def write_jsonl(store: Path, output: Path) -> int:
    """Write one line per response, to a temporary file that is then renamed. Returns the number of lines."""
    part = output.with_name(f".{output.name}.part")
    count = 0
    with part.open("w", encoding="utf-8") as file:
        for row in read_rows(store):
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    part.replace(output)
    return count


def failures(store: Path) -> list[tuple[int, str]]:
    """Place and reason of each failed prompt."""
    with contextlib.closing(_connect(store)) as connection:
        return list(connection.execute("SELECT place, reason FROM failures ORDER BY place"))


@contextlib.contextmanager
def store_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise OutputError(f"the store {path} cannot be written: {error}", hint="Check the free disk space.") from None


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            row = json.loads(line)
            yield {"messages": row["messages"], "response": row["response"]} | {
                name: row.get(name, "") for name in ("reasoning", "finish", "teacher")
            }
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            column = error.colno if isinstance(error, json.JSONDecodeError) else 1
            raise UsageError(
                f"{path}, line {number}, column {column}: the line is not a response",
                hint="Run `edgecompress label` again to rewrite the file.",
            ) from None


def _connect(path: Path, *, new: bool = False) -> sqlite3.Connection:
    """Raises OutputError for a file that is not a store, or has another version."""
    if not new and not path.is_file():
        raise UsageError(f"no responses at {path}", hint=_NO_STORE)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=30)
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        empty = not connection.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        if empty and new:
            connection.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version = {_VERSION}; COMMIT;")
        elif version != _VERSION:
            raise OutputError(f"{path} is not a response store that this version reads", hint=_NO_STORE)
    except sqlite3.DatabaseError as error:
        connection.close()
        raise OutputError(f"{path} is not a response store: {error}", hint="Give another -o.") from None
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Locks a file next to the store: SQLite's own locks are lost when another descriptor of it is closed."""
    lock = path.with_name(f".{path.name}.lock")
    with _take(lock, path):
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)


def _take(lock: Path, path: Path) -> IO[bytes]:
    while True:
        file = lock.open("ab")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise OutputError(
                f"another run is writing to {path}", hint="Wait for it to end, or give another -o."
            ) from None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                return file
        file.close()  # its holder has just removed it


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="microseconds")
