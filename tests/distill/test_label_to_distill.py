"""What `label` wrote is what `distill` learns from: responses in the file are kept, and their teacher is recorded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from edgecompress.distill.completion import complete, require_teacher
from edgecompress.distill.data import read_data
from edgecompress.distill.endpoint import Endpoint
from edgecompress.distill.prompts import Sampling, read_prompts
from edgecompress.distill.responses import Answer, open_store
from edgecompress.errors import UsageError
from edgecompress.formats.manifest import file_sha256
from tests.distill.lessons import recipe_file
from tests.distill.teacher_server import teaching, write_prompts
from tests.lineage.folders import small_bundle

pytest.importorskip("openai")
pytest.importorskip("fastapi")

HERE = Endpoint("http://localhost:1/v1", "m")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(folder: Path, start: Path, teacher: str, data: Path) -> list[str]:
    recipe = recipe_file(folder / "r.toml", f'[student]\nstart = "{start}"\n[training]\nbatch = 4\nsteps = 2\n')
    given = ["--teacher", teacher, "--student", str(recipe), "--data", str(data), "--threads", "1"]
    return ["distill", *given, "-o", str(folder / "s")]


def record_of(folder: Path) -> Any:
    return json.loads((folder / "s" / "distillation.json").read_text())


@pytest.mark.slow
def test_labelled_prompts_teach_a_student_when_the_server_is_gone(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts, responses = write_prompts(tmp_path / "p.jsonl", 6), tmp_path / "r.jsonl"
    with teaching() as teacher:
        assert main(["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(responses)]) == 0
    assert {line["teacher"] for line in lines(responses)} == {teacher.url}
    before = dict(teacher.asked)
    arguments = command(tmp_path, small_decoder_dir, teacher.url, responses)
    assert main([*arguments, "--dry-run"]) == 0
    assert "responses: 6 of 6 are in r.jsonl" in capsys.readouterr().out
    assert main(arguments) == 0
    assert "6 responses are in r.jsonl: the teacher is not asked" in capsys.readouterr().err
    assert teacher.asked == before
    record = record_of(tmp_path)
    assert (record["method"], record["teacher"]["name"]) == ("black-box", "m")
    assert record["data"]["name"] == "r.jsonl"
    source = {"name": "r.jsonl", "sha256": file_sha256(responses), "responses": 6, "teacher": teacher.url}
    assert record["data"]["responses"] == source
    assert not list(tmp_path.glob("s.*"))
    assert f"6 responses come from r.jsonl (sha256 {source['sha256']})" in (tmp_path / "s" / "README.md").read_text()

    # its lineage says so, as a checkpoint and in a bundle
    bundle = small_bundle(tmp_path / "b", tmp_path / "s")
    for subject in (tmp_path / "s", bundle):
        assert main(["lineage", str(subject), "--json"]) == 0
        lineage = json.loads(capsys.readouterr().out)
        assert lineage["distillation"]["verified"]
        assert lineage["distillation"]["responses"] == source
        assert main(["lineage", str(subject)]) == 0
        tree = capsys.readouterr().out
        assert f"6 responses from r.jsonl, sha256 {source['sha256'][:16]}" in tree
        assert teacher.url in tree
    sbom = (bundle / "sbom.cdx.json").read_text()
    assert f'"value": "{source["sha256"]}"' in sbom
    assert "6 from r.jsonl" in sbom


@pytest.mark.slow
def test_only_prompts_without_a_response_are_asked(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"prompt": f"question {n}", "response": f"of the file {n}"} for n in range(3)]
    rows += [{"prompt": f"question {n}"} for n in (3, 1, 3, 4)]
    data = write(tmp_path / "half.jsonl", *rows)
    with teaching() as teacher:
        assert main(command(tmp_path, small_decoder_dir, teacher.url, data)) == 0
        assert teacher.asked == {"question 3": 1, "question 1": 1, "question 4": 1}
    written = lines(tmp_path / "s.responses.jsonl")
    assert [(line["messages"][0]["content"], line["response"]) for line in written] == [
        ("question 0", "of the file 0"),
        ("question 1", "of the file 1"),
        ("question 2", "of the file 2"),
        ("question 3", "an answer to question 3"),
        ("question 1", "an answer to question 1"),
        ("question 4", "an answer to question 4"),
    ]
    assert [line.get("teacher") for line in written] == [None] * 3 + [teacher.url] * 3
    record = record_of(tmp_path)
    assert record["data"]["name"] == "s.responses.jsonl"
    assert record["data"]["sha256"] == file_sha256(tmp_path / "s.responses.jsonl")
    stored = {"name": "half.jsonl", "sha256": file_sha256(data), "responses": 3, "teacher": None}
    assert record["data"]["responses"] == stored
    assert main(["lineage", str(tmp_path / "s")]) == 0
    assert "3 responses from half.jsonl" in capsys.readouterr().out


@pytest.mark.slow
def test_responses_of_this_run_come_from_no_file(small_decoder_dir: Path, tmp_path: Path) -> None:
    with teaching() as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 4)
        assert main(command(tmp_path, small_decoder_dir, teacher.url, prompts)) == 0
    assert record_of(tmp_path)["data"]["responses"] is None


@pytest.mark.slow
def test_a_prompt_that_nobody_answers_ends_it_and_is_named(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write(tmp_path / "d.jsonl", {"prompt": "a", "response": "b"}, {"prompt": "c"})
    with teaching() as gone:
        pass
    assert main([*command(tmp_path, small_decoder_dir, gone.url, data), "--tries", "1"]) == 3
    assert "1 of 1 prompts have no response" in capsys.readouterr().err
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
@pytest.mark.parametrize("given", ["#n", ":1/v1#m"])
def test_another_teacher_than_the_files_is_refused(
    small_decoder_dir: Path, tmp_path: Path, given: str, capsys: pytest.CaptureFixture[str]
) -> None:
    named = "openai:http://localhost:2/v1#m"
    data = write(tmp_path / "d.jsonl", {"prompt": "a", "response": "b", "teacher": named})
    other = f"openai:http://localhost:2/v1{given}" if given == "#n" else f"openai:http://localhost{given}"
    arguments = command(tmp_path, small_decoder_dir, other, data)
    for flags in ([], ["--dry-run"]):
        assert main([*arguments, *flags]) == 2
        message, hint = capsys.readouterr().err.splitlines()
        assert message == f"edgecompress: d.jsonl has responses of {named}, not of {other}"
        assert f"--teacher {named}" in hint
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.jsonl", "r.toml"]
    assert main(command(tmp_path, small_decoder_dir, f"{named[:-2]}/#m", data)) == 0  # the hint, with a slash more


@pytest.mark.slow
def test_what_can_be_refused_is_refused_before_a_response_is_paid_for(
    small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = recipe_file(tmp_path / "r.toml")
    prompts = write_prompts(tmp_path / "p.jsonl", 2)
    texts = write(tmp_path / "t.jsonl", {"text": "a text"})
    with teaching() as teacher:
        given = ["--teacher", teacher.url, "--student", str(recipe), "-o", str(tmp_path / "s")]
        assert main(["distill", *given, "--data", str(prompts)]) == 2
        assert "behind an endpoint" in capsys.readouterr().err
        assert main(command(tmp_path, small_decoder_dir, teacher.url, texts)) == 2
        assert "t.jsonl has texts, but a black box" in capsys.readouterr().err
        assert not teacher.asked


def test_two_teachers_in_one_file_are_refused(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "response": "b", "teacher": f"openai:http://h/v1#{name}"} for name in "mn"]
    data = read_data(write(tmp_path / "d.jsonl", *rows))
    with pytest.raises(UsageError, match=r"responses of 2 teachers: openai:http://h/v1#m and openai:http://h/v1#n"):
        require_teacher(data, Endpoint("http://h/v1", "m"))
    unasked = read_data(write(tmp_path / "d.jsonl", {"prompt": "a", "teacher": "openai:http://h/v1#n"}))
    require_teacher(unasked, Endpoint("http://h/v1", "m"))
    require_teacher(read_data(write(tmp_path / "d.jsonl", rows[0] | {"teacher": "Ms Lee"})), HERE)


def test_a_malformed_teacher_is_named_and_not_repeated(tmp_path: Path) -> None:
    row = {"prompt": "a", "response": "b", "teacher": "openai:https://user:secret@h/v1#m"}
    with pytest.raises(UsageError, match=r"line 1, column 34: .* password") as caught:
        read_data(write(tmp_path / "d.jsonl", row))
    assert "secret" not in caught.value.message + caught.value.hint


def test_empty_responses_are_left_out_and_cut_ones_have_no_end(tmp_path: Path) -> None:
    """As `label` stores them: a teacher may think until max_tokens, and say nothing."""
    path, store = write_prompts(tmp_path / "p.jsonl", 4), tmp_path / "s.sqlite"
    prompts, _ = read_prompts(path, HERE, Sampling())
    answers = [Answer(text="whole"), Answer(text="", finish="length"), Answer(text="half", finish="length")]
    answers.append(Answer(text=" "))
    with open_store(store, HERE, Sampling()) as kept:
        for prompt, answer in zip(prompts, answers, strict=True):
            attempt = kept.begin(prompt, bound=kept.spent())
            kept.settle(attempt, prompt, answer, kept.spent())
    found = complete(read_data(path), path, store, HERE, Sampling(), tmp_path / "r.jsonl")
    assert [(pair.response, pair.cut) for pair in found.pairs] == [("whole", False), ("half", True)]
    assert (found.empty, found.stored, found.lacking) == (2, None, 0)
    with pytest.raises(UsageError, match=r"every response in .* is empty"):
        read_data(write(tmp_path / "d.jsonl", {"prompt": "a", "response": "", "finish": "length"}))


def test_a_store_is_no_data_file(tmp_path: Path) -> None:
    (tmp_path / "r.sqlite").write_bytes(b"SQLite format 3\0")
    with pytest.raises(UsageError, match="is a store of `edgecompress label`") as caught:
        read_data(tmp_path / "r.sqlite")
    assert "-o FILE.jsonl" in caught.value.hint
