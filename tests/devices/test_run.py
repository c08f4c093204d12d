"""``edgecompress profile --on``, whole: a bundle goes to a device, a profile comes back, whatever breaks meanwhile."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from edgecompress import errors
from edgecompress.cli import main
from edgecompress.devices.run import _pending, error_of, flags_of, read_outcome
from edgecompress.devices.ssh import ConnectionLostError
from edgecompress.errors import BundleError, DeviceError, EdgeCompressError, HostError
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.manifest import read_manifest, write_manifest
from edgecompress.profile.run import Asked
from edgecompress.types.profile import Profile
from tests.devices.conftest import Loopback, running_in, wait_until

pytestmark = pytest.mark.slow

QUICK = ["--shapes", "1x16", "--threads", "1", "--percentile", "50", "--no-cold-start", "--no-operators"]


def arguments(bundle: Path, *flags: str, python: Path | str = sys.executable) -> list[str]:
    return ["profile", str(bundle), "--on", "ssh://device", "--device-python", str(python), *QUICK, *flags]


def pending(loopback: Loopback) -> list[Path]:
    return list((loopback.ssh.parent / ".cache" / "edgecompress" / "pending").iterdir())


def test_a_profile_from_a_device(
    loopback: Loopback, minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a trace, which is sent too; written as a local one is, and nothing is left there but the files."""
    trace = tmp_path / "my requests.jsonl"
    trace.write_text('{"tokens": 12}\n')
    flags = ["--json", "--shapes", f"2x8,trace:{trace}", "-o", str(tmp_path / "out")]
    assert main(arguments(minilm_bundle, *flags)) == 0
    found = from_jsonable(Profile, json.loads(capsys.readouterr().out))
    assert from_jsonable(Profile, json.loads((tmp_path / "out" / "profile.json").read_text())) == found
    assert [m.workload for m in found.measurements] == ["2x8", "my requests.jsonl"]
    assert found.bundle == minilm_bundle.name
    assert found.verified
    assert {each.name for each in (loopback.cache / "bundles" / found.identity).iterdir()} == {
        each.name for each in minilm_bundle.iterdir()
    }
    assert list((loopback.cache / "jobs").iterdir()) == []
    assert pending(loopback) == []


def changed(bundle: Path, folder: Path, **target: Any) -> Path:
    """The bundle with another target in its manifest."""
    copy = folder / "changed.bundle"
    shutil.copytree(bundle, copy)
    manifest = read_manifest(copy)
    write_manifest(dataclasses.replace(manifest, target=dataclasses.replace(manifest.target, **target)), copy)
    (copy / "measurements.json").unlink(missing_ok=True)
    (copy / "measurements.json.sha256").unlink(missing_ok=True)
    return copy


def test_an_error_there_is_one_here(
    loopback: Loopback, minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arch = "aarch64" if os.uname().machine != "aarch64" else "x86_64"
    other = changed(minilm_bundle, tmp_path, arch=arch, name="another-machine")
    assert main(arguments(other, "--json")) == HostError.exit_code
    shown = capsys.readouterr()
    error = json.loads(shown.out)["error"]
    assert error["type"] == "HostError"
    assert error["message"].startswith(f"device: the bundle is for another-machine ({arch}) and this machine is ")
    assert "Export the student for this machine" in error["hint"]
    assert pending(loopback) == []
    assert main(arguments(minilm_bundle, "--shapes", "1x9999")) == 2
    assert "edgecompress: device: shape 1x9999 is out of range" in capsys.readouterr().err


def test_what_makes_no_sense_is_refused_before_a_connection(
    minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "wheels").mkdir()
    for flags, message, code in [
        (["--scenario", "none"], "unknown scenario", 2),
        (["--shapes", "1y1"], "is not a shape", 2),
        (["--on", "device"], "is not the address of a device", 2),
        (["--wheels", str(tmp_path)], "--device-python", 2),
        (["--fleet", "tcp://x:1"], "--on is for one device, --fleet for many", 2),
        (["--label", "x"], "--label goes with --fleet", 2),
        (["--jobs", "x"], "--jobs goes with --fleet", 2),
    ]:
        assert main(arguments(minilm_bundle, *flags)) == code
        assert message in capsys.readouterr().err
    assert main(["profile", str(minilm_bundle), "--wheels", "x"]) == 2
    assert "--wheels goes with --on" in capsys.readouterr().err
    assert main(["profile", str(minilm_bundle), "--on", "ssh://x", "--wheels", str(tmp_path / "wheels")]) == 2
    assert "holds no wheels" in capsys.readouterr().err
    assert main(["profile", str(tmp_path), "--on", "ssh://x"]) == BundleError.exit_code
    assert main(["profile"]) == 2
    assert "BUNDLE must be given" in capsys.readouterr().err


def test_a_result_that_was_not_brought_comes_with_the_next_call(
    loopback: Loopback, minilm_bundle: Path, slow_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The connection breaks in the middle; the profile ends by itself."""
    asked = arguments(minilm_bundle, "--json", python=slow_python)
    cut = threading.Thread(
        target=lambda: (wait_until("it runs", lambda: running_in(loopback.cache / "jobs")), loopback.cut())
    )
    cut.start()
    assert main(asked) == 3
    cut.join()
    said = capsys.readouterr().err
    assert "the connection to device was lost" in said
    assert "run the same command again to fetch the result" in said
    assert len(pending(loopback)) == 1
    (job,) = (loopback.cache / "jobs").iterdir()
    (loopback.home / "go").touch()
    wait_until("it ends by itself", (job / "exit.json").exists)
    left = (job / "stdout").read_text()
    assert main(asked) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["measurements"] == json.loads(left)["measurements"]
    assert "the connection broke during this run; the device finished it" in found["remarks"]
    assert not job.exists()
    assert pending(loopback) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_ends_it_there_too(
    loopback: Loopback, minilm_bundle: Path, slow_python: Path, number: signal.Signals
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecompress", *arguments(minilm_bundle, python=slow_python)],
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_until("it runs", lambda: running_in(loopback.cache / "jobs"))
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "nothing was left behind" in said
    wait_until("it ends there", lambda: not running_in(loopback.cache / "jobs"))
    assert list((loopback.cache / "jobs").iterdir()) == []
    assert pending(loopback) == []


def test_one_that_is_killed_there(
    loopback: Loopback, minilm_bundle: Path, slow_python: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The profile, as the kernel does it when memory is short; then its supervisor, as a restart does it."""

    def kill(which: str) -> None:
        wait_until("it runs", lambda: running_in(loopback.cache / "jobs"))
        pids = running_in(loopback.cache / "jobs")
        if which == "supervisor":
            pids = [int(Path(os.readlink(f"/proc/{pids[0]}/cwd"), "pid").read_text())]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    for which, message in [
        ("profile", "the profile on device was killed by SIGKILL"),
        ("supervisor", "the profile on device was killed: "),
    ]:
        killer = threading.Thread(target=kill, args=(which,))
        killer.start()
        assert main(arguments(minilm_bundle, python=slow_python)) == 3
        killer.join()
        assert message in capsys.readouterr().err
        assert pending(loopback) == []
        for pid in running_in(loopback.cache / "jobs"):
            os.kill(pid, signal.SIGKILL)


def test_it_waits_for_another_profile_there(loopback: Loopback, minilm_bundle: Path, slow_python: Path) -> None:
    """Two at once would slow each other."""
    first = subprocess.Popen([sys.executable, "-m", "edgecompress", *arguments(minilm_bundle, python=slow_python)])
    wait_until("it runs", lambda: running_in(loopback.cache / "jobs"))
    second = subprocess.Popen([sys.executable, "-m", "edgecompress", *arguments(minilm_bundle, python=slow_python)])
    jobs = loopback.cache / "jobs"
    wait_until("it waits", lambda: any("waiting" in each.read_text() for each in jobs.glob("*/state")))
    states = sorted(each.read_text() for each in jobs.glob("*/state"))
    assert states == ["profiling", "waiting: another profile is running"]
    first.send_signal(signal.SIGINT)
    assert first.wait(30) == 130
    wait_until("it is its turn", lambda: [each.read_text() for each in jobs.glob("*/state")] == ["profiling"])
    second.send_signal(signal.SIGINT)
    assert second.wait(30) == 130


def test_flags_say_what_was_asked() -> None:
    asked = Asked(shapes="1x16", threads=(1, 2), duration_s=0.5, scenarios=("offline", "server"), per_s=3.0, device=1,
                  cold=False, operators=False, allow_mismatch=True)  # fmt: skip
    import argparse

    from edgecompress.cli import profile

    parser = argparse.ArgumentParser()
    profile.add_arguments(parser)
    options = parser.parse_args(["b", *flags_of(asked)])
    assert (options.shapes, options.threads, options.duration, options.scenario) == (
        "1x16",
        "1,2",
        0.5,
        "offline,server",
    )
    assert (options.per_second, options.device, options.percentile, options.new_tokens) == (3.0, 1, 99, 32)
    assert options.no_cold_start
    assert options.no_operators
    assert options.allow_mismatch
    named = {field.name for field in dataclasses.fields(Asked)}
    assert named == {
        "shapes", "threads", "duration_s", "percentile", "scenarios", "per_s", "bound_ms", "new_tokens", "device",
        "cold", "operators", "allow_mismatch",
    }, "a new one needs a flag in flags_of"  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kept"),
    [("HostError", HostError), ("WideProductsError", EdgeCompressError), ("EdgeCompressError", EdgeCompressError),
     ("difflib", EdgeCompressError), ("Unheard", EdgeCompressError)],
)  # fmt: skip
def test_errors_keep_their_kind_and_code(name: str, kept: type[EdgeCompressError]) -> None:
    made = error_of({"type": name, "message": "m", "hint": "w", "exit_code": 42}, "there")
    assert type(made) is kept
    assert (made.message, made.hint, made.exit_code) == ("there: m", "w", 42)
    assert kept.exit_code == vars(errors)[kept.__name__].exit_code != 42


@pytest.mark.parametrize(
    ("code", "stdout", "stderr", "message"),
    [
        (0, "{}", "", r"there returned something other than a profile: key '.*' is missing"),
        (0, "", "", "there returned something other than a profile: the document must be a table, not null"),
        (-9, "", "x\n", "the profile on there was killed by SIGKILL: x"),
        (-99, "", "", "the profile on there was killed by signal 99: no error message"),
        (
            1,
            "half a {",
            "Traceback\n  …\nImportError: libm\n",
            "the profile on there ended with exit code 1: ImportError: libm",
        ),
    ],
)
def test_what_is_no_profile(code: int, stdout: str, stderr: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        read_outcome(code, stdout, stderr, "there")


def test_a_job_keeps_its_name_only_while_it_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    names = []
    for raised in (ConnectionLostError("lost"), ConnectionLostError("lost"), DeviceError("known"), None):
        try:
            with _pending("device", ["profile"]) as name:
                names.append(name)
                if raised is not None:
                    raise raised
        except DeviceError:
            pass
    assert names[0] == names[1] == names[2] != ""
    with _pending("device", ["profile"]) as fresh, _pending("device", ["profile"]) as at_once:
        assert len({names[0], fresh, at_once}) == 3
    with _pending("device", ["profile"]) as one, _pending("another", ["profile"]) as two:
        assert one.partition("-")[0] != two.partition("-")[0]
