"""``edgecompress push``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import UsageError, nearest
from edgecompress.terminal import add_json_flag, emit_json, note, progress, table
from edgecompress.types.provenance import POLICIES

if TYPE_CHECKING:
    from edgecompress.lineage.hub import Parcel


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, help="the bundle to send")
    parser.add_argument("repository", help="owner/name; created if missing; a bundle already there is replaced")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument(
        "--provenance",
        default="warn",
        metavar="POLICY",
        help=f"{', '.join(POLICIES)}; applied to the bundle's lineage, as in export (warn)",
    )
    parser.add_argument("--dry-run", action="store_true", help="show what would be sent, without network access")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.formats.manifest import open_bundle
    from edgecompress.lineage.hub import pack, push

    if options.provenance not in POLICIES:
        hint = nearest(options.provenance, POLICIES)
        raise UsageError(
            f"no provenance policy named '{options.provenance}'.{hint}", hint=f"Known: {', '.join(POLICIES)}."
        )
    manifest, folder = open_bundle(options.bundle)
    parcel = pack(manifest, folder, options.repository, options.provenance)
    if parcel.warning is not None:
        note(f"edgecompress: {parcel.warning}")
    if options.dry_run:
        commit = None
    else:
        with progress() as show:
            show(f"sending {sum(parcel.files.values()) / 1e6:.1f} MB to {parcel.repository}")
            commit = push(parcel, private=options.private)
    if options.json:
        emit_json(
            {"repository": parcel.repository, "private": options.private, "files": parcel.files, "commit": commit}
        )
    else:
        print(_text(parcel, options.private, commit))
    return 0


def _text(parcel: Parcel, private: bool, commit: str | None) -> str:
    size = f"{len(parcel.files)} files, {sum(parcel.files.values()) / 1e6:.1f} MB"
    if commit is not None:
        return f"{parcel.repository}: {size}\n{commit}"
    from edgecompress.lineage.hub_card import bundle_metadata

    rows = [[name, f"{count:_}"] for name, count in parcel.files.items()]
    card = [f"  {key}: {value}" for key, value in bundle_metadata(parcel.lineage).items()]
    kind = "private" if private else "public"
    head = f"would be sent to {parcel.repository} ({kind}, if it does not exist yet): {size}"
    return "\n".join([head, table(["file", "bytes"], rows), "card", *card])
