"""A connection is made to the device that is known, with the user's own files, or not at all."""

from __future__ import annotations

import asyncio
import importlib
import socket
import sys
from pathlib import Path

import pytest

from edgecompress.devices.ssh import ConnectionLostError, connect, parse_address
from edgecompress.errors import DeviceError, HostError, UsageError
from tests.devices.conftest import Loopback, make_key


def ask(address: str, command: str = "echo $HOME") -> str:
    async def there() -> str:
        async with connect(parse_address(address)) as device:
            return (await device.ask(command))[1].strip()

    return asyncio.run(there())


def refused(address: str) -> DeviceError:
    with pytest.raises(DeviceError) as caught:
        ask(address)
    assert caught.value.exit_code == 3
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("text", "user", "host", "port", "command"),
    [
        ("ssh://pi@raspberry", "pi", "raspberry", None, "ssh pi@raspberry"),
        ("ssh://raspberry:2222", None, "raspberry", 2222, "ssh -p 2222 raspberry"),
        ("ssh://pi@[fe80::1]:22/", "pi", "fe80::1", 22, "ssh -p 22 pi@fe80::1"),
    ],
)
def test_addresses(text: str, user: str | None, host: str, port: int | None, command: str) -> None:
    address = parse_address(text)
    assert (address.user, address.host, address.port, address.command) == (user, host, port, command)


@pytest.mark.parametrize(
    "text",
    ["pi@raspberry", "http://x", "ssh://", "ssh://x:99999", "ssh://x/path", "ssh://x?y", "ssh://-oProxyCommand=x",
     "ssh://-l@x", "ssh://pi:secret@x"],
)  # fmt: skip
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_address(text)
    assert "secret" not in str(caught.value)


def test_the_users_config_keys_and_known_hosts_are_used(loopback: Loopback) -> None:
    assert ask("ssh://device") == str(loopback.home)


def test_what_a_login_script_prints_is_no_answer(loopback: Loopback) -> None:
    from edgecompress.devices.push import parcel, push

    (loopback.home / ".bashrc").write_text("echo welcome; echo '{}'\n")

    async def there() -> int:
        async with connect(parse_address("ssh://device")) as device:
            return await push(device, [parcel(b"content", "a/file")], lambda _: None)

    assert asyncio.run(there()) == 7
    assert (loopback.cache / "a/file").read_bytes() == b"content"


def test_an_unknown_host_is_refused_with_its_fingerprint(loopback: Loopback) -> None:
    (loopback.ssh / "known_hosts").unlink()
    error = refused("ssh://device")
    assert "device is not in known_hosts; its key is SHA256:" in error.message
    assert error.hint.endswith("then let ssh add it: ssh device")


@pytest.mark.parametrize(
    "setting", ["UserKnownHostsFile none", "UserKnownHostsFile /dev/null", "StrictHostKeyChecking no"]
)
def test_no_setting_turns_the_check_off(loopback: Loopback, setting: str) -> None:
    (loopback.ssh / "known_hosts").unlink()
    with (loopback.ssh / "config").open("a") as config:
        config.write(f"  {setting}\n")
    assert "is not in known_hosts" in refused("ssh://device").message


def test_other_files_of_known_hosts(loopback: Loopback) -> None:
    (loopback.ssh / "known_hosts").rename(loopback.ssh / "mine")
    with (loopback.ssh / "config").open("a") as config:
        config.write("  UserKnownHostsFile ~/.ssh/nothing ~/.ssh/mine\n")
    assert ask("ssh://device") == str(loopback.home)


@pytest.mark.parametrize("kind", ["ed25519", "ecdsa"])
def test_a_changed_host_key_is_refused(loopback: Loopback, kind: str) -> None:
    loopback.trust(make_key(loopback.folder / "other", kind).with_suffix(".pub"))
    error = refused("ssh://device")
    assert "the host key of device is not the one in known_hosts" in error.message
    assert "ssh-keygen -R" in error.hint


def test_a_revoked_host_key_is_refused(loopback: Loopback) -> None:
    known = loopback.ssh / "known_hosts"
    known.write_text(known.read_text() + "@revoked " + known.read_text())
    assert "Host key is revoked" in refused("ssh://device").message


def test_authentication_refused(loopback: Loopback) -> None:
    (loopback.folder / "authorized").write_text("")
    error = refused("ssh://device")
    assert "refuses the login" in error.message
    assert "ssh-copy-id" in error.hint


def test_nothing_listens(loopback: Loopback) -> None:
    loopback.stop()
    assert f"device refuses SSH connections on port {loopback.port}" in refused("ssh://device").message


def test_something_else_listens(loopback: Loopback) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        server.settimeout(10)

        async def both() -> None:
            async def hang_up() -> None:
                taken, _ = await asyncio.to_thread(server.accept)
                taken.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                taken.close()

            task = asyncio.create_task(hang_up())
            with pytest.raises(DeviceError, match=r"no connection to|cannot be reached"):
                async with connect(parse_address(f"ssh://127.0.0.1:{port}")):
                    pass
            await task

        asyncio.run(both())


def test_no_such_host(loopback: Loopback) -> None:
    assert "the host name nowhere.invalid does not resolve" in refused("ssh://nowhere.invalid").message


def test_a_broken_config_says_its_line(loopback: Loopback) -> None:
    (loopback.ssh / "config").write_text("Host device\n  Port many\n")
    error = refused("ssh://device")
    assert "cannot read your ssh files" in error.message
    assert "line 2" in error.message


def test_a_connection_that_breaks_is_said(loopback: Loopback) -> None:
    async def there() -> None:
        async with connect(parse_address("ssh://device")) as device:
            asked = asyncio.create_task(device.ask("sleep 30"))
            await asyncio.sleep(0.3)
            assert loopback.cut() == 1
            with pytest.raises(ConnectionLostError, match="the connection to device was lost"):
                await asked

    asyncio.run(there())


@pytest.mark.parametrize(("package", "module"), [("asyncssh", "ssh"), ("distributed", "fleet")])
def test_a_package_that_is_missing(
    package: str, module: str, minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgecompress.cli import main

    monkeypatch.setitem(sys.modules, package, None)
    importlib.import_module(f"edgecompress.devices.{module}")
    where = ["--on", "ssh://device"] if package == "asyncssh" else ["--fleet", "tcp://127.0.0.1:1"]
    assert main(["profile", str(minilm_bundle), *where]) == HostError.exit_code
    assert "pip install 'edgecompress[devices]'" in capsys.readouterr().err
