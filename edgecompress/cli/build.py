"""``edgecompress build``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edgecompress.cli.engine_lines import describe_engine
from edgecompress.cli.output import add_json_flag, emit_json, note, progress
from edgecompress.errors import BundleError, OutputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="of a target whose backend builds engines")
    parser.add_argument("--device", type=int, metavar="N", help="the GPU, where there are several")
    parser.add_argument("--force", action="store_true", help="build it again where there is an engine already")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.backends import find_backend
    from edgecompress.export.bundle import add_engine
    from edgecompress.export.pipeline import workspace
    from edgecompress.formats.manifest import SIGNATURE, open_bundle

    manifest, folder = open_bundle(options.bundle)
    if manifest.build is None and manifest.engine is None:
        raise BundleError(
            f"{options.bundle} has no engine to build: its backend is {manifest.target.backend}",
            hint="Export it for a target whose backend is tensorrt.",
        )
    if manifest.engine is not None and not options.force:
        raise OutputError(
            f"{options.bundle} has an engine already: {describe_engine(manifest.engine)}", hint="Give --force."
        )
    was_signed = (folder / SIGNATURE).exists()
    with progress() as show, workspace(folder.parent) as scratch:
        backend = find_backend(manifest.target.backend)
        record, files = backend.build.build_on_device(manifest, folder, scratch, options.device, show)
        made = add_engine(folder, replace(manifest, engine=record), files)
    if was_signed:
        note("the signature is gone, for it was of the bundle without this engine; sign it again")
    if options.json:
        emit_json({"bundle": options.bundle, "engine": record, "files": len(made.files)})
    else:
        print(f"{options.bundle}: {describe_engine(record)}")
    return 0
