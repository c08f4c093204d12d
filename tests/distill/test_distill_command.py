"""``edgecompress distill`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.cli import main
from tests.distill.lessons import recipe_file, sentence_teacher, sentences


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    teacher, recipe = sentence_teacher(tmp_path / "teacher"), recipe_file(tmp_path / "r.toml")
    data = sentences(tmp_path / "d.jsonl")
    return ["distill", "--teacher", str(teacher), "--student", str(recipe), "--data", str(data), "--threads", "1"]


def test_two_lines_make_a_student(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--steps", "3", "--seed", "4", "-o", str(tmp_path / "s"), "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["distillation"]["steps"] == 3
    assert out["distillation"]["seed"] == 4
    assert out["output"] == str(tmp_path / "s")
    assert main([*command, "--steps", "3", "-o", str(tmp_path / "t")]) == 0
    assert "a student of teacher, white-box" in capsys.readouterr().out
    assert main([*command, "--steps", "3", "-o", str(tmp_path / "t")]) == 2
    assert "already exists" in capsys.readouterr().err


def test_a_dry_run_writes_nothing(command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([*command, "--dry-run", "--json"]) == 0
    out = json.loads(capsys.readouterr().out)
    assert out["recipe"]["student"]["layers"] == [0, 3]
    assert out["recipe"]["training"]["steps"] == 1000
    assert out["examples"] > 20
    assert main([*command, "--dry-run"]) == 0
    assert "layers = [0, 3]" in capsys.readouterr().out
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (["--data", "nowhere.jsonl"], "no data file"),
        (["--student", "nowhere.toml"], "no recipe at"),
        (["--teacher", "./nowhere"], "no directory"),
        (["--threads", "0"], "threads are at least 1"),
        (["--steps", "0"], "steps are at least 1"),
    ],
)
def test_bad_input_is_one_line(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], changed: list[str], message: str
) -> None:
    before = sorted(tmp_path.iterdir())
    assert main([*command, *changed, "-o", str(tmp_path / "s")]) == 2
    captured = capsys.readouterr()
    assert message in captured.err.splitlines()[0]
    assert len(captured.err.strip().splitlines()) >= 2
    assert captured.out == ""
    assert sorted(tmp_path.iterdir()) == before
    assert main(command) == 2
    assert "no output was given" in capsys.readouterr().err
