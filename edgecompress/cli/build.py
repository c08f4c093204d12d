"""``edgecompress build``."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from edgecompress.cli.engine_lines import describe_engine
from edgecompress.errors import BundleError, OutputError
from edgecompress.terminal import add_json_flag, emit_json, note, progress
from edgecompress.types.bundle import EngineRecord, with_variant


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE", help="for a target whose backend builds engines")
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU, if there are several")
    parser.add_argument("--force", action="store_true", help="build the engine again if there is one")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.backends import find_backend
    from edgecompress.export.bundle import add_engine
    from edgecompress.export.pipeline import workspace
    from edgecompress.formats.manifest import SIGNATURE, open_bundle

    manifest, folder = open_bundle(options.bundle)
    built = {name for name in manifest.models if manifest.variant(name).engine is not None}
    planned = {name for name in manifest.models if manifest.variant(name).build is not None}
    if not built | planned:
        raise BundleError(
            f"{options.bundle} has no engine to build: its backend is {manifest.variants[0].backend}",
            hint=f"Export it for a target whose backend builds one: {', '.join(_builders())}.",
        )
    if built and not options.force:
        engine = manifest.variant(min(built)).engine
        assert engine is not None
        raise OutputError(
            f"{options.bundle} already has an engine: {describe_engine(engine)}", hint="Give --force to build it again."
        )
    was_signed = (folder / SIGNATURE).exists()
    records: list[EngineRecord] = []
    with progress() as show, workspace(folder.parent) as scratch:
        files: dict[str, Path] = {}
        for name in sorted(built | planned):
            variant = manifest.variant(name)
            backend = find_backend(variant.backend)
            record, of_model = backend.build.build_on_device(manifest, variant, folder, scratch, options.device, show)
            manifest = with_variant(manifest, replace(variant, engine=record), name)
            records.append(record)
            files |= of_model
        written = add_engine(folder, manifest, files)
    if was_signed:
        note("the signature was removed, because the bundle has changed: sign it again")
    if options.json:
        emit_json({"bundle": options.bundle, "engines": records, "files": len(written.files)})
    else:
        for record in records:
            print(f"{options.bundle}: {describe_engine(record)}")
    return 0


def _builders() -> list[str]:
    from edgecompress.backends import backends

    return [backend.name for backend in backends().values() if backend.plan.BUILDS_ENGINES]
