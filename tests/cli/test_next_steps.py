"""What a newcomer types first, and what the tool says to do next."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest

from edgecompress.cli import COMMANDS, main
from tests.wording.world import BERT, WHOLE, checkpoint

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a bundle, a checkpoint, and things that are neither."""
    shutil.copytree(WHOLE / "encoder", tmp_path / "my.bundle")
    checkpoint(tmp_path / "student", BERT)
    (tmp_path / "empty").mkdir()
    (tmp_path / "model.onnx").write_bytes(b"\x08")
    (tmp_path / "model.gguf").write_bytes(b"GGUF\x03")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def failed(line: str, capsys: Captured) -> tuple[int, str, str]:
    """The exit code, the message and the hint."""
    code = main(shlex.split(line))
    out, err = capsys.readouterr()
    assert out == ""
    message, *hint = err.removeprefix("edgecompress: ").splitlines()
    return code, message, "\n".join(hint)


def test_without_arguments_three_commands_to_start_with(capsys: Captured) -> None:
    assert main([]) == 2
    shown = capsys.readouterr().out
    tried = [line.split()[1] for line in shown.splitlines() if line.startswith("  edgecompress ")]
    assert tried == ["doctor", "export", "run"]
    assert len(shown.splitlines()) < 12
    assert "edgecompress --help" in shown


@pytest.mark.parametrize("line", ["--help", "-h", "help"])
def test_help_is_no_failure(line: str, capsys: Captured) -> None:
    assert main([line]) == 0
    assert set(COMMANDS) <= set(capsys.readouterr().out.split())


def test_help_of_a_command_in_both_ways(capsys: Captured) -> None:
    assert main(["help", "run"]) == 0
    first = capsys.readouterr().out
    assert main(["run", "--help"]) == 0
    assert capsys.readouterr().out == first


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("exprot", "export"),
        ("inspekt my.bundle", "inspect"),
        ("export student --taget local", "--target"),
        ("run my.bundle hello --max-new-token 3", "--max-new-tokens"),
        ("export student -o out --target raspbery-pi5", "raspberry-pi-5"),
        ("export student -o out --precision int8-dynamik", "int8-dynamic"),
        ("targets shw", "show"),
        ("inspect my.bundel", "my.bundle"),
        ("export studnet -o out", "student"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_typo(line: str, meant: str, capsys: Captured) -> None:
    code, message, hint = failed(line, capsys)
    assert code in (2, 7)
    assert f"Did you mean '{meant}'?" in message
    assert hint


BUNDLE_COMMANDS = [
    "run",
    "build",
    "serve",
    "profile",
    "inspect",
    "lineage",
    "verify",
    "sign --key k",
    "push o/n",
    "estimate",
]
OF_A_BUNDLE = [f"{line.split()[0]} {{}} {' '.join(line.split()[1:])}" for line in BUNDLE_COMMANDS if line != "lineage"]


@pytest.mark.parametrize("line", [*OF_A_BUNDLE, "compare my.bundle {}"])
@pytest.mark.usefixtures("folder")
def test_a_checkpoint_in_place_of_a_bundle(line: str, capsys: Captured) -> None:
    code, message, hint = failed(line.format("student"), capsys)
    assert code == 7
    assert message == "student is a checkpoint, not a bundle"
    assert ("torch:student" if line.startswith("compare") else "edgecompress export student -o student.bundle") in hint


@pytest.mark.parametrize("line", ["export my.bundle -o out", "distill --teacher my.bundle --student r --data d -o out"])
@pytest.mark.usefixtures("folder")
def test_a_bundle_in_place_of_a_checkpoint(line: str, capsys: Captured) -> None:
    code, message, hint = failed(line, capsys)
    assert code == 2
    assert message.startswith("my.bundle is a bundle, and ")
    assert "edgecompress run my.bundle" in hint


@pytest.mark.parametrize(
    "line", [*OF_A_BUNDLE, "export {} -o out", "lineage {}", "distill --teacher {} --student r --data d"]
)
@pytest.mark.parametrize(
    ("what", "called"),
    [("model.onnx", "an ONNX file"), ("model.gguf", "a GGUF file"), ("empty", "an empty folder")],
)
@pytest.mark.usefixtures("folder")
def test_what_is_neither(line: str, what: str, called: str, capsys: Captured) -> None:
    code, message, hint = failed(line.format(what), capsys)
    assert code in (2, 7)
    assert message.startswith(f"{what} is {called}")
    assert hint


@pytest.mark.parametrize("line", OF_A_BUNDLE)
@pytest.mark.usefixtures("folder")
def test_a_hub_id_in_place_of_a_bundle(line: str, capsys: Captured) -> None:
    _, message, hint = failed(line.format("owner/name"), capsys)
    assert message == "there is no bundle at owner/name"
    assert "edgecompress export owner/name -o name.bundle" in hint
    assert "hf download owner/name" in hint


@pytest.mark.usefixtures("folder")
def test_a_folder_that_holds_the_bundle(capsys: Captured, folder: Path) -> None:
    (folder / "outer").mkdir()
    (folder / "my.bundle").rename(folder / "outer" / "it's mine.bundle")
    _, message, hint = failed("run outer hello", capsys)
    assert "folder of one" in message
    assert hint == """Give 'outer/it'"'"'s mine.bundle'."""


@pytest.mark.usefixtures("folder")
def test_a_path_in_place_of_the_command(capsys: Captured) -> None:
    code, message, hint = failed("my.bundle", capsys)
    assert code == 2
    assert "is a path" in message
    assert "edgecompress run my.bundle" in hint


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("run", "BUNDLE must be given"),
        ("sign my.bundle", "--key must be given"),
        ("run my.bundle hello --threads", "--threads takes a value"),
        ("run my.bundle hello --threads two", "--threads takes a whole number, not 'two'"),
        ("profile my.bundle --duration long", "--duration takes a number, not 'long'"),
        ("distill --teacher a --student b --data c --steps 1 --minutes 1", "--minutes and --steps exclude each other"),
        ("inspect my.bundle other", "unexpected argument: other"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_arguments_in_plain_words(line: str, said: str, capsys: Captured) -> None:
    code, message, hint = failed(line, capsys)
    assert (code, message) == (2, said)
    assert hint == f"See `edgecompress {line.split()[0]} --help`."
