"""The store, what is read from it, and the keys that are never in it."""

from __future__ import annotations

import logging
import os
import pickle
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from edgecompress.cli import main
from edgecompress.distill.data import read_data
from edgecompress.distill.endpoint import Endpoint, KeySource, Secret, parse_endpoint, read_secret
from edgecompress.distill.labelling import RetryPolicy, label
from edgecompress.distill.prompts import Sampling
from edgecompress.distill.responses import failures, open_store, read_pairs, read_rows, write_jsonl
from edgecompress.errors import OutputError, UsageError
from tests.distill.teacher_server import teaching, texts_of, write_prompts

pytest.importorskip("openai")
pytest.importorskip("fastapi")
KEY = "sk-proj-Zq7TheSecretOfTheTest0815Xw"
QUICK = RetryPolicy(tries=2, base_s=0.01, timeout_s=1.0)
HERE = Endpoint("http://localhost/v1", "m")


def test_pairs_are_read_in_the_prompts_order(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    kinds = {"question 0": "think", "question 1": "length"}
    with teaching(lambda _, prompt: kinds.get(prompt, "ok")) as teacher:
        found = label(write_prompts(tmp_path / "p.jsonl", 12), teacher.url, store)
    assert found.cut == 1
    pairs = list(read_pairs(store))
    assert [messages for messages, _ in pairs] == [[{"role": "user", "content": f"question {n}"}] for n in range(12)]
    assert [text for _, text in pairs] == [f"an answer to question {n}" for n in range(12)]
    assert len(list(read_pairs(store, whole=True))) == 11
    thought = list(read_pairs(store, think=("<think>", "</think>")))
    assert thought[0][1] == "<think>\nhm\n</think>\n\nan answer to question 0"
    assert thought[1:] == pairs[1:]
    assert write_jsonl(store, tmp_path / "r.jsonl") == 12
    assert list(read_pairs(tmp_path / "r.jsonl")) == pairs
    assert list(read_rows(tmp_path / "r.jsonl")) == list(read_rows(store))
    taught = read_data(tmp_path / "r.jsonl")  # as `distill` does
    assert [(list(pair.messages), pair.response) for pair in taught.pairs] == pairs
    (tmp_path / "r.jsonl").write_text('{"messages": []}\n')
    with pytest.raises(UsageError, match="line 1, column 1"):
        list(read_pairs(tmp_path / "r.jsonl"))
    with pytest.raises(UsageError, match="no responses at"):
        list(read_pairs(tmp_path / "none.sqlite"))


def test_what_is_no_store_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "s.sqlite"
    path.write_bytes(b"precious" * 1000)
    with pytest.raises(OutputError, match="is not a response store"), open_store(path, HERE, Sampling()):
        pass
    assert path.read_bytes() == b"precious" * 1000
    other = tmp_path / "o.sqlite"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(OutputError, match="is not a response store"), open_store(other, HERE, Sampling()):
        pass


def test_a_full_disk_is_said_and_the_store_stays_whole(tmp_path: Path) -> None:
    store = tmp_path / "s.sqlite"
    script = (
        "import resource, signal, sys\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))\n"
        "from edgecompress.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    with teaching() as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 160)
        arguments = ["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(store)]
        done = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2, done.stderr
        assert "cannot be written" in done.stderr
        assert "Traceback" not in done.stderr
        stored = len(list(read_pairs(store)))
        assert 0 < stored < 160
        found = label(prompts, teacher.url, store)
    assert (found.found, found.complete) == (stored, True)


@pytest.mark.parametrize(
    "address",
    [
        f"openai:https://user:{KEY}@host/v1#m",
        f"openai:https://{KEY}@host/v1#m",
        f"openai:https://host/v1?api_key={KEY}#m",
        f"openai:https://host/{KEY}/v1#m",
        f"openai:https://host/v1#{KEY}",
        f"openai:{KEY}",
        f"openai:ftp://host/{KEY}",
        f"openai:https://host:{KEY}/v1#m",
        f"openai:https://host/v1/{KEY}",
        f"{KEY}",
    ],
)
def test_a_key_in_the_address_is_refused_and_not_repeated(
    tmp_path: Path, address: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    prompts = write_prompts(tmp_path / "p.jsonl", 1)
    for flags in ([], ["--json"]):
        assert (
            main(["label", "--teacher", address, "--data", str(prompts), "-o", str(tmp_path / "s.sqlite"), *flags]) == 2
        )
        captured = capsys.readouterr()
        assert KEY not in captured.out + captured.err
        assert "https://host/v1#model" in captured.err
    assert not (tmp_path / "s.sqlite").exists()


def test_a_key_goes_over_no_network_unhidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    for host in ("api.example.com", "8.8.8.8"):
        with pytest.raises(UsageError, match="sent unencrypted") as wrong:
            read_secret(Endpoint(f"http://{host}/v1", "m"))
        assert KEY not in wrong.value.message + wrong.value.hint
    for url in ("https://api.example.com/v1", "http://127.0.0.1:8000/v1", "http://[::1]:8000/v1", "http://gpu-box/v1"):
        assert read_secret(Endpoint(url, "m"))
    assert not read_secret(Endpoint("http://api.example.com/v1", "m"), KeySource(variable="UNSET_OPENAI_KEY"))
    monkeypatch.setenv("OPENAI_API_KEY", "two words")
    with pytest.raises(UsageError, match="is not an API key") as wrong:
        read_secret(Endpoint("https://h/v1", "m"))
    assert "two words" not in wrong.value.message


def test_a_secret_does_not_show_itself() -> None:
    secret = Secret(KEY)
    assert KEY not in repr(secret) + str(secret) + f"{secret!r:>40}"
    with pytest.raises(TypeError):
        pickle.dumps(secret)
    assert secret.scrub(f"wrong key {KEY}!") == "wrong key ***!"
    assert secret.scrub(f"key {KEY[:12]}****{KEY[-4:]}") == f"key *******{KEY[-4:]}"
    assert secret.scrub("nothing of it") == "nothing of it"
    assert Secret(None).scrub("text") == "text"
    assert Secret("short").scrub("a short one, shor") == "a *** one, shor"


def test_the_address_is_read() -> None:
    endpoint = parse_endpoint("openai:https://api.example:8443/v1/#org/model-7b:free")
    assert endpoint == Endpoint("https://api.example:8443/v1", "org/model-7b:free")
    assert parse_endpoint(str(endpoint)) == endpoint
    assert endpoint.limit_name == "max_tokens"
    assert parse_endpoint("openai:https://api.openai.com/v1#o").limit_name == "max_completion_tokens"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 429, 500, "echo key", "error event", "ok"])
def test_the_key_is_written_nowhere(
    tmp_path: Path, status: int | str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The teacher repeats it in whatever it says."""
    monkeypatch.setenv("MY_KEY", KEY)
    log = tmp_path / "log"
    handler = logging.FileHandler(log)
    root = logging.getLogger()
    root.addHandler(handler)
    loggers = [root, *(logging.getLogger(name) for name in ("openai", "httpx2", "httpcore2", "asyncio"))]
    levels = [each.level for each in loggers]
    for each in loggers:
        each.setLevel(logging.DEBUG)
    try:
        with teaching(lambda *_: status) as teacher:
            prompts = write_prompts(tmp_path / "p.jsonl", 3)
            arguments = ["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "r.jsonl")]
            main([*arguments, "--api-key-env", "MY_KEY", "--tries", "1"])
            main([*arguments, "--api-key-env", "MY_KEY", "--tries", "1", "--json"])
            assert teacher.keys == {KEY}  # it was used
    finally:
        root.removeHandler(handler)
        handler.close()
        for each, level in zip(loggers, levels, strict=True):
            each.setLevel(level)
    captured = capsys.readouterr()
    assert log.stat().st_size > 0
    for text in (captured.out, captured.err, texts_of(tmp_path)):
        for start in range(0, len(KEY) - 11):
            assert KEY[start : start + 12] not in text


def test_the_key_is_in_no_log_of_the_client_library(tmp_path: Path) -> None:
    with teaching(lambda *_: 500) as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 2)
        arguments = ["--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "s.sqlite"), "--tries", "2"]
        done = subprocess.run(
            [sys.executable, "-m", "edgecompress", "label", *arguments],
            capture_output=True,
            text=True,
            env=os.environ | {"OPENAI_API_KEY": KEY, "OPENAI_LOG": "debug"},
            timeout=60,
        )
        assert done.returncode == 3
        assert teacher.keys == {KEY}
    assert "DEBUG" in done.stderr
    assert KEY not in done.stdout + done.stderr + texts_of(tmp_path)
    assert [reason[:5] for _, reason in failures(tmp_path / "s.sqlite")] == ["500: "] * 2


def test_a_key_may_come_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    (tmp_path / "out").mkdir()
    with teaching() as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 1)
        arguments = ["--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "out" / "s.sqlite")]
        assert main(["label", *arguments, "--api-key-file", str(tmp_path / "key")]) == 0
        assert teacher.keys == {KEY}
        (tmp_path / "key").write_text(f"{KEY} {KEY}")
        assert main(["label", *arguments, "--api-key-file", str(tmp_path / "key")]) == 2
    captured = capsys.readouterr()
    assert KEY not in captured.out + captured.err + texts_of(tmp_path / "out")


def test_a_prompt_with_the_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    (tmp_path / "p.jsonl").write_text(f'{{"prompt": "x"}}\n{{"prompt": "my key is {KEY}"}}\n')
    with teaching() as teacher, pytest.raises(UsageError, match=r"prompt 2 of .* contains the API key") as wrong:
        label(tmp_path / "p.jsonl", teacher.url, tmp_path / "s.sqlite", patience=QUICK)
    assert KEY not in wrong.value.message
