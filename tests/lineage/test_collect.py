"""What is collected by itself, what is declared, and that nothing is guessed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from edgecompress.errors import RecipeError
from edgecompress.formats.recipe import recipe_toml
from edgecompress.types.distill import DistillRecipe, NewStudentRecipe, TeacherRecord
from edgecompress.types.provenance import DECLARED, NOBODY, READ, UNKNOWN, VERIFIED, ProvenanceRecipe, Statement
from tests.lineage.folders import checkpoint, collected, record, sha256

CARD = "---\nlicense: other\nlicense_name: my-terms\nlicense_link: LICENSE.md\nbase_model:\n- a/b\n- c/d\n"
CARD += "base_model_relation: merge\ndatasets: [one, two]\n---\n# x\n"
TEACHER = TeacherRecord(
    kind="checkpoint", name="big", revision="r1", licence="mit", base_model="o/bigger", files={"model.safetensors": "9"}
)


def test_a_card_is_read_and_nothing_else_is_said(tmp_path: Path) -> None:
    lineage = collected(checkpoint(tmp_path / "s", CARD)).lineage
    assert lineage.source == Statement(value="s", said_by=DECLARED), "the folders above are nobody's business"
    assert lineage.licence == Statement(value="other", said_by=READ, where="README.md")
    assert (lineage.licence_name.value, lineage.licence_link.value) == ("my-terms", "LICENSE.md")
    assert lineage.datasets.value == "one, two"
    assert [(a.name, a.relation.value, a.of) for a in lineage.ancestors] == [
        ("a/b", "merge", None),
        ("c/d", "merge", None),
    ]
    assert {a.licence for a in lineage.ancestors} == {UNKNOWN}, "what is not here is not looked up"
    assert lineage.status == UNKNOWN
    assert lineage.files["model.safetensors"] == sha256(b"weights")


def test_without_a_card_everything_is_unknown(tmp_path: Path) -> None:
    lineage = collected(checkpoint(tmp_path / "llama-distilled-from-gpt")).lineage
    for statement in (lineage.licence, lineage.base_model, lineage.datasets, lineage.status):
        assert statement == Statement(value=None, said_by=NOBODY)
    assert lineage.ancestors == ()


@pytest.mark.parametrize(
    ("card", "problem"),
    [
        ("---\nlicense: [mit\n---\n", r"the card of s cannot be read: its front matter is not YAML, line 2 column 14"),
        ("---\nlicense: mit\n", "has no closing --- line"),
        ("---\n- mit\n---\n", "is not a mapping"),
    ],
)
def test_a_card_that_cannot_be_read_is_said(tmp_path: Path, card: str, problem: str) -> None:
    lineage = collected(checkpoint(tmp_path / "s", card)).lineage
    assert lineage.licence == UNKNOWN
    assert problem in lineage.remarks[0]


def test_base_models_in_folders_are_followed_to_the_end(tmp_path: Path) -> None:
    checkpoint(tmp_path / "old", "---\nlicense: gpl-3.0\nbase_model: o/oldest\n---\n")
    checkpoint(tmp_path / "middle", "---\nlicense: mit\nbase_model: ../old\n---\n")
    (tmp_path / "middle" / "NOTICE.txt").write_text("by the middle\n")
    student = checkpoint(tmp_path / "s", f"---\nlicense: mit\nbase_model: {tmp_path / 'middle'}\n---\n")
    found = collected(student)
    assert [(a.name, a.of, a.licence.value) for a in found.lineage.ancestors] == [
        ("middle", None, "mit"),
        ("old", 0, "gpl-3.0"),
        ("o/oldest", 1, None),
    ]
    assert found.lineage.licences == {"licenses/middle/NOTICE.txt": "found with middle"}
    assert str(tmp_path) not in str(found.lineage.ancestors)


def test_a_chain_that_comes_back_ends(tmp_path: Path) -> None:
    checkpoint(tmp_path / "b", "---\nbase_model: ../s\n---\n")
    lineage = collected(checkpoint(tmp_path / "s", "---\nbase_model: ../b\n---\n")).lineage
    assert [a.name for a in lineage.ancestors] == ["b"]
    assert lineage.remarks == ("the chain of base models returns to s; it ends there",)


def test_a_name_like_a_hub_s_is_not_a_folder_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    checkpoint(tmp_path / "owner" / "name", "---\nlicense: mit\n---\n")
    lineage = collected(checkpoint(tmp_path / "s", "---\nbase_model: owner/name\n---\n")).lineage
    assert lineage.ancestors[0].licence == UNKNOWN


def test_a_record_of_these_weights_is_verified(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s", "---\nlicense: mit\nbase_model: big\n---\n")
    record(student, TEACHER)
    lineage = collected(student).lineage
    assert lineage.distillation is not None
    assert lineage.distillation.verified
    teacher, above = lineage.ancestors
    assert teacher.relation == Statement(value="teacher", said_by=VERIFIED, where="distillation.json")
    assert (teacher.name, teacher.licence.value, teacher.files) == ("big", "mit", {"model.safetensors": "9"})
    assert (above.name, above.of, above.licence) == ("o/bigger", 0, UNKNOWN)
    assert lineage.remarks == ()


@pytest.mark.parametrize(
    ("weights", "remark"),
    [
        ({"model.safetensors": "0" * 64}, "has another hash for model.safetensors"),
        ({"other.safetensors": "0" * 64}, "names other.safetensors, which is missing"),
        ({}, "names no weights"),
    ],
)
def test_a_record_of_other_weights_is_only_declared(tmp_path: Path, weights: dict[str, str], remark: str) -> None:
    student = checkpoint(tmp_path / "s")
    record(student, TEACHER, weights)
    lineage = collected(student).lineage
    assert lineage.distillation is not None
    assert not lineage.distillation.verified
    assert lineage.ancestors[0].relation.said_by == DECLARED
    assert remark in lineage.remarks[0]


def test_weights_that_the_record_does_not_know_are_said(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s")
    record(student, TEACHER)
    (student / "model-2.safetensors").write_bytes(b"more")
    assert "does not list the weights model-2.safetensors" in collected(student).lineage.remarks[0]


def test_what_a_student_began_as_is_read_where_it_lies_and_else_known_by_the_record(tmp_path: Path) -> None:
    checkpoint(tmp_path / "start", "---\nlicense: cc-by-nc-4.0\nbase_model: owner/older\n---\n")
    began = TeacherRecord(kind="checkpoint", name="start", licence="mit", files={"model.safetensors": "7" * 64})
    recipe = DistillRecipe(student=NewStudentRecipe(start=str(tmp_path / "start")))
    student = checkpoint(tmp_path / "s")
    record(student, replace(TEACHER, base_model=None), recipe=recipe, start=began)
    (student / "distill.toml").write_text(recipe_toml(recipe))
    start, older = collected(student).lineage.ancestors[1:]
    assert start.relation == Statement(value="starts from", said_by=VERIFIED, where="distill.toml")
    assert (start.name, start.licence.value, older.name) == ("start", "cc-by-nc-4.0", "owner/older")
    (student / "distill.toml").write_text(recipe_toml(replace(recipe, method="white-box")))  # another than the record's
    (start,) = collected(student).lineage.ancestors[1:]
    assert start.relation == Statement(value="starts from", said_by=VERIFIED, where="distillation.json")
    assert (start.name, start.licence.value, start.files) == ("start", "mit", began.files)


def test_a_damaged_record_is_said(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s")
    (student / "distillation.json").write_text('{"tool_version": 1}')
    lineage = collected(student).lineage
    assert lineage.distillation is None
    assert lineage.remarks == ("distillation.json of s cannot be read: 'tool_version' must be str, not int",)


def test_what_is_declared_is_marked_so_and_the_narrowest_counts(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s")
    record(student, TEACHER, provenance=ProvenanceRecipe(status="restricted", terms_url="https://t.example/terms"))
    recipe = ProvenanceRecipe(status="permitted", teacher="mine", data="my own", terms_retrieved="2026-11-27")
    lineage = collected(student, recipe).lineage
    assert [(t.where, t.status) for t in lineage.terms] == [
        ("the recipe", "permitted"),
        ("distillation.json", "restricted"),
    ]
    assert lineage.status == Statement(value="restricted", said_by=DECLARED, where="distillation.json, of s")
    assert "conflicting terms are declared" in lineage.remarks[-1]


def test_a_later_declaration_fills_what_was_unknown(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s")
    record(student, TEACHER, provenance=ProvenanceRecipe(status="unknown"))
    lineage = collected(student, ProvenanceRecipe(status="permitted")).lineage
    assert (lineage.status.value, lineage.remarks) == ("permitted", ())


def test_notices_are_found_and_declared(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s")
    for name in ("LICENSE", "NOTICE.md", "USE_POLICY.md", "licence.txt"):
        (student / name).write_text(name)
    (tmp_path / "far").mkdir()
    (tmp_path / "far" / "LICENSE").write_text("another's")
    recipe = ProvenanceRecipe(notices=(str(tmp_path / "far" / "LICENSE"),))
    found = collected(student, recipe)
    assert set(found.notices) == {
        "licenses/LICENSE",
        "licenses/NOTICE.md",
        "licenses/USE_POLICY.md",
        "licenses/licence.txt",
        "licenses/declared/LICENSE",
    }
    assert found.lineage.licences["licenses/declared/LICENSE"] == "declared"
    assert found.notices["licenses/declared/LICENSE"].read_text() == "another's"
    with pytest.raises(RecipeError, match=r"licence or notice file terms\.txt .* does not exist"):
        collected(student, ProvenanceRecipe(notices=("terms.txt",)))


@pytest.mark.parametrize(("name", "proposed"), [("tiny", "Llama-tiny"), ("llama-tiny", "llama-tiny")])
def test_a_name_is_proposed_not_forced(tmp_path: Path, name: str, proposed: str) -> None:
    lineage = collected(checkpoint(tmp_path / name), ProvenanceRecipe(name_prefix="Llama")).lineage
    assert (lineage.proposed_name.value, lineage.source.value) == (proposed, name)


def test_off_follows_nothing(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s", CARD)
    record(student, TEACHER)
    lineage = collected(student, ProvenanceRecipe(policy="off")).lineage
    assert (lineage.ancestors, lineage.distillation, lineage.terms) == ((), None, ())
    assert lineage.licence.value == "other"
