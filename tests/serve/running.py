"""A server that really runs, in a thread of the test's process, on a free port."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgecompress.runtime import load
from edgecompress.serve.app import Service, make_app
from edgecompress.serve.server import Server, listen


@dataclass(frozen=True)
class Running:
    url: str  # with /v1
    service: Service
    server: Server

    @property
    def root(self) -> str:
        return self.url.removesuffix("/v1")


@contextlib.contextmanager
def running(
    bundle: Path, *, name: str = "tiny", api_key: str | None = None, max_queue: int = 4, grace_s: float = 5.0
) -> Iterator[Running]:
    with contextlib.closing(listen("127.0.0.1", 0)) as listener, load(bundle) as model:
        service = Service(model, name, max_queue)
        server = Server(service, make_app(service, api_key=api_key), lambda: None, grace_s=grace_s)
        thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
        thread.start()
        try:
            wait_until("the server is there", lambda: server.started)
            yield Running(f"http://127.0.0.1:{listener.getsockname()[1]}/v1", service, server)
        finally:
            server.stop(now=True)
            thread.join(20)
            service.close()
            assert not thread.is_alive()


def wait_until(what: str, true: Callable[[], Any], seconds: float = 20.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, what
        time.sleep(0.01)
