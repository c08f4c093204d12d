"""A decoder bundle behind `edgecompress serve`'s application, with a log of requests and answers.

    python -m benchmarks.labelling_server BUNDLE PORT LOG

One line when a request arrives and one when the last byte of its answer was sent, written to the file at once, so that
the lines survive a SIGKILL.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import sys
import time
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from edgecompress.runtime import load
from edgecompress.serve.app import Service, make_app
from edgecompress.serve.server import Server, listen

MODEL = "teacher"


def name_of(messages: object) -> str:
    return hashlib.sha256(json.dumps(messages, sort_keys=True).encode()).hexdigest()[:16]


class Account:
    """Around the application; it changes nothing."""

    def __init__(self, app: ASGIApp, path: Path) -> None:
        self._app = app
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].endswith("/chat/completions"):
            await self._app(scope, receive, send)
            return
        body = bytearray()
        name, status = "", 0

        async def heard() -> Message:
            nonlocal name
            message = await receive()
            body.extend(message.get("body", b""))
            if message["type"] == "http.request" and not message.get("more_body") and not name:
                name = name_of(json.loads(body)["messages"])
                self._write("asked", name)
            return message

        async def said(message: Message) -> None:
            nonlocal status
            await send(message)
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._write("answered" if status == 200 else f"refused {status}", name)

        await self._app(scope, heard, said)

    def _write(self, what: str, name: str) -> None:
        os.write(self._file, (json.dumps({"what": what, "prompt": name, "at": time.time()}) + "\n").encode())


def main() -> None:
    bundle, port, log = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    listener = listen("127.0.0.1", port)
    with load(bundle, threads=1) as model:
        service = Service(model, MODEL, 64)
        app = Account(make_app(service), log)
        asyncio.run(Server(service, app, lambda: None).serve(sockets=[listener]))
        service.close()


if __name__ == "__main__":
    main()
