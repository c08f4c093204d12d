"""``edgecompress build``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from edgecompress.cli.engine_lines import describe_engine
from edgecompress.errors import BundleError, OutputError
from edgecompress.terminal import add_json_flag, emit_json, note, progress
from edgecompress.types.bundle import EngineRecord, Manifest


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="of a target whose backend is tensorrt or tensorrt-rtx")
    parser.add_argument("--device", type=int, metavar="N", help="the GPU, where there are several")
    parser.add_argument("--force", action="store_true", help="build it again where there is an engine already")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
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
        record, files = _build(manifest, folder, scratch, options.device, show)
        made = add_engine(folder, replace(manifest, engine=record), files)
    if was_signed:
        note("the signature is gone, for it was of the bundle without this engine; sign it again")
    if options.json:
        emit_json({"bundle": options.bundle, "engine": record, "files": len(made.files)})
    else:
        print(f"{options.bundle}: {describe_engine(record)}")
    return 0


def _build(
    manifest: Manifest, folder: Path, scratch: Path, device: int | None, show: Callable[[str], None]
) -> tuple[EngineRecord, dict[str, Path]]:
    from edgecompress.targets import detect_gpus, find_target
    from edgecompress.types.graph import Graph

    graph = Graph(path=folder / manifest.model, stage="lowered", precision=manifest.precision)
    if manifest.build is not None:
        from edgecompress.backends.tensorrt.engine import build_on_device, require_device

        index, gpu = require_device(manifest.build, detect_gpus(), device, manifest.model)
        return build_on_device(graph, manifest.build, index, gpu, folder, scratch, show)
    from edgecompress.backends.tensorrt_rtx.engine import build_engine

    old = manifest.engine
    assert old is not None
    show("building the engine")
    # The target may be a file of the user's own that is not here: its capability is all that is needed of it.
    target = replace(find_target("rtx-4090"), name=manifest.target.name, compute_capability=old.compute_capability)
    made = build_engine(graph, target, old.profile, scratch)
    return made.record, {made.record.path: made.engine, made.record.layers: made.layers}
