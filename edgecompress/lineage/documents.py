"""The files that describe a bundle in standard formats, written last, from the other files' hashes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from edgecompress.formats import codec
from edgecompress.lineage.cyclonedx import bundle_bom
from edgecompress.lineage.statement import build_statement, engine_statement
from edgecompress.types.bundle import FileRecord, Manifest
from edgecompress.types.provenance import Lineage
from edgecompress.types.recipe import Recipe
from edgecompress.types.report import Report

SBOM = "sbom.cdx.json"
STATEMENT = "build.intoto.json"
ENGINE_STATEMENT = "engine.intoto.json"

Records = Mapping[str, FileRecord]


def documents(
    manifest: Manifest, report: Report, lineage: Lineage, recipe: Recipe
) -> Callable[[Records], Mapping[str, str]]:
    """Writer of an export's last files: the bill of materials and the build statement."""

    def write(records: Records) -> Mapping[str, str]:
        sbom = codec.dumps(bundle_bom(manifest, lineage, report, records))
        subjects = {**records, SBOM: _record(sbom)}
        return {SBOM: sbom, STATEMENT: codec.dumps(build_statement(manifest, lineage, recipe, subjects))}

    return write


def engine_documents(
    folder: Path, manifest: Manifest, engine_files: Collection[str]
) -> Callable[[Records], Mapping[str, str]]:
    """Writer of the last file when an engine is added to the bundle in ``folder``: the engine's statement.

    ``engine_files``: names of the engine's files. The export's documents stay unchanged, except that entries for
    replaced files are removed.
    """

    def write(records: Records) -> Mapping[str, str]:
        files: dict[str, str] = {}
        gone = set(engine_files) & set(manifest.files)
        if gone and SBOM in manifest.files:
            bom = json.loads((folder / SBOM).read_bytes())
            bom["components"] = [part for part in bom["components"] if part["name"] not in gone]
            files[SBOM] = codec.dumps(bom)
        if gone and STATEMENT in manifest.files:
            statement = json.loads((folder / STATEMENT).read_bytes())
            kept = [entry for entry in statement["subject"] if entry["name"] not in {*gone, SBOM}]
            if SBOM in files:
                kept.append({"name": SBOM, "digest": {"sha256": _record(files[SBOM]).sha256}})
            statement["subject"] = sorted(kept, key=lambda entry: str(entry["name"]))
            files[STATEMENT] = codec.dumps(statement)
        for variant in manifest.variants:
            if variant.engine is not None and variant.engine.path in engine_files:
                new = {name: records[name] for name in engine_files}
                files[ENGINE_STATEMENT] = codec.dumps(engine_statement(variant, variant.engine, new, records))
        return files

    return write


def _record(content: str) -> FileRecord:
    raw = content.encode()
    return FileRecord(sha256=hashlib.sha256(raw).hexdigest(), bytes=len(raw))
