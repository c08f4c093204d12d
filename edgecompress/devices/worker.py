"""What runs on a Dask worker: store a bundle's files, and run ``edgecompress profile`` in a process of its own.

The process ends with its worker, and when no client waits for its result any more: a profile that kept running would
slow down the next one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from typing import Any, TypedDict

from edgecompress.devices import depot
from edgecompress.version import __version__

TOPIC = "edgecompress"  # of events: a job began
_POLL_S = 0.05
_TAIL = 4000
_ABANDONED = ("cancelled", "released", "forgotten")
_LEASH = (  # PR_SET_PDEATHSIG is 1, and survives exec
    "import ctypes,os,sys\n"
    "if sys.platform == 'linux': ctypes.CDLL(None).prctl(1, 9)\n"
    "if os.getppid() != int(sys.argv[1]): sys.exit(1)\n"
    "os.execv(sys.executable, [sys.executable, *sys.argv[2:]])\n"
)


class Order(TypedDict):
    job: str
    files: list[depot.File]
    command: list[str]  # arguments of edgecompress, run two folders below depot.root()


async def look(files: list[depot.File]) -> dict[str, Any]:
    """The version of edgecompress, the missing files, and the free disk space."""
    try:
        need = await asyncio.to_thread(depot.missing, files)
        return {"version": __version__, "need": need, "free_bytes": depot.free_bytes()}
    except OSError as error:
        return {"version": __version__} | _refusal(error)


async def take(file: depot.File, offset: int, data: bytes) -> dict[str, Any]:
    try:
        await asyncio.to_thread(depot.write, file, offset, data)
        return {}
    except OSError as error:
        return _refusal(error)


async def settle(file: depot.File) -> dict[str, Any]:
    try:
        return {"whole": await asyncio.to_thread(depot.settle, file)}
    except OSError as error:
        return _refusal(error)


def run_job(order: Order) -> dict[str, Any]:
    """The Dask task: returns the command's outcome, or that files are missing on this worker."""
    from distributed import get_worker

    worker = get_worker()
    if depot.missing(order["files"]):
        return {"worker": worker.address, "missing": True}
    worker.log_event(TOPIC, {"job": order["job"], "worker": worker.address})
    folder = depot.root() / "jobs" / f"{order['job']}-{secrets.token_hex(4)}"
    folder.mkdir(parents=True)
    try:
        with (folder / "stdout").open("wb") as out, (folder / "stderr").open("wb") as err:
            process = subprocess.Popen(
                [sys.executable, "-c", _LEASH, str(os.getpid()), "-m", "edgecompress", *order["command"]],
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
            code = _wait(process, worker, worker.get_current_task())
        stdout = (folder / "stdout").read_text(errors="replace")
        stderr = (folder / "stderr").read_text(errors="replace")[-_TAIL:]
        return {"worker": worker.address, "exit": code, "stdout": stdout, "stderr": stderr}
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_awaited(worker: Any, key: Any) -> bool:
    """Whether a client still waits for the task ``key`` of a Dask worker."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state not in _ABANDONED


def _wait(process: subprocess.Popen[bytes], worker: Any, key: Any) -> int:
    while (code := process.poll()) is None:
        if not is_awaited(worker, key):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            return process.wait()
        time.sleep(_POLL_S)
    return code


def _refusal(error: OSError) -> dict[str, Any]:
    kind = "full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "os"
    return {"error": kind, "text": f"{error.strerror or error}: {error.filename or depot.root()}"}
