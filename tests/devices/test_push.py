"""What is pushed arrives whole, once, and goes on where it broke off."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from edgecompress.devices import ssh
from edgecompress.devices.push import Parcel, parcel, push
from edgecompress.devices.ssh import ConnectionLostError, agent_source, connect, parse_address
from edgecompress.errors import BundleError, DeviceError
from tests.devices.conftest import Loopback

LARGE = os.urandom(1 << 20) * 24  # several times what is under way on a connection at once
LIAR = "import shutil,types;shutil.disk_usage=lambda _:types.SimpleNamespace(free=1<<40);"


def send(parcels: list[Parcel], at: int | None = None, loopback: Loopback | None = None) -> int:
    """How many bytes were sent; at the ``at``-th chunk the connection is cut."""
    shown = 0

    def show(_: str) -> None:
        nonlocal shown
        shown += 1
        if shown == at:
            assert loopback is not None
            assert loopback.cut() == 1

    async def there() -> int:
        async with connect(parse_address("ssh://device")) as device:
            return await push(device, parcels, show)

    return asyncio.run(there())


def parts(loopback: Loopback) -> list[Path]:
    return list((loopback.cache / "incoming").iterdir())


def test_what_is_there_is_not_sent_again(loopback: Loopback) -> None:
    parcels = [parcel(b"one", "a/one"), parcel(b"two" * 1000, "a/b/two"), parcel(b"", "a/empty"), parcel(b"one", "c")]
    assert send(parcels) == 3 + 3000 + 3
    assert [(loopback.cache / each.path).read_bytes() for each in parcels] == [each.source for each in parcels]
    assert send(parcels) == 0
    (loopback.cache / "a/one").write_bytes(b"eno")
    assert send(parcels) == 3, "it was altered there"
    assert (loopback.cache / "a/one").read_bytes() == b"one"
    assert parts(loopback) == []


def test_a_push_that_breaks_off_goes_on(loopback: Loopback, tmp_path: Path) -> None:
    (tmp_path / "large").write_bytes(LARGE)
    parcels = [parcel(b"small", "a/small"), parcel(tmp_path / "large", "a/large")]
    with pytest.raises(ConnectionLostError) as caught:
        send(parcels, at=48, loopback=loopback)
    assert "it continues where it stopped" in caught.value.hint
    (part,) = parts(loopback)
    came = part.stat().st_size
    assert 0 < came < len(LARGE)
    assert not (loopback.cache / "a/large").exists()
    assert send(parcels) == len(LARGE) - came
    assert (loopback.cache / "a/large").read_bytes() == LARGE


def test_a_part_that_was_altered_meanwhile_is_sent_whole(loopback: Loopback) -> None:
    file = parcel(LARGE, "a/large")
    with pytest.raises(ConnectionLostError):
        send([file], at=48, loopback=loopback)
    (part,) = parts(loopback)
    came = part.stat().st_size
    with part.open("r+b") as content:
        content.write(b"not it")
    assert send([file]) == len(LARGE) - came + len(LARGE)
    assert (loopback.cache / "a/large").read_bytes() == LARGE


def test_what_never_arrives_as_it_was_sent_is_refused(loopback: Loopback) -> None:
    content = b"what is sent"
    wrong = Parcel(source=content, path="a/x", sha256=hashlib.sha256(b"another").hexdigest(), size=len(content))
    with pytest.raises(DeviceError, match="'a/x' arrived corrupted on device, twice"):
        send([wrong])
    assert parts(loopback) == []


def test_a_file_that_becomes_shorter_here(loopback: Loopback, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    file = parcel(tmp_path / "file", "a/file")
    (tmp_path / "file").write_bytes(b"x" * 10)
    with pytest.raises(BundleError, match="'file' became shorter while it was sent"):
        send([file])


def test_a_folder_that_cannot_be_written(loopback: Loopback) -> None:
    loopback.cache.parent.mkdir(parents=True)
    loopback.cache.write_text("a file where the folder should be")
    with pytest.raises(DeviceError, match="device reports an error: "):
        send([parcel(b"x", "a")])


@pytest.mark.parametrize(
    ("before", "message"),
    [("", "8.4 MB free and needs 25.2 MB"), (LIAR, "the disk of device is full: No space left on device")],
)
def test_a_full_disk(loopback: Loopback, before: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seen before anything is sent; or, where more is free than can be had, when it is written."""
    loopback.cache.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(loopback.cache)]
    if os.geteuid() or shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small disk cannot be mounted here: that takes root")
    try:
        source = agent_source()
        monkeypatch.setattr(ssh, "agent_source", lambda: before + source)
        with pytest.raises(DeviceError, match=message) as caught:
            send([parcel(LARGE, "a/large")])
        assert "can be removed" in caught.value.hint
    finally:
        subprocess.run(["umount", "-l", str(loopback.cache)], check=True)
