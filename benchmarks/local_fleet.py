"""A Dask scheduler and workers as processes of this machine, on loopback; each worker has a cache of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import TracebackType

from edgecompress.devices.fleet import LABEL

ROOT = Path(__file__).parent.parent
_PATIENCE_S = 60.0


class LocalFleet:
    """A context: whatever was started is ended, and waited for."""

    def __init__(self, folder: Path, environment: dict[str, str] | None = None) -> None:
        self.folder, self._environment = folder, environment or {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self.workers: dict[str, subprocess.Popen[bytes]] = {}
        self.address = ""

    def __enter__(self) -> LocalFleet:
        where = self.folder / "scheduler.json"
        arguments = [
            "--host",
            "127.0.0.1",
            "--port",
            "0",
            "--no-dashboard",
            "--no-show",
            "--scheduler-file",
            str(where),
        ]
        process = self._start("scheduler", ["scheduler", *arguments])
        until = time.monotonic() + _PATIENCE_S
        while not self.address:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError((self.folder / "scheduler.log").read_text())
            time.sleep(0.05)
            if where.exists() and (text := where.read_text()):
                self.address = json.loads(text)["address"]
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        for process in reversed(self._processes):
            process.terminate()
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def add_worker(self, name: str, label: str) -> None:
        """Without a nanny, so that one that is killed stays dead."""
        arguments = ["--name", name, "--host", "127.0.0.1", "--nthreads", "1", "--no-nanny", "--no-dashboard"]
        arguments += ["--local-directory", str(self.folder), "--resources", f"{LABEL}{label}=1"]
        cache = {"XDG_CACHE_HOME": str(self.cache(name))}
        self.workers[name] = self._start(name, ["worker", self.address, *arguments], cache)

    def cache(self, name: str) -> Path:
        return self.folder / f"cache-{name}"

    def kill(self, name: str) -> None:
        """As a loss of power does it."""
        process = self.workers.pop(name)
        process.send_signal(signal.SIGKILL)
        process.wait()

    def kill_scheduler(self) -> None:
        self._processes[0].kill()
        self._processes[0].wait()

    def _start(
        self, name: str, arguments: list[str], environment: dict[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "dask", *arguments],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)} | self._environment | (environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process
