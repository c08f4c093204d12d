"""What ``enforce`` refuses, what ``warn`` says, and that an acceptance is recorded for good."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgecompress.errors import ProvenanceError, RecipeError
from edgecompress.formats.provenance import validate_provenance
from edgecompress.lineage.policy import check, objection
from edgecompress.types.distill import TeacherRecord
from edgecompress.types.provenance import DECLARED, POLICIES, ProvenanceRecipe, Statement
from tests.lineage.folders import checkpoint, collected, record

MIT = "---\nlicense: mit\n---\n"
ENDPOINT = TeacherRecord(kind="endpoint", name="model", endpoint="https://api.example/v1")


@pytest.mark.parametrize(
    ("card", "declared", "why"),
    [
        (None, {}, "the terms of s are unknown: it has no card, and nothing is declared"),
        ("# s\n", {}, "the terms of s are unknown: its card names no licence, and nothing is declared"),
        ("---\nlicense: unknown\n---\n", {}, "its card names no licence"),
        ("---\nlicense: other\n---\n", {}, "its card names no licence"),
        ("---\nlicense: other\nlicense_name: x\n---\n", {}, None),
        (MIT, {}, None),
        (None, {"status": "permitted"}, None),
        (None, {"status": "conditional", "conditions": ("say so",)}, None),
        (None, {"teacher": "somebody"}, "nothing is declared"),
        (MIT, {"status": "restricted"}, "the terms of s are declared restricted (the recipe, of s)"),
        (MIT, {"status": "unknown"}, "the terms of s are declared unknown (the recipe, of s)"),
    ],
)
def test_restricted_and_unknown_are_refused(
    tmp_path: Path, card: str | None, declared: dict[str, Any], why: str | None
) -> None:
    recipe = ProvenanceRecipe(policy="enforce", **declared)
    lineage = collected(checkpoint(tmp_path / "s", card), recipe).lineage
    if why is None:
        assert objection(lineage) is None
        assert check(lineage, "enforce") is None
        return
    with pytest.raises(ProvenanceError) as refused:
        check(lineage, "enforce")
    assert why in refused.value.message
    assert refused.value.exit_code == 6
    assert "[provenance]" in refused.value.hint
    assert "--accept" in refused.value.hint


def test_a_teacher_s_terms_count(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s", MIT)
    record(student, ENDPOINT)
    lineage = collected(student).lineage
    assert objection(lineage) == "s was distilled from model under unknown terms"
    assert objection(collected(student, ProvenanceRecipe(status="permitted")).lineage) is None
    child = checkpoint(tmp_path / "child", "---\nlicense: mit\nbase_model: ../s\n---\n")
    assert objection(collected(child).lineage) == "s was distilled from model under unknown terms"


def test_what_a_teacher_s_terms_forbid_stays_forbidden(tmp_path: Path) -> None:
    parent = checkpoint(tmp_path / "parent", MIT)
    record(parent, ENDPOINT, provenance=ProvenanceRecipe(status="restricted"))
    child = checkpoint(tmp_path / "child", "---\nlicense: mit\nbase_model: ../parent\n---\n")
    lineage = collected(child, ProvenanceRecipe(status="permitted")).lineage
    assert objection(lineage) == "the terms of child are declared restricted (distillation.json, of parent)"


def test_a_damaged_record_is_an_unknown(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s", MIT)
    (student / "distillation.json").write_text("{")
    assert (
        objection(collected(student).lineage)
        == "the distillation record of s cannot be read, and its terms are unknown"
    )


@pytest.mark.parametrize("policy", POLICIES)
def test_each_policy_says_as_much_as_it_should(tmp_path: Path, policy: str) -> None:
    lineage = collected(checkpoint(tmp_path / "s"), ProvenanceRecipe(policy=policy)).lineage
    if policy == "enforce":
        with pytest.raises(ProvenanceError):
            check(lineage, policy)
        return
    said = check(lineage, policy)
    if policy == "warn":
        assert said == "provenance: the terms of s are unknown: it has no card, and nothing is declared"
    else:
        assert said is None


def test_a_record_of_other_weights_is_warned_of(tmp_path: Path) -> None:
    student = checkpoint(tmp_path / "s", MIT)
    teacher = TeacherRecord(kind="checkpoint", name="big", licence="mit")
    record(student, teacher, {"model.safetensors": "0" * 64})
    said = check(collected(student).lineage, "warn")
    assert said is not None
    assert "distillation.json has another hash for model.safetensors" in said
    assert "\n" not in said


def test_an_acceptance_is_recorded_where_there_is_something_to_accept(tmp_path: Path) -> None:
    recipe = ProvenanceRecipe(policy="enforce", accept="ours, see ticket 9")
    lineage = collected(checkpoint(tmp_path / "s"), recipe).lineage
    assert lineage.accepted == Statement(value="ours, see ticket 9", said_by=DECLARED, where="the recipe")
    said = check(lineage, "enforce")
    assert said is not None
    assert said.endswith('; accepted, and recorded: "ours, see ticket 9"')
    assert collected(checkpoint(tmp_path / "fine", MIT), recipe).lineage.accepted.value is None


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        ({"policy": "enforced"}, "no provenance policy named 'enforced'. Did you mean 'enforce'?"),
        ({"status": "allowed"}, "no provenance status named 'allowed'"),
        ({"status": "conditional"}, "the provenance status is conditional, but no condition is given"),
        ({"terms_url": "the terms"}, "terms_url is not a URL: 'the terms'"),
        ({"terms_retrieved": "27.11.2026"}, "terms_retrieved is not a date: '27.11.2026'"),
        ({"terms_sha256": "abc"}, "terms_sha256 is not 64 hexadecimal digits"),
        ({"name_prefix": "a b"}, "name_prefix is not valid in a model's name: 'a b'"),
        ({"accept": " "}, "a reason is needed to accept what the policy refuses"),
    ],
)
def test_declarations_without_sense_are_refused(declared: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        validate_provenance(ProvenanceRecipe(**declared))
    assert message in refused.value.message
    assert refused.value.hint
