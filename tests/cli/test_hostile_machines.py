"""Machines that lack what is usually there: a home, a writable cache, a compiler, a whole network, a recent Python."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edgecompress.cli import doctor, main
from tests.cli.test_half_installs import RUN as HIDE
from tests.tiny import tiny_checkpoint
from tests.wording.world import BERT, WHOLE, checkpoint

ROOT = Path(__file__).parent.parent.parent
UNWRITABLE = "/dev/null/folder"  # for every user, root included

NO_ACCOUNT = """
import pwd, sys
def getpwuid(uid): raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = getpwuid
from edgecompress.cli import main
raise SystemExit(main(sys.argv[1:]))
"""

READ_ONLY = """
import errno, os, sys
roots = tuple({os.path.realpath(p) + os.sep for p in sys.path if "site-packages" in p} | {sys.argv[1] + os.sep})
def hook(event, arguments):
    if event == "open":
        path, _, flags = arguments
        writes = bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
    elif event in ("os.mkdir", "os.rename", "os.remove"):
        path, writes = arguments[0], True
    else:
        return
    if writes and isinstance(path, str) and os.path.realpath(path).startswith(roots):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)
sys.addaudithook(hook)
from edgecompress.cli import main
raise SystemExit(main(sys.argv[2:]))
"""

LEFTOVER = """
import sys, types
sys.modules["onnxruntime"] = types.ModuleType("onnxruntime")  # the folder is left, its code is gone
from edgecompress.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found = tmp_path_factory.mktemp("machine")
    checkpoint(found / "student", BERT)
    (found / "encoder.bundle").symlink_to(WHOLE / "encoder")
    return found


def run(
    folder: Path, script: list[str], line: str, unset: tuple[str, ...] = (), **changed: str
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name not in (*unset, "EDGECOMPRESS_TRACEBACK")}
    return subprocess.run(
        [sys.executable, *script, *line.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=environment | changed,
    )


COMMANDS = ("doctor", "run encoder.bundle hello", "verify encoder.bundle", "export student -o out --dry-run")


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_without_a_writable_home_or_cache(folder: Path, line: str) -> None:
    done = run(folder, ["-m", "edgecompress"], line, HOME=UNWRITABLE, XDG_CACHE_HOME=UNWRITABLE, HF_HOME=UNWRITABLE)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_without_a_home(folder: Path, line: str) -> None:
    done = run(folder, ["-c", NO_ACCOUNT], line, ("HOME", "XDG_CACHE_HOME"))
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_with_read_only_packages(folder: Path, line: str) -> None:
    done = run(folder, ["-c", READ_ONLY, str(ROOT)], line)
    assert done.returncode == 0, done.stderr


def test_the_read_only_hook_refuses_writes(tmp_path: Path) -> None:
    """Else the test above could not fail."""
    script = READ_ONLY.partition("from edgecompress")[0] + "open(os.path.join(sys.argv[1], 'x'), 'w')"
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True)
    assert "Read-only file system" in done.stderr


def test_an_output_on_a_read_only_disk(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", str(folder / "student"), "-o", f"{UNWRITABLE}/out"]) == 2
    message, hint = capsys.readouterr().err.splitlines()
    assert message.startswith("edgecompress: cannot write in ")
    assert hint


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path) -> None:
    """Asked for by name, the kernels are refused; left to auto, the export goes on without them."""
    tiny_checkpoint(tmp_path / "student", "bert", hidden_size=64)
    line = "export student -o out --precision int8-dynamic --min-fidelity 0.5 --calibration-samples 8"
    done = run(tmp_path, ["-c", HIDE, "ziglang"], f"{line} --kernels encoder")
    assert done.returncode == 2, done.stderr
    assert "the kernels cannot be built for local: ziglang is not installed" in done.stderr
    assert "pip install 'edgecompress[kernels]'" in done.stderr
    assert not (tmp_path / "out").exists()
    done = run(tmp_path, ["-c", HIDE, "ziglang"], line)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "manifest.json").exists()


@contextmanager
def cutting_server() -> Iterator[str]:
    """Its URL. It takes connections, reads a little and hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            while True:
                try:
                    connection, _ = server.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1024)

        threading.Thread(target=answer, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


@pytest.mark.slow
@pytest.mark.parametrize("variable", ["HTTPS_PROXY", "HF_ENDPOINT"])
def test_a_connection_that_is_cut(folder: Path, tmp_path: Path, variable: str) -> None:
    with cutting_server() as url:
        changed = {"HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), variable: url}
        done = run(folder, ["-m", "edgecompress"], "export owner/name -o out", **changed)
    assert done.returncode == 3, done.stderr
    message, hint = done.stderr.splitlines()[-2:]
    assert message.startswith("edgecompress: 'owner/name' cannot be downloaded: ")
    assert "HTTPS_PROXY" in hint


def test_one_of_two_overlapping_packages_was_removed(folder: Path) -> None:
    done = run(folder, ["-c", LEFTOVER], "run encoder.bundle hello")
    assert done.returncode == 3, done.stderr
    message, hint = done.stderr.splitlines()
    assert "onnxruntime is only partly installed" in message
    assert hint == "pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime"


def test_both_onnxruntimes(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(doctor, "installed_version", lambda name: "1.32.0" if name.startswith("onnxruntime") else "99")
    assert main(["doctor"]) == 3
    out = capsys.readouterr().out
    assert "does not fit: onnxruntime: onnxruntime and onnxruntime-gpu overwrite each other: uninstall both" in out


def old_python() -> Path | None:
    """A Python 3.10 that starts: a shim of pyenv may not."""
    found = sorted((Path.home() / ".pyenv" / "versions").glob("3.10.*/bin/python3.10"))
    found += [Path(path)] if (path := shutil.which("python3.10")) else []
    return next((each for each in found if not subprocess.run([each, "-V"], capture_output=True).returncode), None)


@pytest.mark.skipif(old_python() is None, reason="there is no Python 3.10")
def test_an_old_python() -> None:
    command = [str(old_python()), "-m", "edgecompress", "doctor"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env={"PATH": os.environ["PATH"]})
    assert done.returncode == 3
    message, hint = done.stderr.splitlines()
    assert message.startswith("edgecompress: Python 3.11 or later is needed; this is Python 3.10.")
    assert "python3.11 -m venv" in hint


def test_memory_runs_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: object) -> int:
        raise MemoryError

    monkeypatch.setattr(doctor, "run", fail)
    assert main(["doctor"]) == 3
    assert "out of memory" in capsys.readouterr().err
