"""Commands that run on a device over SSH, a process each: ``receive`` files, ``install`` a runtime, ``attend`` a job.

Standard library only, like :mod:`edgecompress.devices.depot`: both are sent as text. An order is one line of JSON on
stdin; an answer is one line of JSON behind a mark, which tells it from the output of login scripts. A supervisor in a
separate session runs the job: it outlives the connection, and a later connection finds its result. The word "stop" on
stdin ends the command's work; the end of stdin ends only ``receive``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import io
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from edgecompress.devices import depot

MARK = "@edgecompress "
NO_NETWORK = ("NewConnectionError", "name resolution", "Network is unreachable", "timed out", "ProxyError", "SSLError")
_UNAVAILABLE = ("No matching distribution", "ResolutionImpossible", "conflicting")
_CHUNK_BYTES = 1 << 18
_POLL_S = 0.1
_PATIENCE_S = 5.0
_KEEP_S = 7 * 24 * 3600.0  # for a result that was never fetched
_TAIL = 4000  # characters of a command's stderr


@functools.cache
def _stdin() -> io.FileIO:
    """Not Python's own: a waiting thread would hold its lock when the process ends."""
    return io.FileIO(0, closefd=False)


def say(**answer: Any) -> None:
    """Print an answer; the work goes on if nobody reads it."""
    with contextlib.suppress(OSError):
        sys.stdout.write(MARK + json.dumps(answer) + "\n")
        sys.stdout.flush()


def receive() -> int:
    """Read the missing parts of ``files`` from stdin, file by file."""
    files: list[depot.File] = _order()["files"]
    need = depot.missing(files)
    for _ in range(2):
        if (most := depot.needed_bytes(files, need)) > (free := depot.free_bytes()):
            say(error="full", needed_bytes=most, free_bytes=free)
            return 1
        say(need=need)
        failed = []
        for each in need:
            file, offset = files[each["index"]], each["offset"]
            while offset < file["bytes"]:
                data = _stdin().read(min(_CHUNK_BYTES, file["bytes"] - offset))
                if not data:
                    return 1
                depot.write(file, offset, data)
                offset += len(data)
            if not depot.settle(file):
                failed.append(depot.MissingPart(index=each["index"], offset=0))
        if not failed:
            say(whole=True)
            return 0
        need = failed
    say(error="altered", path=files[need[0]["index"]]["path"])
    return 1


def install() -> int:
    """Unpack edgecompress and create an environment for it, with the first of ``attempts`` that pip can install.

    An existing environment is reused. The code lies beside it, so a new version of it needs no new environment.
    """
    order = _order()
    env, name = depot.root() / "envs" / order["env"], order["env"]
    ready = env / "ready.json"
    env.parent.mkdir(parents=True, exist_ok=True)
    with _locked(env.parent / f"{name}.lock", "another run is preparing the device"):
        if not ready.is_file():
            shutil.rmtree(env, ignore_errors=True)
            running: list[subprocess.Popen[str]] = []
            threading.Thread(target=_stop_install, args=(running, env), daemon=True).start()
            if complaint := _make_env(order, env, running):
                shutil.rmtree(env, ignore_errors=True)
                say(**complaint)
                return 1
            versions = subprocess.run(
                [str(env / "bin/python"), "-c", _VERSIONS, *order["packages"]],
                capture_output=True,
                text=True,
                check=True,
            ).stdout
            part = ready.with_suffix(".part")
            part.write_text(versions)
            part.replace(ready)
        code = _unpack(depot.place(order["wheel"]))
        say(python=str(env / "bin/python"), code=str(code), versions=json.loads(ready.read_text()))
    return 0


_VERSIONS = (
    "import sys, json, importlib.metadata as m;"
    "print(json.dumps({name: m.version(name) for name in sys.argv[1:]}, sort_keys=True))"
)


def _make_env(order: dict[str, Any], env: Path, running: list[subprocess.Popen[str]]) -> dict[str, Any] | None:
    say(show="creating an environment")
    code, said = _follow([sys.executable, "-m", "venv", str(env)], running)
    if code:
        return {"error": "venv", "text": said[-_TAIL:]}
    (env / "constraints.txt").write_text("\n".join(order["constraints"]) + "\n")
    pip = [str(env / "bin/python"), "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
    pip += ["--only-binary", ":all:"]
    if order["wheels"] is not None:
        pip += ["--no-index", "--find-links", str(depot.place(order["wheels"]))]
    complaints = []
    for number, packages in enumerate(order["attempts"]):
        pinned = ["-c", str(env / "constraints.txt")] if number == 0 else []
        code, said = _follow([*pip, *pinned, *packages], running)
        if code == 0:
            return None
        complaints.append(said[-_TAIL:])
        if not any(sign in said for sign in _UNAVAILABLE) or any(sign in said for sign in NO_NETWORK):
            break
    return {"error": "pip", "text": complaints[0], "last": complaints[-1]}


def _unpack(wheel: Path) -> Path:
    """The unpacked wheel, a folder for PYTHONPATH; it has the name of the wheel's folder."""
    code = depot.root() / "code" / wheel.parent.name
    if not code.is_dir():
        part = code.with_suffix(".part")
        shutil.rmtree(part, ignore_errors=True)
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(part)
        part.rename(code)
    return code


def _follow(command: list[str], running: list[subprocess.Popen[str]]) -> tuple[int, str]:
    """Run a command and report its progress line by line; return exit code and output."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    )
    running[:] = [process]
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if line.startswith(("Collecting", "Downloading", "  Downloading", "Installing")):
            say(show=line.strip().partition(" (from")[0][:100])
    return process.wait(), "".join(lines)


def _stop_install(running: list[subprocess.Popen[str]], env: Path) -> None:
    if _stdin().readline() == b"stop\n":
        for process in running:
            process.kill()
            process.wait()
        shutil.rmtree(env, ignore_errors=True)
        say(stopped=True)
        os._exit(1)


def attend() -> int:
    """Start the ordered job, or find it running, and return its result; delete it once the other side has read it."""
    order = _order()
    jobs = depot.root() / "jobs"
    job = jobs / order["job"]
    _forget_old(jobs, job)
    if not (job / "exit.json").is_file() and not _is_held(job / "lock"):
        shutil.rmtree(job, ignore_errors=True)
        job.mkdir(parents=True)
        (job / "order.json").write_text(json.dumps(order))
        _start(job)
        say(began=time.time(), found=False)
    else:
        say(began=(job / "order.json").stat().st_mtime, found=True)
    words: queue.Queue[str] = queue.Queue()
    threading.Thread(target=_listen, args=(words,), daemon=True).start()
    state = ""
    while not (job / "exit.json").is_file():
        with contextlib.suppress(queue.Empty):
            if words.get(timeout=_POLL_S) == "stop":
                _end(job)
                shutil.rmtree(job, ignore_errors=True)
                say(stopped=True)
            return 1
        if not _is_held(job / "lock") and not (job / "exit.json").is_file():
            say(error="died", stderr=_tail(job / "stderr"))
            shutil.rmtree(job, ignore_errors=True)
            return 1
        now = _tail(job / "state")
        if now != state:
            say(show=(state := now))
    code = json.loads((job / "exit.json").read_text())["code"]
    out = (job / "stdout").read_text(errors="replace")
    say(exit=code, stdout=out, stderr=_tail(job / "stderr"))
    if words.get() in ("read", "stop"):  # "stop" if both came at once
        shutil.rmtree(job, ignore_errors=True)
        say(forgotten=True, stopped=True)
    return 0


def _start(job: Path) -> None:
    """Start a supervisor that inherits the job's lock, and holds it as long as it lives."""
    lock = os.open(job / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)
    process = subprocess.Popen(
        [sys.executable, *sys.orig_argv[1:-1], "supervise", str(job)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=(job / "stderr").open("wb"),
        pass_fds=(lock,),
        start_new_session=True,
        cwd="/",
    )
    (job / "pid").write_text(str(process.pid))
    os.close(lock)


def supervise(job: Path) -> int:
    """Run the job's command when no other one runs: two at once would slow each other."""
    order = json.loads((job / "order.json").read_text())
    state = job / "state"
    with (depot.root() / "busy.lock").open("w") as busy:
        try:
            fcntl.flock(busy, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            state.write_text("waiting: another profile is running")
            fcntl.flock(busy, fcntl.LOCK_EX)
        state.write_text("profiling")
        environment = os.environ | order["environment"]
        for name in order["without"]:
            environment.pop(name, None)
        with (job / "stdout").open("wb") as out, (job / "stderr").open("wb") as err:
            code = subprocess.call(
                order["command"], cwd=job, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err
            )
    part = job / "exit.part"
    part.write_text(json.dumps({"code": code}))
    part.replace(job / "exit.json")
    return 0


def _end(job: Path) -> None:
    """End the supervisor's session: SIGTERM, then SIGKILL."""
    if not _is_held(job / "lock"):
        return
    group = int((job / "pid").read_text())
    until = time.monotonic() + _PATIENCE_S
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        while time.monotonic() < until:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(group, os.WNOHANG)
            os.killpg(group, 0)
            time.sleep(_POLL_S)
        os.killpg(group, signal.SIGKILL)


def _listen(words: queue.Queue[str]) -> None:
    """Queue each line of stdin, and an empty one at its end."""
    while line := _stdin().readline():
        words.put(line.decode().strip())
    words.put("")


def _forget_old(jobs: Path, but: Path) -> None:
    for job in jobs.iterdir() if jobs.is_dir() else ():
        with contextlib.suppress(OSError):
            if job != but and time.time() - job.stat().st_mtime > _KEEP_S and not _is_held(job / "lock"):
                shutil.rmtree(job)


def _is_held(lock: Path) -> bool:
    if not lock.is_file():
        return False
    with lock.open("r") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextlib.contextmanager
def _locked(path: Path, why: str) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(show=f"waiting: {why}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _tail(path: Path) -> str:
    try:
        return path.read_text(errors="replace")[-_TAIL:]
    except OSError:
        return ""


def _order() -> dict[str, Any]:
    order: dict[str, Any] = json.loads(_stdin().readline())
    return order


_COMMANDS = {"receive": receive, "install": install, "attend": attend}


def main() -> int:
    name, *rest = sys.argv[1:]
    try:
        return supervise(Path(rest[0])) if name == "supervise" else _COMMANDS[name]()
    except OSError as error:
        kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "os"
        say(error=kind, text=f"{error.strerror or error}: {error.filename or depot.root()}")
        return 1
