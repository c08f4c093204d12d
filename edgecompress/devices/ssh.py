"""A connection to a device over SSH. Its host key is always checked against the known_hosts files of ssh."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import json
import shlex
import socket
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from edgecompress.devices.agent import MARK
from edgecompress.errors import DeviceError, HostError, UsageError

SCHEME = "ssh://"
_LIKE = "Give ssh://user@device or ssh://user@device:2222; the user may be left out."
_CONNECT_S, _KEEPALIVE_S, _KEEPALIVES = 20, 15, 4
_GLOBAL_KNOWN_HOSTS = ("/etc/ssh/ssh_known_hosts", "/etc/ssh/ssh_known_hosts2")
_USER_KNOWN_HOSTS = ("~/.ssh/known_hosts", "~/.ssh/known_hosts2")
_HEED_S = 10.0


def require_package(package: str) -> Any:
    """The package of the extra ``devices``. Raises HostError."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise HostError(
            f"remote devices need the package '{error.name or package}'", hint="pip install 'edgecompress[devices]'"
        ) from None


@dataclass(frozen=True, kw_only=True)
class Address:
    host: str
    user: str | None = None  # None: from ~/.ssh/config, else the local user
    port: int | None = None

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.user}@{host}" if self.user else host

    @property
    def command(self) -> str:
        """The ssh command that a person types."""
        port = f"-p {self.port} " if self.port else ""
        return f"ssh {port}{f'{self.user}@' if self.user else ''}{self.host}"


def parse_address(text: str) -> Address:
    """``ssh://user@device:port``. Raises UsageError."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise UsageError(f"'{text}' is not the address of a device: {error}", hint=_LIKE) from None
    if parts.scheme != "ssh" or not parts.hostname or parts.path.strip("/") or parts.query or parts.fragment:
        raise UsageError(f"'{text}' is not the address of a device", hint=_LIKE)
    if parts.password is not None:
        raise UsageError(
            "the address holds a password, which other users can read",
            hint="Use a key instead: ssh-copy-id USER@DEVICE.",
        )
    if (parts.username or "").startswith("-") or parts.hostname.startswith("-"):
        raise UsageError(f"'{text}' is not the address of a device", hint=_LIKE)
    return Address(host=parts.hostname, user=parts.username or None, port=port)


class ConnectionLostError(DeviceError):
    """The connection broke; the job on the device may still be running."""


class AgentSession:
    """A command of :mod:`edgecompress.devices.agent` running on a device: it takes orders and returns answers."""

    def __init__(self, process: Any, device: Device, what: str) -> None:
        self._process, self._device, self._what = process, device, what
        self._rest = b""
        self._other: list[str] = []  # lines that are not answers, mostly error messages

    async def send(self, data: bytes) -> bool:
        """False: the command ended; its last answers can still be read."""
        try:
            self._process.stdin.write(data)
            await self._process.stdin.drain()
        except (OSError, require_package("asyncssh").Error):
            return False
        return not self._process.stdin.is_closing()

    async def order(self, order: dict[str, Any]) -> None:
        await self.send(json.dumps(order).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """The next answer. Raises DeviceError if the command or the connection ended without one."""
        while True:
            line = await self._line()
            if line is None:
                raise await self._ended()
            text = line.decode(errors="replace")
            before, mark, answer = text.partition(MARK)
            if mark:
                with contextlib.suppress(ValueError):
                    found: dict[str, Any] = json.loads(answer)
                    return found
            self._other.append(before.strip())

    async def say(self, word: str, until: str) -> None:
        """Send a word to the command, and wait a while for its acknowledgement."""
        with contextlib.suppress(DeviceError, TimeoutError):
            async with asyncio.timeout(_HEED_S):
                await self.send(f"{word}\n".encode())
                while until not in await self.answer():
                    pass

    async def _line(self) -> bytes | None:
        asyncssh = require_package("asyncssh")
        while b"\n" not in self._rest:
            try:
                data = await self._process.stdout.read(1 << 16)
            except (OSError, asyncssh.Error):
                return None
            if not data:
                return None
            self._rest += data
        line, _, self._rest = self._rest.partition(b"\n")
        return line

    async def _ended(self) -> DeviceError:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._process.wait_closed()
        code = self._process.exit_status
        if code is None:
            return self._device.lost()
        said = next((line for line in reversed(self._other) if line), f"exit code {code}")
        return DeviceError(
            f"{self._device.address}: {self._what} failed: {said[:300]}",
            hint=f"Try to connect: {self._device.address.command}",
        )


class Device:
    """An open connection."""

    def __init__(self, connection: Any, address: Address) -> None:
        self._connection, self.address = connection, address
        self.python = "python3"  # of the agent; :func:`edgecompress.devices.install.find_python` says which
        self.when_lost = "Run the same command again: it continues where it stopped."

    def lost(self) -> DeviceError:
        return ConnectionLostError(f"the connection to {self.address} was lost", hint=self.when_lost)

    async def ask(self, command: str) -> tuple[int, str, str]:
        """Exit code, stdout and stderr of a command for a POSIX shell."""
        asyncssh = require_package("asyncssh")
        try:
            done = await self._connection.run(f"sh -c {shlex.quote(command)}", request_pty=False)
        except (OSError, asyncssh.Error):
            raise self.lost() from None
        if done.exit_status is None:
            raise self.lost()
        return done.exit_status, done.stdout, done.stderr

    @contextlib.asynccontextmanager
    async def talk(self, what: str) -> AsyncIterator[AgentSession]:
        """Start the agent's command ``what``. An interrupt stops its work on the device too."""
        asyncssh = require_package("asyncssh")
        try:
            process = await self._connection.create_process(
                f"{shlex.quote(self.python)} -c {shlex.quote(agent_source())} {what}",
                encoding=None,
                request_pty=False,
                stderr=asyncssh.STDOUT,
            )
        except (OSError, asyncssh.Error):
            raise self.lost() from None
        talk = AgentSession(process, self, what)
        try:
            yield talk
        except asyncio.CancelledError:
            await asyncio.shield(talk.say("stop", until="stopped"))
            raise
        finally:
            process.close()


def agent_source() -> str:
    """The agent and its depot as one expression for ``python -c``."""
    folder = resources.files("edgecompress.devices")
    depot, agent = ((folder / name).read_text(encoding="utf-8") for name in ("depot.py", "agent.py"))
    code = (
        "import sys, types\n"
        "package = types.ModuleType('edgecompress.devices')\n"
        "sys.modules[package.__name__] = package\n"
        f"for name, text in (('depot', {depot!r}), ('agent', {agent!r})):\n"
        "    module = types.ModuleType('edgecompress.devices.' + name)\n"
        "    sys.modules[module.__name__] = module\n"
        "    setattr(package, name, module)\n"
        "    exec(compile(text, name + '.py', 'exec', dont_inherit=True), module.__dict__)\n"
        "sys.exit(package.agent.main())\n"
    )
    packed = base64.b64encode(zlib.compress(code.encode(), 9)).decode()
    return f"import base64,zlib;exec(zlib.decompress(base64.b64decode('{packed}')))"


@contextlib.asynccontextmanager
async def connect(address: Address) -> AsyncIterator[Device]:
    """Log in with the user's keys, agent and ~/.ssh/config. Raises DeviceError."""
    asyncssh = require_package("asyncssh")
    refused: list[Any] = []  # the device's key, if it is unknown

    class Client(asyncssh.SSHClient):  # type: ignore[misc, name-defined]
        def validate_host_public_key(self, host: str, addr: str, port: int, key: Any) -> bool:
            refused[:] = [(host, addr, port, key)]
            return False

    options = known = None
    try:
        options = await asyncio.to_thread(_options, address)
        known = _known_hosts(options)
        connection = await asyncssh.connect(
            address.host,
            address.port or (),
            options=options,
            client_factory=Client,
            known_hosts=known,
            connect_timeout=_CONNECT_S,
            keepalive_interval=_KEEPALIVE_S,
            keepalive_count_max=_KEEPALIVES,
            agent_forwarding=False,
            x11_forwarding=False,
        )
    except (OSError, ValueError, asyncssh.Error) as error:
        hung_up = asyncssh.ConnectionLost | asyncssh.KeyExchangeFailed | ConnectionResetError | BrokenPipeError
        if isinstance(error, hung_up) and known is not None:
            await _look_at_key(address, options, known, refused)
        raise _reason(error, address, options, known, refused) from None
    try:
        yield Device(connection, address)
    finally:
        connection.close()
        with contextlib.suppress(OSError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(2):
                await connection.wait_closed()


def _options(address: Address) -> Any:
    """Connection options, with ~/.ssh/config."""
    asyncssh = require_package("asyncssh")
    return asyncssh.SSHClientConnectionOptions(
        host=address.host, port=address.port or (), username=address.user or (), config=()
    )


async def _look_at_key(address: Address, options: Any, known: Any, refused: list[Any]) -> None:
    """Fetch the device's new key: a device without any known kind of key hangs up before it shows one."""
    asyncssh = require_package("asyncssh")
    host = options.host_key_alias or options.host
    if _keys(known, host, "", options.port):
        with contextlib.suppress(OSError, asyncssh.Error, TimeoutError):
            async with asyncio.timeout(_CONNECT_S):
                key = await asyncssh.get_server_host_key(address.host, address.port or (), config=())
            if key is not None and key not in _keys(known, host, "", options.port):
                refused[:] = [(host, "", options.port, key)]


def _keys(known: Any, host: str, addr: str, port: int) -> list[Any]:
    return list(known.match(host, addr, port if port != 22 else None)[0])


def _known_hosts(options: Any) -> Any:
    """Read as ssh does: for asyncssh alone, ``UserKnownHostsFile none`` would disable the check."""
    user = options.config.get("UserKnownHostsFile", _USER_KNOWN_HOSTS)
    system = options.config.get("GlobalKnownHostsFile", _GLOBAL_KNOWN_HOSTS)
    paths = [Path(name).expanduser() for name in (*user, *system)]
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in paths if path.is_file()]
    return require_package("asyncssh").import_known_hosts("\n".join(texts))


def _reason(error: Exception, address: Address, options: Any, known: Any, refused: list[Any]) -> DeviceError:
    asyncssh = require_package("asyncssh")
    if refused:
        host, addr, port, key = refused[0]
        fingerprint = key.get_fingerprint()
        if _keys(known, host, addr, port):
            return DeviceError(
                f"the host key of {address} is not the one in known_hosts: it is now {fingerprint}",
                hint="The device was reinstalled, or another machine answers in its place. If it was reinstalled: "
                f"ssh-keygen -R {_known_name(host, port)}, then {address.command}",
            )
        return DeviceError(
            f"{address} is not in known_hosts; its key is {fingerprint}",
            hint=f"Compare it with the device's own key, then let ssh add it: {address.command}",
        )
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        return DeviceError(f"the host key of {address} is refused: {error.reason}", hint=f"Try {address.command}")
    if isinstance(error, asyncssh.PermissionDenied):
        return DeviceError(
            f"{address} refuses the login: {error.reason or 'authentication failed'}",
            hint="Copy your key there with ssh-copy-id; add a key with a passphrase to ssh-agent (ssh-add). "
            f"Then try {address.command}",
        )
    if isinstance(error, socket.gaierror):
        return DeviceError(
            f"the host name {address.host} does not resolve: {error.strerror}",
            hint="Check the name, or give the IP address.",
        )
    if isinstance(error, ConnectionRefusedError):
        return DeviceError(
            f"{address.host} refuses SSH connections on port {options.port}",
            hint="Check that sshd runs there. For another port, give ssh://user@device:PORT.",
        )
    if isinstance(error, TimeoutError | OSError):
        said = f"no answer within {_CONNECT_S} s" if isinstance(error, TimeoutError) else error.strerror or str(error)
        return DeviceError(
            f"{address} cannot be reached: {said}", hint=f"Check that it is on and in this network: {address.command}"
        )
    if isinstance(error, ValueError):  # ~/.ssh/config, known_hosts or a key file
        return DeviceError(f"cannot read your ssh files: {error}", hint=f"Try {address.command}")
    return DeviceError(
        f"no connection to {address}: {getattr(error, 'reason', '') or error}", hint=f"Try {address.command}"
    )


def _known_name(host: str, port: int) -> str:
    return host if port == 22 else f"'[{host}]:{port}'"
