"""``edgecompress lineage``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import UsageError
from edgecompress.terminal import add_json_flag, emit_json

if TYPE_CHECKING:
    from edgecompress.types.bundle import Manifest
    from edgecompress.types.provenance import Lineage

FORMATS = ("tree", "card", "cyclonedx", "json")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("subject", type=Path, metavar="BUNDLE|CHECKPOINT", help="a folder; works offline")
    parser.add_argument("--format", default="tree", help=f"{', '.join(FORMATS)} (tree)")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    shape = "json" if options.json else options.format
    if shape not in FORMATS:
        raise UsageError(f"no format named '{shape}'", hint=f"Known: {', '.join(FORMATS)}.")
    lineage, manifest = read(options.subject)
    if shape == "json":
        emit_json(lineage)
    elif shape == "cyclonedx":
        emit_json(_bom(options.subject, lineage, manifest))
    elif shape == "card":
        print(_card(lineage, manifest))
    else:
        from edgecompress.lineage.tree import tree

        print(tree(lineage, manifest))
    return 0


def read(folder: Path) -> tuple[Lineage, Manifest | None]:
    """The recorded lineage of a bundle, after its hashes are checked; of a checkpoint, what its files say now."""
    from edgecompress.formats.manifest import MANIFEST, open_bundle, read_lineage

    if (folder / MANIFEST).is_file():
        manifest, root = open_bundle(folder)
        return read_lineage(root), manifest
    from edgecompress.capture.checkpoint import hashes
    from edgecompress.lineage.collect import Checkpoint, collect
    from edgecompress.types.provenance import ProvenanceRecipe

    checkpoint = Checkpoint(source=str(folder), path=folder.resolve(), revision=None, files=hashes(folder))
    return collect(checkpoint, ProvenanceRecipe()).lineage, None


def _bom(folder: Path, lineage: Lineage, manifest: Manifest | None) -> object:
    from edgecompress.formats.manifest import read_report
    from edgecompress.lineage.cyclonedx import bundle_bom, checkpoint_bom
    from edgecompress.lineage.documents import SBOM

    if manifest is None:
        return checkpoint_bom(lineage)
    if SBOM in manifest.files:
        import json

        found: object = json.loads((folder / SBOM).read_bytes())
        return found
    return bundle_bom(manifest, lineage, read_report(folder), manifest.files)  # a bundle made without an SBOM


def _card(lineage: Lineage, manifest: Manifest | None) -> str:
    from edgecompress.lineage.hub_card import bundle_metadata, checkpoint_metadata, front_matter, prose

    metadata = bundle_metadata(lineage) if manifest is not None else checkpoint_metadata(lineage)
    return front_matter(metadata) + "\n" + "\n".join(prose(lineage)).rstrip()
