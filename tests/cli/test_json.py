"""Under --json stdout is one JSON document, errors included; docs/reference/json.md lists the keys of each."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress import errors
from edgecompress.cli import COMMANDS, main
from edgecompress.distill.labelling import LabellingResult
from edgecompress.serve.server import Serving
from edgecompress.types.failure import ErrorDocument
from tests.docs.meanings import EXIT_CODES
from tests.tiny import tiny_checkpoint
from tests.wording.world import BERT, WHOLE, checkpoint

PAGE = Path(__file__).parent.parent.parent / "docs" / "reference" / "json.md"


def documented() -> dict[str, set[str]]:
    """Heading of the page -> the keys in its table."""
    found: dict[str, set[str]] = {}
    for part in re.split(r"^#{2,3} ", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]:
        title, _, body = part.partition("\n")
        found[title.replace("`", "")] = set(re.findall(r"^\| `(\w+)` \|", body, flags=re.MULTILINE))
    return found


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for kind in ("encoder", "decoder"):
        shutil.copytree(WHOLE / kind, tmp_path / f"{kind}.bundle")
    checkpoint(tmp_path / "student", BERT)
    monkeypatch.chdir(tmp_path)
    return tmp_path


CASES = [
    ("export --dry-run", "export student --dry-run"),
    ("run", "run encoder.bundle hello"),
    ("run of a text generator", "run decoder.bundle hello --max-new-tokens 2 --raw"),
    ("profile", "profile decoder.bundle --shapes 1x8 --new-tokens 2 --duration 0.05 --no-cold-start --no-operators"),
    ("compare", "compare decoder.bundle decoder.bundle --shapes 1x8 --launches 8 --pairs 5"),
    ("estimate", "estimate encoder.bundle --target raspberry-pi-5 --shapes 1x16"),
    ("inspect", "inspect encoder.bundle"),
    ("lineage", "lineage encoder.bundle"),
    ("lineage", "lineage student"),
    ("push", "push encoder.bundle owner/name --dry-run"),
    ("verify", "verify encoder.bundle"),
    ("architectures", "architectures"),
    ("architectures", "architectures qwen2"),
    ("kernels", "kernels"),
    ("doctor", "doctor"),
    ("completion", "completion fish"),
]


@pytest.mark.parametrize(("heading", "line"), CASES, ids=[line.replace(" ", "_") for _, line in CASES])
def test_a_document_has_the_keys_of_the_page(
    folder: Path, heading: str, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--json"]) == 0
    found: Any = json.loads(capsys.readouterr().out)
    assert set(found[0] if isinstance(found, list) else found) == documented()[heading]


def test_signing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from tests.lineage.folders import keys

    private, _ = keys(folder)
    assert main(["sign", "encoder.bundle", "--key", str(private), "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)) == documented()["sign"]


@pytest.mark.parametrize("line", ["targets", "targets list", "targets show h200", "targets detect"])
def test_targets(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*line.split(), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list) == (line in ("targets", "targets list"))
    assert "memory_bytes" in (found[0] if isinstance(found, list) else found)


def test_documents_that_need_a_network_or_a_training() -> None:
    assert documented()["label"] == {field.name for field in dataclasses.fields(LabellingResult)}
    assert documented()["serve"] == {field.name for field in dataclasses.fields(Serving)}


def test_every_command_is_on_the_page() -> None:
    assert {heading.split()[0] for heading in documented()} >= set(COMMANDS)


@pytest.mark.slow
def test_an_export_prints_nothing_else(tmp_path: Path) -> None:
    """In a process of its own: what libraries print goes past Python's sys.stdout."""
    tiny_checkpoint(tmp_path / "student", "bert")
    line = "export student -o out --precision fp32 --kernels none --calibration-samples 8 --json"
    done = subprocess.run(
        [sys.executable, "-m", "edgecompress", *line.split()], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)) == documented()["export"]


@pytest.mark.parametrize(
    ("line", "kind", "code"),
    [
        ("exprot", "UsageError", 2),
        ("export --no-such-flag", "UsageError", 2),
        ("run nowhere hello", "BundleError", 7),
        ("export student -o out --target raspberry", "UnknownTargetError", 2),
        ("export student -o out --precision fp16", "ChipError", 3),
        ("export student -o out --provenance enforce", "ProvenanceError", 6),
        ("profile encoder.bundle --shapes big", "UsageError", 2),
        ("compare encoder.bundle", "UsageError", 2),
        ("serve nowhere", "BundleError", 7),
        ("lineage nowhere", "StudentError", 2),
    ],
)
def test_an_error_is_a_document(
    folder: Path, line: str, kind: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*line.split(), "--json"]) == code
    out, err = capsys.readouterr()
    found = json.loads(out)
    assert set(found) == {field.name for field in dataclasses.fields(ErrorDocument)}
    assert set(found["error"]) == documented()["Errors"]
    assert (found["error"]["type"], found["error"]["exit_code"]) == (kind, code)
    assert f"edgecompress: {found['error']['message']}" in err


def test_a_text_that_looks_like_the_flag_is_a_text(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "nowhere", "--", "--json"]) == 7
    assert capsys.readouterr().out == ""


def test_a_defect_is_a_document(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from edgecompress.cli import doctor

    monkeypatch.delenv("EDGECOMPRESS_TRACEBACK", raising=False)
    monkeypatch.setattr(doctor, "run", lambda _: 1 // 0)
    assert main(["doctor", "--json"]) == 70
    found = json.loads(capsys.readouterr().out)["error"]
    assert (found["type"], found["exit_code"]) == ("InternalError", 70)
    assert "ZeroDivisionError" in found["message"]


def test_every_exit_code_has_a_meaning() -> None:
    from tests.wording.templates import error_classes

    codes = {each.exit_code for each in vars(errors).values() if hasattr(each, "exit_code")}
    assert codes | {0} == set(EXIT_CODES)
    assert "BundleError" in error_classes()
