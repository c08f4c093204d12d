"""A read-only mirror of the Hugging Face hub on this machine: what its client needs to download a repository."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub_mirror(repositories: dict[str, Path], *, cut_off: bool = False) -> Iterator[str]:
    """Serve folders as model repositories, "owner/name" -> folder; yields the endpoint for ``HF_ENDPOINT``.

    ``cut_off`` ends every download of weights halfway, as a proxy does that closes long connections.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(body=False)

        def do_GET(self) -> None:
            self._answer(body=True)

        def _answer(self, *, body: bool) -> None:
            path = self.path.partition("?")[0].strip("/")
            if path.startswith("api/models/"):
                name = "/".join(path.removeprefix("api/models/").split("/")[:2])
                if name in repositories:
                    found = _tree(repositories[name]) if "/tree/" in path else _facts(name, repositories[name])
                    return self._send(json.dumps(found).encode(), "application/json", body)
            owner, _, rest = path.partition("/")
            name, _, rest = rest.partition("/resolve/")
            file = repositories.get(f"{owner}/{name}", Path("/nowhere")) / rest.partition("/")[2]
            if rest and file.is_file():
                return self._send(
                    file.read_bytes(), "application/octet-stream", body, cut=file.suffix == ".safetensors"
                )
            self.send_response(404)
            self.send_header(
                "X-Error-Code", "RepoNotFound" if f"{owner}/{name}" not in repositories else "EntryNotFound"
            )
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, content: bytes, kind: str, body: bool, *, cut: bool = False) -> None:
            self.send_response(200)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
            self.send_header("X-Repo-Commit", COMMIT)
            self.end_headers()
            if body:
                self.wfile.write(content[: len(content) // 2] if cut and cut_off else content)
                if cut and cut_off:
                    self.close_connection = True

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _tree(folder: Path) -> list[dict[str, object]]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return [
        {
            "type": "file",
            "path": path.relative_to(folder).as_posix(),
            "size": path.stat().st_size,
            "oid": hashlib.sha1(path.read_bytes()).hexdigest(),
        }
        for path in files
    ]


def _facts(name: str, folder: Path) -> dict[str, object]:
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    return {"id": name, "modelId": name, "sha": COMMIT, "siblings": [{"rfilename": file} for file in files]}
