"""How a bundle was built: an in-toto Statement v1 with an SLSA provenance v1 predicate.

SLSA's fields for times and a run id are omitted, because they would make every build differ (ADR 3). The statement is
not signed itself: the bundle's signature covers it like every file.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from edgecompress.formats.codec import to_jsonable
from edgecompress.formats.recipe import recipe_toml
from edgecompress.types.bundle import EngineRecord, FileRecord, Manifest, Variant
from edgecompress.types.provenance import Lineage
from edgecompress.types.recipe import Recipe
from edgecompress.version import __version__

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:edgecompress:export:v1"
ENGINE_BUILD_TYPE = "urn:edgecompress:build:v1"
BUILDER = "urn:edgecompress:command-line"  # no service vouches for the build
CALIBRATION = "calibration"


def build_statement(
    manifest: Manifest, lineage: Lineage, recipe: Recipe, records: Mapping[str, FileRecord]
) -> dict[str, Any]:
    """``records``: the bundle's files, without this statement and the manifest, which lists it."""
    toml = recipe_toml(recipe)
    parameters = {
        "recipe": to_jsonable(recipe),
        "recipe_sha256": hashlib.sha256(toml.encode()).hexdigest(),  # of recipe.toml, one of the subjects
    }
    return _statement(
        BUILD_TYPE, records, parameters, _inputs(lineage), {"edgecompress": __version__, **manifest.versions}
    )


def engine_statement(
    variant: Variant, engine: EngineRecord, built: Mapping[str, FileRecord], records: Mapping[str, FileRecord]
) -> dict[str, Any]:
    """``built``: the files that the engine build wrote from the graph in ``records``."""
    parameters = {"build": to_jsonable(variant.build), "engine": to_jsonable(engine)}
    graph = {
        name: record.sha256
        for name, record in records.items()
        if name not in built and name in (variant.path, variant.data)
    }
    versions = {"edgecompress": __version__, engine.builder: engine.version}
    return _statement(
        ENGINE_BUILD_TYPE, built, parameters, [_resource(*item) for item in sorted(graph.items())], versions
    )


def _statement(
    build_type: str,
    subjects: Mapping[str, FileRecord],
    parameters: Mapping[str, Any],
    inputs: list[dict[str, Any]],
    versions: Mapping[str, str],
) -> dict[str, Any]:
    return {
        "_type": STATEMENT_TYPE,
        "subject": [_resource(name, record.sha256) for name, record in sorted(subjects.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": build_type,
                "externalParameters": dict(parameters),
                "resolvedDependencies": inputs,
            },
            "runDetails": {"builder": {"id": BUILDER, "version": dict(versions)}},
        },
    }


def _inputs(lineage: Lineage) -> list[dict[str, Any]]:
    source, revision = lineage.source.value or "", lineage.revision.value
    inputs: list[dict[str, Any]] = []
    if revision is not None:
        inputs.append({"name": source, "uri": f"https://huggingface.co/{source}", "digest": {"gitCommit": revision}})
    inputs += [_resource(f"checkpoint/{name}", sha256) for name, sha256 in sorted(lineage.files.items())]
    if lineage.calibration_sha256.value is not None:
        texts = _resource(CALIBRATION, lineage.calibration_sha256.value)
        inputs.append(texts | {"annotations": {"source": lineage.calibration.value, "of": _TEXTS}})
    return inputs


_TEXTS = "the calibration texts, then the held-out texts, one per line"


def _resource(name: str, sha256: str) -> dict[str, Any]:
    return {"name": name, "digest": {"sha256": sha256}}
