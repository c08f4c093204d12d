"""``edgecompress serve``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import HostError
from edgecompress.formats.api_key import read_key
from edgecompress.terminal import add_json_flag, emit_json, note

if TYPE_CHECKING:
    from edgecompress.serve.server import Serving

_LOCAL = ("127.0.0.1", "localhost", "::1")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle to serve")
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for every network (127.0.0.1)"
    )
    parser.add_argument("--port", type=int, default=8000, help="port to listen on; 0 picks a free one (8000)")
    parser.add_argument("--name", metavar="MODEL", help="model name for clients (the bundle's name)")
    parser.add_argument("--threads", type=int, help="inference threads (the target's choice)")
    parser.add_argument("--api-key-file", type=Path, metavar="FILE", help="require the API key in this file")
    parser.add_argument(
        "--max-queue", type=int, default=32, metavar="N", help="maximum number of waiting requests (32)"
    )
    parser.add_argument("--device", type=int, metavar="N", help="which GPU to use")
    parser.add_argument("--allow-mismatch", action="store_true", help="load a bundle made for another CPU")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    try:
        from edgecompress.serve.server import serve
    except ModuleNotFoundError as error:
        raise HostError(f"serve needs the package '{error.name}'", hint="pip install 'edgecompress[serve]'") from None

    key = read_key(options.api_key_file) if options.api_key_file is not None else None
    if key is None and options.host not in _LOCAL:
        note(f"anyone who can reach {options.host} can use this server; --api-key-file requires a key")

    def ready(serving: Serving) -> None:
        if options.json:
            emit_json(serving)
            sys.stdout.flush()
        note(f"serving {serving.model} ({serving.task}, {serving.threads} threads) at {serving.url}; Ctrl-C stops it")

    serve(
        options.bundle,
        host=options.host,
        port=options.port,
        name=options.name,
        threads=options.threads,
        device=options.device,
        allow_mismatch=options.allow_mismatch,
        api_key=key,
        max_queue=options.max_queue,
        ready=ready,
    )
    note("stopped")
    return 0
