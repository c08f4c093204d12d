"""A small hub on this machine: as much of its API as a push asks."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN = "hf_of_the_test"


class Hub(ThreadingHTTPServer):
    """``files``: what lies in the one repository that there is. ``lost``: the path at which the connection is cut."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.private: bool | None = None
        self.public_already = False
        self.lost = ""
        self.forbidden = ""
        self.asked: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Cut connections are what some tests are about."""


@contextmanager
def hub() -> Iterator[Hub]:
    server = Hub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._handle(b"")

    def do_POST(self) -> None:
        self._handle(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    def _handle(self, body: bytes) -> None:
        path = self.path.partition("?")[0]
        self.server.asked.append(path)
        if self.server.lost and path.startswith(self.server.lost):
            self.close_connection = True
            self.connection.close()
            return
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, {"error": "Invalid credentials"})
        elif self.server.forbidden and path.startswith(self.server.forbidden):
            self._answer(403, {"error": "You don't have the rights"})
        else:
            self._answer(200, self._reply(path, body))

    def _reply(self, path: str, body: bytes) -> dict[str, Any] | list[dict[str, Any]]:
        hub, root = self.server, "/api/models/org/name"
        if path == "/api/whoami-v2":
            return {"type": "user", "name": "tester", "orgs": []}
        if path == "/api/repos/create":
            said = json.loads(body)
            hub.private = bool(said.get("private")) or said.get("visibility") == "private"
            return {"url": f"{hub.endpoint}/org/name", "name": "org/name"}
        if path == "/api/validate-yaml":
            return {"warnings": [], "errors": []}
        if path == f"{root}/preupload/main":
            asked = json.loads(body)["files"]
            return {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
        if path == f"{root}/commit/main":
            return self._commit(body)
        if path.startswith((f"{root}/tree", root)):
            siblings = [{"rfilename": name} for name in sorted(hub.files)]
            if path.startswith(f"{root}/tree"):
                return [{"type": "file", "path": n, "size": len(c), "oid": "0"} for n, c in sorted(hub.files.items())]
            seen = bool(hub.private) and not hub.public_already
            return {"id": "org/name", "_id": "1", "private": seen, "siblings": siblings, "sha": "0" * 40, "tags": []}
        raise AssertionError(f"a push asks for {path}")

    def _commit(self, body: bytes) -> dict[str, Any]:
        for line in body.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                self.server.files[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "deletedFile":
                del self.server.files[value["path"]]
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.endpoint}/org/name/commit/1"}

    def _answer(self, status: int, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        pass
