"""``export --provenance`` and ``lineage``, as a user meets them."""

from __future__ import annotations

import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from edgecompress.export import pipeline
from edgecompress.formats.manifest import open_bundle, read_lineage
from tests.lineage.folders import checkpoint, small_bundle
from tests.tiny import tiny_checkpoint

QUICK = ["--precision", "fp32", "--kernels", "none", "--calibration-samples", "8", "--min-fidelity", "0.5"]
RECIPE = """
[provenance]
policy = "enforce"
status = "conditional"
teacher = "somebody's model"
terms_url = "https://t.example/terms"
terms_retrieved = "2026-11-27"
conditions = ["the name begins with Llama", "the notice travels along"]
notices = ["NOTES.txt"]
name_prefix = "Llama"
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("students") / "tiny", "bert")


@pytest.fixture
def untouched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be computed: what is refused is refused before."""

    def computed(*_: Any) -> None:
        raise AssertionError("a stage was run")

    monkeypatch.setattr(pipeline, "_run_stages", computed)


@pytest.mark.usefixtures("untouched")
def test_enforce_refuses_what_is_unknown_before_anything_is_computed(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = [str(tiny), *QUICK, "-o", str(tmp_path / "b")]
    assert main(["export", *flags, "--provenance", "enforce"]) == 6
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "edgecompress: the terms of tiny are unknown: it has no card, and nothing is declared"
    assert len(lines) == 2
    assert list(tmp_path.iterdir()) == []
    assert main(["export", *flags, "--provenance", "enforce", "--json"]) == 6
    assert json.loads(capsys.readouterr().out)["error"]["type"] == "ProvenanceError"
    assert main(["export", *flags, "--provenance", "enforce", "--dry-run"]) == 6
    assert main(["export", *flags, "--accept", ""]) == 2
    assert "a reason is needed" in capsys.readouterr().err
    assert main(["export", *flags, "--provenance", "strict"]) == 2
    assert "no provenance policy named 'strict'" in capsys.readouterr().err


@pytest.mark.usefixtures("untouched")
def test_warn_is_one_line_and_record_is_none(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "edgecompress: provenance: the terms of tiny are unknown: it has no card, and nothing is declared\n"
    for flags, said in (([], line), (["--provenance", "record"], ""), (["--provenance", "off"], "")):
        assert main(["export", str(tiny), *QUICK, "--dry-run", *flags]) == 0
        assert capsys.readouterr().err == said


@pytest.mark.slow
def test_obligations_and_an_acceptance_are_in_the_bundle(
    tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    student = tmp_path / "tiny"
    shutil.copytree(tiny, student)
    (student / "LICENSE").write_text("the terms\n")
    (student / "NOTES.txt").write_text("a notice\n")
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE.replace("conditional", "restricted"))
    bundle = tmp_path / "b"
    command = ["export", str(student), *QUICK, "--recipe", str(recipe), "-o", str(bundle)]
    assert main(command) == 6
    assert "the terms of tiny are declared restricted (the recipe, of tiny)" in capsys.readouterr().err
    assert main([*command, "--accept", "our own teacher; see ticket 9"]) == 0
    assert 'accepted, and recorded: "our own teacher; see ticket 9"' in capsys.readouterr().err
    manifest, folder = open_bundle(bundle)
    assert {"licenses/LICENSE", "licenses/declared/NOTES.txt", "sbom.cdx.json", "build.intoto.json"} <= set(
        manifest.files
    )
    lineage = read_lineage(folder)
    assert lineage.accepted.value == "our own teacher; see ticket 9"
    assert (lineage.status.value, lineage.policy) == ("restricted", "enforce")
    assert lineage.calibration_sha256.value in (lineage.calibration.value or "")
    assert manifest.name == "tiny", "a name is proposed, not forced"
    card = (folder / "README.md").read_text()
    assert "`Llama-tiny`" in card
    assert "- condition: the notice travels along" in card
    written = tomllib.loads((folder / "recipe.toml").read_text())["provenance"]
    assert written["accept"] == "our own teacher; see ticket 9"
    statement = json.loads((folder / "build.intoto.json").read_text())
    names = [entry["name"] for entry in statement["predicate"]["buildDefinition"]["resolvedDependencies"]]
    assert {"checkpoint/model.safetensors", "checkpoint/LICENSE", "calibration"} <= set(names)
    assert main(["inspect", str(bundle)]) == 0
    assert "our own teacher; see ticket 9" in capsys.readouterr().out


@pytest.mark.usefixtures("untouched")
def test_a_recipe_s_notice_that_is_not_there(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.toml"
    recipe.write_text(RECIPE)
    assert main(["export", str(tiny), *QUICK, "--recipe", str(recipe), "--dry-run"]) == 2
    assert "the licence or notice file NOTES.txt in [provenance] does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("shape", ["tree", "card", "cyclonedx", "json"])
@pytest.mark.parametrize("kind", ["bundle", "checkpoint"])
def test_lineage_in_each_format(tmp_path: Path, shape: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    student = checkpoint(tmp_path / "s", "---\nlicense: mit\nbase_model: o/base\n---\n")
    subject = small_bundle(tmp_path / "b", student) if kind == "bundle" else student
    assert main(["lineage", str(subject), "--format", shape]) == 0
    out = capsys.readouterr().out
    assert "mit" in out.lower()
    if shape == "tree":
        assert "base model: o/base" in out
        assert out.startswith("bundle tiny" if kind == "bundle" else "checkpoint s")
    elif shape == "card":
        assert ("base_model: s\nbase_model_relation: quantized" if kind == "bundle" else "base_model: o/base") in out
    elif shape == "cyclonedx":
        assert json.loads(out)["specVersion"] == "1.6"
    else:
        assert json.loads(out)["licence"]["said_by"] == "read from card"


def test_lineage_of_what_is_neither(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    altered = small_bundle(tmp_path / "b", checkpoint(tmp_path / "s"))
    (altered / "lineage.json").write_text("{}")
    for arguments, code, message in (
        ([tmp_path / "none"], 2, "there is no bundle or checkpoint at"),
        (["owner/name"], 2, "there is no bundle or checkpoint at owner/name"),
        ([tmp_path], 2, "is not a bundle or checkpoint: it has no manifest.json and no config.json"),
        ([altered], 7, "'lineage.json' is truncated"),
        ([tmp_path / "s", "--format", "spdx"], 2, "no format named 'spdx'"),
    ):
        assert main(["lineage", *map(str, arguments)]) == code
        err = capsys.readouterr().err.splitlines()
        assert message in err[0]
        assert len(err) == 2
