"""`edgecompress run` on a decoder, as a user meets it."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edgecompress.cli import main
from tests.decoder_bundle import scripted_bundle, thinking_bundle, tokenizer

PROMPT = "why is the sky blue?"
ANSWER = "<think>hm</think>It is 😀."


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Says ANSWER to PROMPT, reasoning included."""
    return thinking_bundle(tmp_path_factory.mktemp("d"), PROMPT, ANSWER)


def cli(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_a_prompt_streams(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    code, out, err = cli(capsys, "run", bundle, PROMPT, "--temperature", "0")
    assert code == 0, err
    assert out == "It is 😀.\n"
    assert "── reasoning ──\nhm\n" in err
    assert "first token after" in err
    assert "tok/s" in err.strip().splitlines()[-1]


def test_a_prompt_may_stand_behind_the_flags(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    assert cli(capsys, "run", bundle, "--temperature", "0", PROMPT)[:2] == (0, "It is 😀.\n")
    assert cli(capsys, "run", "--temperature", "0", bundle, PROMPT)[:2] == (0, "It is 😀.\n")


def test_reasoning_is_dimmed_on_a_terminal(
    capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr("sys.stdout", terminal)
    assert main(["run", str(bundle), PROMPT]) == 0
    assert terminal.getvalue() == "\x1b[2m── reasoning ──\nhm\x1b[0m\n── answer ──\nIt is 😀.\n"


def test_json_is_one_document(capsys: pytest.CaptureFixture[str], bundle: Path) -> None:
    code, out, _ = cli(capsys, "run", bundle, PROMPT, "--json", "--temperature", "0", "--lookup", "4")
    document = json.loads(out)
    assert code == 0
    assert document["results"][0]["output"] == ANSWER
    assert document["results"][0]["answer"] == "It is 😀."
    assert document["results"][0]["finish"] == "eos"
    assert document["statistics"]["bytes_copied"] == 0


def test_several_prompts_and_raw_ones(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    length = len(tokenizer().encode("x").ids)
    raw = scripted_bundle(tmp_path / "b", length, tokenizer().encode("yes", add_special_tokens=False).ids)
    assert cli(capsys, "run", raw, "x", "--raw")[:2] == (0, "yes\n")
    assert cli(capsys, "run", raw, "x", "x", "--raw")[:2] == (0, "── 1 ──\nyes\n── 2 ──\nyes\n")
    assert cli(capsys, "run", raw, "x", "--raw", "--stop", "s", "--seed", "1", "--top-k", "3")[:2] == (0, "ye\n")
    code, out, err = cli(capsys, "run", raw, "x", "--raw", "--max-new-tokens", "1")
    assert (code, len(out) < 5) == (0, True)
    assert "cut at --max-new-tokens" in err


def test_a_conversation_over_stdin(
    capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\n\nand then?\n"))
    code, out, err = cli(capsys, "run", bundle, "--chat", "--temperature", "0", "--max-new-tokens", "40")
    assert code == 0, err
    assert out.startswith("It is 😀.\n")
    notes = [line for line in err.splitlines() if "first token after" in line]
    assert len(notes) == 2
    assert "in the KV cache already" not in notes[0]
    assert "in the KV cache already" in notes[1]


def test_ctrl_c_ends_an_answer_and_not_the_conversation(
    capsys: pytest.CaptureFixture[str], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecompress.runtime.decoder import Decoder

    run, calls = Decoder.run, []

    def interrupted(*arguments: Any) -> Any:
        calls.append(arguments)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return run(*arguments)

    monkeypatch.setattr(Decoder, "run", interrupted)
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{PROMPT}\nand then?\n"))
    code, _, err = cli(capsys, "run", bundle, "--chat", "--temperature", "0", "--max-new-tokens", "20")
    assert code == 0
    notes = [line for line in err.splitlines() if "first token after" in line]
    assert len(notes) == 2
    assert "; 7 tokens at" in notes[0]


def test_a_reader_that_goes_away(bundle: Path) -> None:
    """`edgecompress run … | head -c 1`: no traceback, and the process ends."""
    command = [sys.executable, "-m", "edgecompress", "run", str(bundle), PROMPT, "--max-new-tokens", "100"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert process.returncode == 0
    assert b"Traceback" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x", "--temperature", "-1"], "temperature"),
        (["x", "--top-p", "2"], "top_p"),
        (["x", "--max-new-tokens", "100000"], "more than the model's context"),
        (["x", "--raw", "--system", "s"], "--system needs a chat template"),
        (["x", "--chat"], "--chat reads its turns from stdin"),
        ([" "], "the prompt is empty"),
        (["x", "--truncate"], "--truncate is for embeddings"),
        (["x", "--lookup", "3", "--temperature", "1"], "temperature 0"),
    ],
)
def test_bad_input(capsys: pytest.CaptureFixture[str], bundle: Path, arguments: list[str], message: str) -> None:
    code, out, err = cli(capsys, "run", bundle, *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[0]
    assert len(err.strip().splitlines()) == 2


def test_flags_of_generation_are_refused_elsewhere(capsys: pytest.CaptureFixture[str], minilm_bundle: Path) -> None:
    code, _, err = cli(capsys, "run", minilm_bundle, "a text", "--temperature", "0.5")
    assert code == 2
    assert "--temperature is for text generation" in err
