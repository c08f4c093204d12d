"""A CycloneDX 1.6 bill of materials of a model (ML-BOM), written directly: cyclonedx-python-lib has no model cards.

It has no timestamp, and its serial number derives from its content, so the same bundle has the same BOM.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from typing import Any

from edgecompress.formats.codec import dumps
from edgecompress.types.bundle import FileRecord, Manifest, TensorSpec
from edgecompress.types.provenance import Ancestor, Lineage, Statement, Terms
from edgecompress.types.report import Report
from edgecompress.version import __version__

_SPDX = (
    "AFL-3.0", "AGPL-3.0", "Apache-2.0", "Artistic-2.0", "BSD-2-Clause", "BSD-3-Clause", "BSD-3-Clause-Clear",
    "BSL-1.0",
    "CC-BY-2.0", "CC-BY-2.5", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-NC-2.0", "CC-BY-NC-3.0", "CC-BY-NC-4.0",
    "CC-BY-NC-ND-3.0", "CC-BY-NC-ND-4.0", "CC-BY-NC-SA-2.0", "CC-BY-NC-SA-3.0", "CC-BY-NC-SA-4.0", "CC-BY-ND-4.0",
    "CC-BY-SA-3.0", "CC-BY-SA-4.0", "CC0-1.0", "CDLA-Permissive-1.0", "CDLA-Permissive-2.0", "CDLA-Sharing-1.0",
    "ECL-2.0", "EPL-1.0", "EPL-2.0", "EUPL-1.1", "EUPL-1.2", "GFDL-1.3", "GPL-2.0", "GPL-3.0", "ISC", "LGPL-2.1",
    "LGPL-3.0", "MIT", "MPL-2.0", "MS-PL", "MulanPSL-2.0", "NCSA", "ODbL-1.0", "OFL-1.1", "OSL-3.0", "PDDL-1.0",
    "PostgreSQL", "Unlicense", "WTFPL", "Zlib",
)  # fmt: skip
_SPDX_IDS = {name.lower(): name for name in _SPDX}  # the hub writes them in lower case
_STUDENT, _BUNDLE = "student", "bundle"
_NAMESPACE = uuid.UUID("2b6a0d5c-6f0e-5d0c-9a4b-0c1d6f1f7a10")


def bundle_bom(
    manifest: Manifest, lineage: Lineage, report: Report | None, records: Mapping[str, FileRecord]
) -> dict[str, Any]:
    """The BOM of a bundle: the compiled model, its files, and its ancestors as pedigree."""
    path = manifest.variants[0].path
    model: dict[str, Any] = {
        "type": "machine-learning-model",
        "bom-ref": _BUNDLE,
        "name": manifest.name,
        **_hashes(records[path].sha256 if path in records else None),
        **_licences(lineage.licence, lineage.licence_name, lineage.licence_link),
        "pedigree": {
            "ancestors": [_student(lineage)],
            "notes": f"quantized and compiled by edgecompress {manifest.tool_version}: {manifest.precision} for "
            f"{manifest.target.name}",
        },
        **_references(lineage.terms),
        "modelCard": _model_card(manifest, lineage, report),
        "properties": [
            _property("precision", manifest.precision),
            _property("target", manifest.target.name),
            *_statement_properties("proposed_name", lineage.proposed_name),
            *(_property("licence_file", f"{path} ({origin})") for path, origin in sorted(lineage.licences.items())),
        ],
    }
    files = [_file(name, record.sha256) for name, record in sorted(records.items())]
    versions = {"edgecompress": manifest.tool_version, **manifest.versions}
    return _bom(model, files, versions, [{"ref": _BUNDLE, "dependsOn": [_STUDENT]}, {"ref": _STUDENT}])


def checkpoint_bom(lineage: Lineage) -> dict[str, Any]:
    """The BOM of a checkpoint."""
    files = [_file(name, sha256) for name, sha256 in sorted(lineage.files.items())]
    return _bom(_student(lineage), files, {"edgecompress": __version__}, [{"ref": _STUDENT}])


def _bom(
    model: dict[str, Any], files: list[dict[str, Any]], versions: Mapping[str, str], links: list[dict[str, Any]]
) -> dict[str, Any]:
    body = {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "lifecycles": [{"phase": "build"}],
            "tools": {
                "components": [
                    {"type": "library", "name": name, "version": version} for name, version in sorted(versions.items())
                ]
            },
            "component": model,
        },
        "components": files,
        "dependencies": links,
    }
    return {**body, "serialNumber": f"urn:uuid:{uuid.uuid5(_NAMESPACE, dumps(body))}"}


def _student(lineage: Lineage) -> dict[str, Any]:
    """The checkpoint, with every statement and its source as properties."""
    statements = {
        "source": lineage.source,
        "revision": lineage.revision,
        "licence": lineage.licence,
        "licence_name": lineage.licence_name,
        "licence_link": lineage.licence_link,
        "base_model": lineage.base_model,
        "datasets": lineage.datasets,
        "calibration": lineage.calibration,
        "calibration_sha256": lineage.calibration_sha256,
        "status": lineage.status,
        "accepted": lineage.accepted,
    }
    properties = [entry for name, statement in statements.items() for entry in _statement_properties(name, statement)]
    teaching = lineage.distillation
    if teaching is not None:
        who = "verified" if teaching.verified else "declared"
        properties += [
            _property("distillation:record_sha256", teaching.sha256),
            _property("distillation:said_by", who),
            _property("distillation:teacher", teaching.teacher),
            _property("distillation:method", teaching.method),
            _property("distillation:data", teaching.data),
            _property("distillation:data_sha256", teaching.data_sha256),
            _property("distillation:recipe_sha256", teaching.recipe_sha256),
            _property("distillation:tool_version", teaching.tool_version),
        ]
        if (given := teaching.responses) is not None:
            properties += [
                _property("distillation:responses", f"{given.responses} from {given.name}"),
                _property("distillation:responses_sha256", given.sha256),
                _property("distillation:responses_teacher", given.teacher or "unknown"),
            ]
    properties += [entry for terms in lineage.terms for entry in _terms(terms)]
    properties += [_property("remark", remark) for remark in lineage.remarks]
    ancestors = _ancestors(lineage.ancestors, None)
    return {
        "type": "machine-learning-model",
        "bom-ref": _STUDENT,
        "name": lineage.source.value or "unknown",
        **({"version": lineage.revision.value} if lineage.revision.value else {}),
        **_licences(lineage.licence, lineage.licence_name, lineage.licence_link),
        "components": [_file(name, sha256, "student/") for name, sha256 in sorted(lineage.files.items())],
        **({"pedigree": {"ancestors": ancestors}} if ancestors else {}),
        "properties": properties,
    }


def _ancestors(ancestors: tuple[Ancestor, ...], of: int | None) -> list[dict[str, Any]]:
    """The ancestors of one generation, with their own ancestors nested."""
    made = []
    for place, ancestor in enumerate(ancestors):
        if ancestor.of != of:
            continue
        own = _ancestors(ancestors, place)
        ref = f"ancestor-{place}"
        made.append(
            {
                "type": "machine-learning-model",
                "bom-ref": ref,
                "name": ancestor.name,
                **({"version": ancestor.revision.value} if ancestor.revision.value else {}),
                **_licences(ancestor.licence, ancestor.licence_name, ancestor.licence_link),
                **(
                    {"components": [_file(name, sha, f"{ref}/") for name, sha in sorted(ancestor.files.items())]}
                    if ancestor.files
                    else {}
                ),
                **({"pedigree": {"ancestors": own}} if own else {}),
                "properties": [
                    *_statement_properties("relation", ancestor.relation),
                    *_statement_properties("licence", ancestor.licence),
                    *_statement_properties("datasets", ancestor.datasets),
                    *_statement_properties("endpoint", ancestor.endpoint),
                ],
            }
        )
    return made


def _terms(terms: Terms) -> Iterable[dict[str, str]]:
    for name, value in asdict(terms).items():
        for item in value if isinstance(value, tuple) else [value]:
            if item is not None:
                yield _property(f"terms:{name}", item)
    yield _property("terms:said_by", "declared")


def _references(entries: tuple[Terms, ...]) -> dict[str, Any]:
    """The declared terms, with the hash of the text as retrieved."""
    found = []
    for terms in entries:
        if terms.url is None:
            continue
        retrieved = f", retrieved {terms.retrieved}" if terms.retrieved else ""
        entry = {"type": "license", "url": terms.url, "comment": f"declared in {terms.where}, of {terms.of}{retrieved}"}
        found.append(entry | _hashes(terms.sha256))
    return {"externalReferences": found} if found else {}


def _model_card(manifest: Manifest, lineage: Lineage, report: Report | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "task": manifest.task,
        "architectureFamily": manifest.architecture,
        "inputs": [{"format": _tensor(spec)} for variant in manifest.variants for spec in variant.inputs],
        "outputs": [{"format": _tensor(spec)} for variant in manifest.variants for spec in variant.outputs],
    }
    if lineage.datasets.value:
        names = lineage.datasets.value.split(", ")
        parameters["datasets"] = [{"type": "dataset", "name": name} for name in names]
    card: dict[str, Any] = {"modelParameters": parameters}
    if report is not None:
        found = asdict(report.fidelity)
        figures = {**found.pop("measures"), **found}
        card["quantitativeAnalysis"] = {
            "performanceMetrics": [
                {"type": name, "value": f"{value:g}", "slice": report.held_out_text}
                for name, value in figures.items()
                if name != "samples" and value is not None
            ]
        }
    return card


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _licences(licence: Statement, name: Statement, link: Statement) -> dict[str, Any]:
    """By SPDX id if there is one (the hub uses lower case), else by name."""
    said = name.value or licence.value
    if said is None:
        return {}
    known = _SPDX_IDS.get(said.lower())
    url = {"url": link.value} if link.value and " " not in link.value else {}
    return {
        "licenses": [{"license": {("id" if known else "name"): known or said, "acknowledgement": "declared", **url}}]
    }


def _file(name: str, sha256: str, within: str = "") -> dict[str, Any]:
    return {"type": "file", "bom-ref": f"file:{within}{name}", "name": name, **_hashes(sha256)}


def _hashes(sha256: str | None) -> dict[str, Any]:
    return {"hashes": [{"alg": "SHA-256", "content": sha256}]} if sha256 else {}


def _statement_properties(name: str, statement: Statement) -> list[dict[str, str]]:
    said = [_property(name, statement.value or "unknown"), _property(f"{name}:said_by", statement.said_by)]
    return said + ([_property(f"{name}:where", statement.where)] if statement.where else [])


def _property(name: str, value: str) -> dict[str, str]:
    return {"name": f"edgecompress:{name}", "value": value}
