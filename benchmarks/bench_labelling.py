"""Does a labelling lose prompts, or pay for one twice? Its server is killed twice, and the labelling once.

    python -m benchmarks.bench_labelling [--prompts 5000] [--concurrency 16]

The server is `edgecompress serve`'s own application over a tiny decoder, in a process of its own, killed with SIGKILL
and started again; the labelling is `edgecompress label`. The server's log of requests and answers is compared with the
store. One JSON line for the host and one for the run, in benchmarks/results/labelling.jsonl.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench_encoder import note
from benchmarks.labelling_server import MODEL, name_of
from benchmarks.result_lines import RESULTS, header, write

ROOT = Path(__file__).parent.parent
SERVER, LABELLING = "server", "labelling"
KILLS = ((0.25, SERVER), (0.5, LABELLING), (0.75, SERVER))  # the share of prompts that was answered by then
_MAX_TOKENS = 16
_LOOK_S = 0.02
_DOWN_S = 1.0  # between a kill and the new start
_PATIENCE_S = 1800.0


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Processes:
    """The two of them; whatever was started is ended."""

    def __init__(self, folder: Path, bundle: Path, prompts: Path, concurrency: int) -> None:
        port = free_port()
        self.log, self.store = folder / "asked.jsonl", folder / "responses.sqlite"
        self.log.touch()
        self._folder = folder
        teacher = f"openai:http://127.0.0.1:{port}/v1#{MODEL}"
        self._commands = {
            SERVER: ["benchmarks.labelling_server", str(bundle), str(port), str(self.log)],
            LABELLING: [
                *("edgecompress", "label", "--teacher", teacher, "--data", str(prompts), "-o", str(self.store)),
                *("--concurrency", str(concurrency), "--max-tokens", str(_MAX_TOKENS), "--temperature", "0", "--json"),
            ],
        }
        self.running: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, name: str) -> None:
        with (self._folder / f"{name}.out").open("wb") as out, (self._folder / f"{name}.err").open("ab") as err:
            command = [sys.executable, "-m", *self._commands[name]]
            self.running[name] = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=err)

    def kill(self, name: str) -> None:
        self.running[name].kill()
        self.running[name].wait()

    def end(self) -> None:
        for process in self.running.values():
            if process.poll() is None:
                process.kill()
            process.wait()

    def said(self, name: str, ending: str) -> str:
        return (self._folder / f"{name}.{ending}").read_text()

    def account(self) -> list[dict[str, Any]]:
        """Whole lines only."""
        content = self.log.read_bytes()
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]


@contextlib.contextmanager
def reading(store: Path) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(store)
    try:
        yield connection
    finally:
        connection.close()


def in_flight(account: list[dict[str, Any]]) -> set[str]:
    """Prompts with a request that has no answer."""
    count: Counter[str] = Counter()
    for line in account:
        count[line["prompt"]] += 1 if line["what"] == "asked" else -1
    return {prompt for prompt, more in count.items() if more > 0}


def stored_names(store: Path) -> dict[str, float]:
    """Each prompt's name, and when its response was stored."""
    with reading(store) as connection:
        rows = connection.execute("SELECT messages, at FROM responses").fetchall()
    return {name_of(json.loads(messages)): datetime.fromisoformat(at).timestamp() for messages, at in rows}


def follow(processes: Processes, prompts: int) -> list[dict[str, Any]]:
    """Kill and start again at the chosen moments, until the labelling has ended by itself."""
    kills: list[dict[str, Any]] = []
    until = time.monotonic() + _PATIENCE_S
    for share, name in KILLS:
        while processes.log.read_bytes().count(b'"answered"') < share * prompts:
            if processes.running[LABELLING].poll() is not None or time.monotonic() > until:
                raise RuntimeError(processes.said(LABELLING, "err") + processes.said(SERVER, "err"))
            time.sleep(_LOOK_S)
        processes.kill(name)
        moment = time.time()
        account = processes.account()
        stored = stored_names(processes.store)
        answered = {line["prompt"] for line in account if line["what"] == "answered"}
        kills.append(
            {
                "killed": name,
                "stored_then": sum(at <= moment for at in stored.values()),
                "requests_without_an_answer": len(in_flight(account)),
                "answers_not_stored": len(answered - stored.keys()),
            }
        )
        if name == SERVER:
            time.sleep(_DOWN_S)
        processes.start(name)
    if processes.running[LABELLING].wait(max(1.0, until - time.monotonic())):
        raise RuntimeError(processes.said(LABELLING, "err"))
    return kills


def run(folder: Path, prompts: int, concurrency: int) -> dict[str, Any]:
    from tests.decoder_bundle import decoder_bundle

    bundle = decoder_bundle(folder / "tiny.bundle")
    data = folder / "prompts.jsonl"
    asked = [[{"role": "user", "content": f"Question {n}: why is the sky blue?"}] for n in range(prompts)]
    data.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in asked))
    processes = Processes(folder, bundle, data, concurrency)
    began = time.monotonic()
    try:
        processes.start(SERVER)
        processes.start(LABELLING)
        kills = follow(processes, prompts)
        seconds = time.monotonic() - began
    finally:
        processes.end()
    said = json.loads(processes.said(LABELLING, "out"))
    account = processes.account()
    stored = stored_names(processes.store)
    answers = Counter(line["prompt"] for line in account if line["what"] == "answered")
    with reading(processes.store) as connection:
        rows = connection.execute("SELECT COUNT(*), COUNT(DISTINCT messages) FROM responses").fetchone()
        whole = connection.execute("PRAGMA integrity_check").fetchone()[0]
    expected = {name_of(messages) for messages in asked}
    return {
        "kind": "labelling",
        "prompts": prompts,
        "concurrency": concurrency,
        "kills": kills,
        "stored": rows[0],
        "stored_distinct": rows[1],
        "prompts_lost": len(expected - stored.keys()),
        "prompts_failed": said["failed"],
        "requests": sum(line["what"] == "asked" for line in account),
        "answers": sum(answers.values()),
        "answered_distinct": len(answers),
        "asked_again_after_stored": sum(
            line["what"] == "asked" and line["at"] > stored.get(line["prompt"], float("inf")) for line in account
        ),
        "answered_twice": sum(count > 1 for count in answers.values()),
        "begun_twice": sum(
            count > 1 for count in Counter(e["prompt"] for e in account if e["what"] == "asked").values()
        ),
        "lost_as_the_store_counts": said["lost"],
        "store_is_whole": whole == "ok",
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--out", type=Path, default=RESULTS / "labelling.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        row = run(Path(name), options.prompts, options.concurrency)
    versions = {name: version(name) for name in ("openai", "fastapi", "uvicorn")}
    write(options.out, [header(versions=versions, sqlite=sqlite3.sqlite_version), row])
    note(json.dumps(row, sort_keys=True))


if __name__ == "__main__":
    main()
