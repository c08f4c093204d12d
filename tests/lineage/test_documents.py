"""The bill of materials and the build statement: valid by others' schemas, true to the files, the same every time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement

from edgecompress.errors import BundleError
from edgecompress.export.bundle import add_engine
from edgecompress.formats.codec import dumps
from edgecompress.formats.manifest import file_sha256, open_bundle, read_lineage
from edgecompress.lineage.cyclonedx import bundle_bom, checkpoint_bom
from edgecompress.lineage.documents import ENGINE_STATEMENT, SBOM, STATEMENT
from edgecompress.lineage.hub_card import bundle_metadata, checkpoint_metadata, front_matter, prose
from edgecompress.lineage.statement import build_statement
from edgecompress.lineage.tree import tree
from edgecompress.types.bundle import EngineRecord, with_variant
from edgecompress.types.distill import TeacherRecord
from edgecompress.types.provenance import COMPUTED, ProvenanceRecipe
from edgecompress.types.provenance import Statement as Said
from edgecompress.types.recipe import Recipe
from tests.lineage.folders import REPORT, checkpoint, collected, record, small_bundle
from tests.test_bundle import MANIFEST

DECLARED = ProvenanceRecipe(
    status="conditional",
    teacher="model at https://api.example",
    data="prompts of ours",
    terms_url="https://t.example/terms",
    terms_retrieved="2026-11-27",
    terms_sha256="7" * 64,
    conditions=("the name begins with Llama",),
    name_prefix="Llama",
    accept="asked",
)
CARD = "---\nlicense: apache-2.0\nlicense_link: https://l.example\n"
CARD += "base_model: [../old, 'o/two: \"x\"']\ndatasets: [a, b]\n---\n"


@pytest.fixture
def student(tmp_path: Path) -> Path:
    checkpoint(tmp_path / "old", "---\nlicense: other\nlicense_name: my terms\n---\n")
    folder = checkpoint(tmp_path / "s", CARD)
    (folder / "LICENSE").write_text("the terms\n")
    record(folder, TeacherRecord(kind="endpoint", name="model", endpoint="https://api.example/v1"))
    return folder


@pytest.fixture
def bundle(student: Path, tmp_path: Path) -> Path:
    return small_bundle(tmp_path / "b.bundle", student, DECLARED)


def problems(text: str) -> list[str]:
    found = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text, all_errors=True)
    return [str(error) for error in found] if found is not None else []


def statement(text: str) -> Any:
    parsed = json_format.Parse(text, statement_pb2.Statement())
    Statement.copy_from_pb(parsed).validate()
    return parsed


def values(component: dict[str, Any], name: str) -> list[str]:
    return [entry["value"] for entry in component["properties"] if entry["name"] == f"edgecompress:{name}"]


def test_the_bill_of_materials_is_valid_cyclonedx(bundle: Path, student: Path) -> None:
    assert problems((bundle / SBOM).read_text()) == []
    assert problems(dumps(checkpoint_bom(collected(student).lineage))) == []
    assert problems(dumps(checkpoint_bom(collected(checkpoint(student.parent / "bare")).lineage))) == []
    broken = json.loads((bundle / SBOM).read_text())
    broken["metadata"]["component"]["modelCard"]["colour"] = "red"
    assert problems(json.dumps(broken)) != [], "the validator is a strict one"


def test_the_bill_of_materials_says_what_the_lineage_says(bundle: Path) -> None:
    bom = json.loads((bundle / SBOM).read_text())
    model = bom["metadata"]["component"]
    assert model["type"] == "machine-learning-model"
    assert model["licenses"][0]["license"] == {
        "id": "Apache-2.0",
        "acknowledgement": "declared",
        "url": "https://l.example",
    }
    assert model["modelCard"]["modelParameters"]["datasets"] == [
        {"type": "dataset", "name": "a"},
        {"type": "dataset", "name": "b"},
    ]
    metrics = model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    assert metrics == [{"type": "mean_cosine", "value": "0.5", "slice": "two texts"}]
    (origin,) = model["pedigree"]["ancestors"]
    assert [values(origin, name) for name in ("licence", "licence:said_by")] == [["apache-2.0"], ["read from card"]]
    assert values(origin, "terms:status") == ["conditional"]
    assert values(origin, "terms:conditions") == ["the name begins with Llama"]
    assert values(origin, "distillation:said_by") == ["verified"]
    teacher, old, two = origin["pedigree"]["ancestors"]
    assert [values(teacher, name) for name in ("relation", "relation:said_by")] == [["teacher"], ["verified"]]
    assert values(teacher, "licence") == ["unknown"]
    assert old["licenses"][0]["license"]["name"] == "my terms"
    assert two["name"] == 'o/two: "x"'
    (terms,) = model["externalReferences"]
    assert terms["hashes"] == [{"alg": "SHA-256", "content": "7" * 64}]
    assert terms["comment"] == "declared in the recipe, of s, retrieved 2026-11-27"
    for part in bom["components"]:
        assert part["hashes"][0]["content"] == file_sha256(bundle / part["name"])
    assert {part["name"] for part in bom["components"]} >= {"model.onnx.data", "licenses/LICENSE"}


def test_the_build_statement_is_in_toto_s_and_slsa_s(bundle: Path, student: Path) -> None:
    text = (bundle / STATEMENT).read_text()
    parsed = statement(text)
    manifest, _ = open_bundle(bundle)
    assert {s.name: s.digest["sha256"] for s in parsed.subject} == {
        name: entry.sha256 for name, entry in manifest.files.items() if name != STATEMENT
    }
    predicate = json.loads(text)["predicate"]
    json_format.ParseDict(predicate, provenance_pb2.Provenance())
    inputs = {
        entry["name"]: entry["digest"]["sha256"] for entry in predicate["buildDefinition"]["resolvedDependencies"]
    }
    assert inputs["checkpoint/model.safetensors"] == file_sha256(student / "model.safetensors")
    assert predicate["buildDefinition"]["externalParameters"]["recipe"]["provenance"]["accept"] == "asked"


def test_the_calibration_and_the_commit_are_inputs(student: Path) -> None:
    lineage = replace(
        collected(student).lineage,
        source=Said(value="o/n", said_by="declared"),
        revision=Said(value="4" * 40, said_by=COMPUTED),
        calibration=Said(value="texts.txt", said_by=COMPUTED),
        calibration_sha256=Said(value="3" * 64, said_by=COMPUTED),
    )
    made = build_statement(MANIFEST, lineage, Recipe(), {})
    inputs = made["predicate"]["buildDefinition"]["resolvedDependencies"]
    assert inputs[0] == {"name": "o/n", "uri": "https://huggingface.co/o/n", "digest": {"gitCommit": "4" * 40}}
    assert inputs[-1]["digest"] == {"sha256": "3" * 64}


def times(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from (key for key in value if key in ("timestamp", "startedOn", "finishedOn", "invocationId"))
        for item in value.values():
            yield from times(item)
    elif isinstance(value, list):
        for item in value:
            yield from times(item)


def test_the_same_inputs_give_the_same_bytes_and_no_time(bundle: Path, student: Path, tmp_path: Path) -> None:
    again = small_bundle(tmp_path / "again.bundle", student, DECLARED)
    for name in (SBOM, STATEMENT, "lineage.json", "manifest.json"):
        assert (bundle / name).read_bytes() == (again / name).read_bytes()
    assert [*times(json.loads((bundle / SBOM).read_text())), *times(json.loads((bundle / STATEMENT).read_text()))] == []
    other = small_bundle(tmp_path / "other.bundle", student)
    serial = [json.loads((folder / SBOM).read_text())["serialNumber"] for folder in (bundle, other)]
    assert serial[0] != serial[1]


def test_licences_travel_with_the_bundle(bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    assert "licenses/LICENSE" in manifest.files
    assert (folder / "licenses" / "LICENSE").read_text() == "the terms\n"
    (folder / "licenses" / "LICENSE").write_text("other terms\n")
    with pytest.raises(BundleError, match=r"licenses/LICENSE.*longer"):
        open_bundle(bundle)


def test_an_engine_has_a_statement_of_its_own(bundle: Path, tmp_path: Path) -> None:
    manifest, folder = open_bundle(bundle)
    engine = EngineRecord(
        path="model.engine", layers="l.txt", builder="tensorrt", version="11", os="linux", compute_capability=(8, 9),
        profile={}, weights_bytes=0,
    )  # fmt: skip
    files = {}
    for name, content in (("model.engine", "e"), ("l.txt", "l"), ("model.onnx.data", "changed")):
        files[name] = tmp_path / name
        files[name].write_text(content)
    add_engine(folder, with_variant(manifest, replace(manifest.variant(), engine=engine)), files)
    made, folder = open_bundle(bundle)
    parsed = statement((folder / ENGINE_STATEMENT).read_text())
    assert {s.name for s in parsed.subject} == set(files)
    for name in (STATEMENT, ENGINE_STATEMENT):
        for subject in statement((folder / name).read_text()).subject:
            assert subject.digest["sha256"] == made.files[subject.name].sha256, "no statement is of bytes that are gone"
    assert problems((folder / SBOM).read_text()) == []


def test_the_hub_s_metadata_is_what_it_knows(student: Path) -> None:
    lineage = collected(student, DECLARED).lineage
    text = front_matter(bundle_metadata(lineage))
    assert yaml.safe_load(text.split("---")[1]) == {
        "license": "apache-2.0",
        "license_link": "https://l.example",
        "base_model": "s",
        "base_model_relation": "quantized",
    }
    assert "base_model_relation" not in checkpoint_metadata(lineage), "the hub has none for a distilled one"
    written = "\n".join(prose(lineage))
    assert "- s: teacher `model`, licence unknown (verified)" in written
    assert "distilled, white-box, on `texts.jsonl` (verified: the record matches these weights)" in written
    assert "Name required by the terms: `Llama-s`." in written


def test_the_tree_names_who_says_so(bundle: Path) -> None:
    manifest, folder = open_bundle(bundle)
    lines = tree(read_lineage(folder), manifest).splitlines()
    assert lines[0].endswith("verified")
    for said, by in (
        ("licence: apache-2.0", "read from card, README.md"),
        ("status: conditional", "declared, the recipe, of s"),
        ("teacher: model", "verified, distillation.json"),
        ("condition: the name begins with Llama", "declared in the recipe, of s"),
        ("licence: unknown", "nobody"),
    ):
        assert any(said in line and line.endswith(by) for line in lines), said


def test_a_bundle_of_an_older_version_still_loads(bundle: Path) -> None:
    nobody = {"value": None, "said_by": "nobody"}
    old: dict[str, Any] = dict.fromkeys(("revision", "licence", "base_model", "datasets", "calibration"), nobody)
    old |= {"source": {"value": "s", "said_by": "declared by the user"}, "files": {"a": "1" * 64}, "schema_version": 1}
    (bundle / "lineage.json").write_text(json.dumps(old))
    lineage = read_lineage(bundle)
    assert lineage.source.said_by == "declared by the user"
    assert lineage.ancestors == ()
    assert "checkpoint s" in tree(lineage, MANIFEST)
    assert problems(dumps(bundle_bom(MANIFEST, lineage, REPORT, {}))) == []
    (bundle / "lineage.json").write_text(json.dumps(old | {"schema_version": 3, "more": 1}))
    with pytest.raises(BundleError, match="newer edgecompress"):
        read_lineage(bundle)
