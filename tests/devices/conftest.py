"""A real sshd on loopback as the device, with a home, a host key and users of its own."""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

_SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin:/sbin")
_KEYGEN = shutil.which("ssh-keygen")


class Loopback:
    """The device, and what the user has in ~/.ssh to reach it under the name ``device``."""

    def __init__(self, folder: Path, local: Path) -> None:
        self.folder, self.home, self.ssh = folder, folder / "home", local / ".ssh"
        self.cache = self.home / ".cache" / "edgecompress" / "device"
        for path in (self.home, self.ssh):
            path.mkdir(parents=True)
        for name in ("host", "client"):
            make_key(folder / name)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        shutil.copy(folder / "client.pub", folder / "authorized")
        self.environment = {"HOME": str(self.home)}
        self._process: subprocess.Popen[bytes] | None = None
        self.trust(folder / "host.pub")
        (self.ssh / "config").write_text(
            f"Host device\n  HostName 127.0.0.1\n  Port {self.port}\n  User {getpass.getuser()}\n"
            f"  IdentityFile {folder / 'client'}\n"
        )

    def trust(self, key: Path) -> None:
        kind, text = key.read_text().split()[:2]
        (self.ssh / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {kind} {text}\n")

    def start(self) -> None:
        assert _SSHD is not None
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
        settings = self.folder / "sshd_config"
        settings.write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {self.folder / 'host'}\n"
            f"AuthorizedKeysFile {self.folder / 'authorized'}\nPidFile none\nStrictModes no\nUsePAM no\n"
            "PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
            "SetEnv " + " ".join(f'"{name}={value}"' for name, value in self.environment.items()) + "\n"
        )
        log = self.folder / "log"
        with log.open("wb") as file:
            self._process = subprocess.Popen([_SSHD, "-D", "-e", "-f", str(settings)], stderr=file)
        until = time.monotonic() + 10
        while "Server listening" not in log.read_text():
            assert self._process.poll() is None, log.read_text()
            assert time.monotonic() < until, log.read_text()
            time.sleep(0.01)

    def cut(self) -> int:
        """End every connection at once, as a pulled cable does; the commands that they started go on. How many."""
        assert self._process is not None
        serving = children(self._process.pid)
        for pid in [each for one in serving for each in (*children(one), one) if _name(each) == "sshd"]:
            os.kill(pid, signal.SIGKILL)
        return len(serving)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None


def make_key(path: Path, kind: str = "ed25519") -> Path:
    assert _KEYGEN is not None
    path.unlink(missing_ok=True)
    subprocess.run([_KEYGEN, "-q", "-t", kind, "-N", "", "-f", str(path)], check=True)
    return path


def children(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        found += [int(text) for text in task.read_text().split()]
    return found


def _name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip().partition("-")[0]
    except OSError:
        return ""


def running_in(folder: Path) -> list[int]:
    """Processes whose working folder is in ``folder``."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(path / "cwd").startswith(str(folder)):
                found.append(int(path.name))
        except OSError:
            continue
    return found


@pytest.fixture
def loopback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Loopback]:
    """Started; the test's own home has what is needed to reach it as ssh://device."""
    if _SSHD is None or _KEYGEN is None:
        pytest.skip("OpenSSH's server is not installed here (Debian: openssh-server)")
    pytest.importorskip("asyncssh")
    local = tmp_path / "local"
    monkeypatch.setenv("HOME", str(local))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    device = Loopback(tmp_path / "device", local)
    device.start()
    yield device
    device.stop()
    supervisors = [int(path.read_text() or 0) for path in device.cache.glob("jobs/*/pid")]
    for pid in [*running_in(device.home), *filter(None, supervisors)]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


@pytest.fixture
def slow_python(loopback: Loopback) -> Path:
    """This Python, on the device; it profiles once the file ``go`` is in the device's home."""
    path = loopback.home / "slow-python"
    path.write_text(
        f'#!/bin/sh\nif [ "$3" = profile ]; then while [ ! -e {loopback.home}/go ]; do sleep 0.05; done; fi\n'
        f'exec {sys.executable} "$@"\n'
    )
    path.chmod(0o755)
    return path


def wait_until(what: str, true: object, seconds: float = 30.0) -> None:
    """``true`` is called until it says so."""
    assert callable(true)
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.02)
