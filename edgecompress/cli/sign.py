"""``edgecompress sign``."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from edgecompress.terminal import add_json_flag, emit_json

_PASSWORD = "EDGECOMPRESS_KEY_PASSWORD"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle to sign")
    parser.add_argument(
        "--key",
        type=Path,
        required=True,
        metavar="PRIVATE",
        help=f"an elliptic-curve private key in PEM; {_PASSWORD} holds its password, if any",
    )
    parser.add_argument("--force", action="store_true", help="replace an existing signature")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.formats.manifest import open_bundle
    from edgecompress.lineage.signature import sign

    _, folder = open_bundle(options.bundle)
    signed = sign(folder, options.key, force=options.force, password=os.environ.get(_PASSWORD))
    if options.json:
        emit_json({"bundle": options.bundle, "signature": signed.path, "files": signed.files, "key": signed.key})
    else:
        print(f"{options.bundle / signed.path.name}: {signed.files} files signed with key {signed.key[:16]}…")
        print("measurements.json is not signed: its times may change")
    return 0
