"""Runs the server on a port until SIGTERM or Ctrl-C, then shuts down gracefully."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import uvicorn

from edgecompress.errors import HostError, UsageError
from edgecompress.loading import load
from edgecompress.serve.app import MAX_QUEUE, Service, make_app

GRACE_S = 30.0
"""Time for the running request to finish after a stop signal."""
_SLACK_S = 5.0
_BACKLOG = 128


@dataclass(frozen=True, kw_only=True)
class Serving:
    """A running server."""

    url: str  # ``base_url`` for OpenAI's client
    model: str
    task: str
    threads: int


def serve(
    bundle: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    name: str | None = None,
    threads: int | None = None,
    device: int | None = None,
    allow_mismatch: bool = False,
    api_key: str | None = None,
    max_queue: int = MAX_QUEUE,
    ready: Callable[[Serving], None] = lambda _: None,
) -> None:
    """Serve until SIGTERM or Ctrl-C, then return. ``port`` 0 picks a free one; ``ready`` receives the address.

    Raises HostError if the port is in use, UsageError if the task has no endpoint, and the errors of ``load``.
    """
    if max_queue < 0:
        raise UsageError(f"max_queue must be 0 or more, not {max_queue}", hint="Omit --max-queue for 32.")
    with (
        contextlib.closing(listen(host, port)) as listener,
        load(bundle, threads=threads, device=device, allow_mismatch=allow_mismatch) as model,
    ):
        service = Service(model, name or model.manifest.name, max_queue)
        shown = f"[{host}]" if ":" in host else host
        serving = Serving(
            url=f"http://{shown}:{listener.getsockname()[1]}/v1",
            model=service.name,
            task=model.manifest.task,
            threads=model.threads,
        )
        try:
            app = make_app(service, api_key=api_key)
            asyncio.run(Server(service, app, lambda: ready(serving)).serve(sockets=[listener]))
        finally:
            service.close()


def listen(host: str, port: int) -> socket.socket:
    """Bind the port, before the model is loaded. Raises UsageError, and HostError if it is not available."""
    if not 0 <= port <= 65535:
        raise UsageError(f"the port must be from 0 to 65535, not {port}", hint="Omit --port for 8000.")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise HostError(
            f"'{host}' is not an address of this machine: {error.strerror}", hint="Use --host 127.0.0.1 or 0.0.0.0."
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        in_use = error.errno == errno.EADDRINUSE
        raise HostError(
            f"port {port} of {host} is in use" if in_use else f"cannot listen on {host}:{port}: {error.strerror}",
            hint="Use another --port; 0 picks a free one." if in_use else "Use another --host or --port.",
        ) from None
    return listener


class Server(uvicorn.Server):
    """Shuts down gracefully on the first signal and immediately on the second; neither is an error."""

    def __init__(
        self, service: Service, app: Callable[..., object], ready: Callable[[], None], *, grace_s: float = GRACE_S
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                http="h11",
                loop="asyncio",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=int(grace_s + _SLACK_S),
            )
        )
        self._service, self._ready, self._grace_s = service, ready, grace_s
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)
        self._ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.stop(now=self.should_exit)

    def stop(self, *, now: bool = False) -> None:
        """Safe from any thread and from a signal handler."""
        self.should_exit = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._service.begin_closing, 0.0 if now else self._grace_s)
