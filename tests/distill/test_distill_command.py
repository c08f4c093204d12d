"""``edgecompress distill`` as a user meets it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.cli import main
from tests.distill.lessons import recipe_file, sentence_teacher, sentences
from tests.distill.teacher_server import teaching, texts_of, write_prompts

pytestmark = pytest.mark.slow


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
    assert "distilled from teacher, white-box" in capsys.readouterr().out
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
        (["--teacher", "./nowhere"], "there is no checkpoint at nowhere"),
        (["--threads", "0"], "threads must be at least 1"),
        (["--steps", "0"], "steps must be at least 1"),
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
    assert "no output given" in capsys.readouterr().err


def test_a_teacher_behind_an_endpoint_is_asked_once(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    key = "sk-never-to-be-written-0123456789"
    monkeypatch.setenv("OPENAI_API_KEY", key)
    recipe = recipe_file(tmp_path / "r.toml", f'[student]\nstart = "{small_decoder_dir}"\n[training]\nbatch = 4\n')
    prompts = write_prompts(tmp_path / "p.jsonl", 6)
    with teaching(lambda before, prompt: 500 if prompt.endswith("5") and before < 1 else "ok") as teacher:
        command = ["distill", "--teacher", teacher.url, "--student", str(recipe), "--data", str(prompts)]
        command += ["--threads", "1", "--steps", "3"]
        assert main([*command, "--dry-run"]) == 0
        assert not teacher.asked
        assert main([*command, "-o", str(tmp_path / "s"), "--tries", "1"]) == 3
        assert "1 of 6 prompts have no response" in capsys.readouterr().err
        assert not (tmp_path / "s").exists()
        assert main([*command, "-o", str(tmp_path / "s")]) == 0
        assert sorted(teacher.asked.values()) == [1, 1, 1, 1, 1, 2]
    record = json.loads((tmp_path / "s" / "distillation.json").read_text())
    assert record["method"] == "black-box"
    assert record["teacher"] | {"files": None} == {
        "kind": "endpoint",
        "name": "m",
        "endpoint": teacher.url.removeprefix("openai:").partition("#")[0],
        "files": None,
        "revision": None,
        "licence": None,
        "base_model": None,
    }
    assert record["data"]["examples"] == 6
    assert key not in texts_of(tmp_path)
    captured = capsys.readouterr()
    assert key not in captured.out + captured.err
