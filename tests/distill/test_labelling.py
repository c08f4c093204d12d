"""Each prompt gets its response once, whatever breaks, and nothing more is spent than was allowed."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from edgecompress.cli import main
from edgecompress.distill.budget import Limits
from edgecompress.distill.labelling import LabellingResult, RetryPolicy, label
from edgecompress.distill.prompts import Sampling
from edgecompress.distill.responses import read_pairs
from edgecompress.errors import EndpointError, OutputError, UsageError
from edgecompress.kinds.decoder.runtime import Generator
from tests.decoder_bundle import decoder_bundle
from tests.distill.teacher_server import USAGE, TeacherServer, teaching, write_prompts
from tests.serve.running import running, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("openai")
pytest.importorskip("fastapi")
QUICK = RetryPolicy(tries=3, base_s=0.01, timeout_s=1.0)
SHORT = Sampling(max_tokens=5)


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def ask(folder: Path, teacher: TeacherServer, count: int, **options: Any) -> LabellingResult:
    prompts = write_prompts(folder / "prompts.jsonl", count)
    wishes = {"sampling": SHORT, "patience": QUICK} | options
    return label(prompts, teacher.url, folder / "store.sqlite", **wishes)


def questions(count: int) -> dict[str, int]:
    return {f"question {number}": 1 for number in range(count)}


def test_our_own_server_is_a_teacher(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.jsonl", 9)
    with prompts.open("a") as file:
        file.write('{"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}\n')
        file.write('\n{"prompt": "question 3", "id": 7}\n')
    store, sampling = tmp_path / "deep" / "store.sqlite", Sampling(max_tokens=6, temperature=0)
    with running(decoder_bundle(tmp_path / "b"), max_queue=8) as server:
        teacher = f"openai:{server.url}#tiny"
        found = label(prompts, teacher, store, sampling=sampling)
        assert (found.prompts, found.repeated, found.answered, found.failed, found.lost) == (10, 1, 10, 0, 0)
        assert found.complete
        assert found.cut == 10
        model = server.service.model
        assert isinstance(model, Generator)
        pairs = list(read_pairs(store))
        assert [messages[-1]["content"] for messages, _ in pairs] == [*questions(9), "u"]
        for messages, response in pairs:
            expected = model.generate(messages, max_new_tokens=6, temperature=0)
            assert response == expected.answer
        again = label(prompts, teacher, store, sampling=sampling)
        assert (again.found, again.answered, again.completion_tokens) == (10, 0, found.completion_tokens)
        other = label(prompts, teacher, store, sampling=Sampling(max_tokens=3, temperature=0))
        assert other.answered == 10
    assert not list(store.parent.glob(".*"))


@pytest.mark.parametrize(
    "trouble",
    [500, 502, 408, 429, "truncated", "cut", "html", "bad json", "wrong shape", "error event", "slow"],
)
def test_what_may_pass_is_tried_again(tmp_path: Path, trouble: Any) -> None:
    with teaching(lambda before, _: "ok" if before else trouble) as teacher:
        found = ask(tmp_path, teacher, 3)
        assert (found.answered, found.failed, found.retries) == (3, 0, 3)
        assert dict(teacher.asked) == dict.fromkeys(questions(3), 2)
        # where a response was on its way, it may have been paid for
        assert found.lost == (3 if isinstance(trouble, str) else 0)
        assert [text for _, text in read_pairs(tmp_path / "store.sqlite")] == [
            f"an answer to question {n}" for n in range(3)
        ]


def test_an_endpoint_says_when_to_come_again(tmp_path: Path) -> None:
    times: list[float] = []

    def script(before: int, _: str) -> Any:
        times.append(time.monotonic())
        return "ok" if len(times) > 4 else Response(status_code=429, headers={"Retry-After": "1"})

    with teaching(script) as teacher:  # tries=1: being told to wait is no failure
        found = ask(tmp_path, teacher, 1, concurrency=1, patience=RetryPolicy(tries=1, base_s=0.01))
    assert found.answered == 1
    assert all(later - earlier >= 0.99 for earlier, later in itertools.pairwise(times))


@pytest.mark.parametrize(
    ("status", "code", "said"),
    [
        (401, None, "rejects requests without an API key"),
        (403, None, "rejects"),
        (404, None, "has no model 'm'"),
        (402, None, "requires payment"),
        (429, "insufficient_quota", "requires payment"),
    ],
)
def test_what_no_other_prompt_would_change_ends_it_at_once(
    tmp_path: Path, status: int, code: str | None, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with teaching(lambda *_: JSONResponse({"error": {"message": "no", "code": code}}, status)) as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 50)
        arguments = ["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "s.sqlite")]
        assert main(arguments) == 3
        assert len(teacher.asked) <= 8
    err = capsys.readouterr().err
    assert said in err
    assert len(err.splitlines()) == 2  # what, and the hint


def test_a_host_that_is_not_known_ends_it_at_once(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 50)
    with pytest.raises(EndpointError, match=r"host of http://nowhere\.invalid/v1 is unknown"):
        label(prompts, "openai:http://nowhere.invalid/v1#m", tmp_path / "s.sqlite")


def test_a_prompt_that_is_refused_is_recorded_and_tried_by_the_next_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with teaching(lambda _, prompt: 400 if prompt.endswith("3") else "ok") as teacher:
        prompts = write_prompts(tmp_path / "p.jsonl", 6)
        arguments = ["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "r.jsonl")]
        assert main(arguments) == 3
        out = capsys.readouterr().out
        assert "5 of 6 prompts have a response" in out
        assert "1 × 400: " in out
        assert teacher.asked["question 3"] == 1
        teacher.script = lambda *_: "ok"
        assert main([*arguments, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
    assert (found["found"], found["answered"], found["failed"]) == (5, 1, 0)
    lines = [json.loads(line) for line in (tmp_path / "r.jsonl").read_text().splitlines()]
    assert [line["messages"][0]["content"] for line in lines] == list(questions(6))


@pytest.mark.parametrize("trouble", [400, 500, "filtered"])
def test_prompts_that_fail_one_after_the_other_end_it(tmp_path: Path, trouble: Any) -> None:
    with teaching(lambda *_: trouble) as teacher:
        with pytest.raises(EndpointError, match="prompts failed in a row at"):
            ask(tmp_path, teacher, 100, patience=RetryPolicy(tries=2, base_s=0.01))
        assert len(teacher.asked) < 30


def test_a_server_that_is_not_there_yet_is_waited_for(tmp_path: Path) -> None:
    with teaching() as gone:
        pass
    with pytest.raises(EndpointError, match="cannot be reached"):
        ask(tmp_path, gone, 20, concurrency=1)
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        assert connection.execute("SELECT COUNT(*) FROM attempts").fetchone() == (0,)  # nothing can have been paid
    connection.close()


def test_not_more_at_a_time_than_was_said(tmp_path: Path) -> None:
    with teaching(lambda *_: "wait") as teacher:
        done: list[LabellingResult] = []
        thread = threading.Thread(target=lambda: done.append(ask(tmp_path, teacher, 20, concurrency=3)))
        thread.start()
        wait_until("three are there", lambda: teacher.flying == 3)
        time.sleep(0.2)
        teacher.release.set()
        thread.join(20)
    assert done[0].answered == 20
    assert teacher.most_flying == 3


@pytest.mark.parametrize("unit", ["tokens", "money"])
def test_a_budget_is_never_passed(tmp_path: Path, unit: str) -> None:
    each = sum(USAGE)
    most = 30 * each

    def limits(tokens: int) -> Limits:
        if unit == "tokens":
            return Limits(tokens=tokens)
        return Limits(money=tokens, price_in=1e6, price_out=1e6)

    with teaching() as teacher:
        first = ask(tmp_path, teacher, 50, limits=limits(most))
        spent = each * sum(teacher.answered.values())
        assert first.prompt_tokens + first.completion_tokens == spent <= most
        assert first.left == 50 - first.answered > 0
        assert first.answered > 20  # what is reserved for the most that may come does not keep the rest from being used
        assert ask(tmp_path, teacher, 50, limits=limits(most)).answered == 0  # of all runs, not of each
        last = ask(tmp_path, teacher, 50, limits=limits(10**9))
        assert last.complete
        assert dict(teacher.answered) == questions(50)
        if unit == "money":
            assert last.money == 50 * each


def test_what_is_not_counted_counts_in_full(tmp_path: Path) -> None:
    with teaching(lambda *_: "no usage") as teacher:
        found = ask(tmp_path, teacher, 2)
    assert found.completion_tokens == 2 * 5
    assert found.prompt_tokens >= 2 * len("question 0")
    with teaching(lambda before, _: "ok" if before else "truncated") as teacher:
        lost = ask(tmp_path, teacher, 1, limits=Limits(price_in=0, price_out=1e6))
    assert lost.lost == 1
    assert lost.money == 5 + USAGE[1]
    with pytest.raises(UsageError, match="needs token prices"):
        Limits(money=1.0)


@pytest.mark.parametrize(
    ("line", "column", "said"),
    [
        ('{"prompt": "x"', 15, "delimiter"),
        ('{"prompt": 7}', 2, "'prompt' must be a string"),
        ('{"prompt": " "}', 2, "'prompt' must be a string"),
        ('{"text": "x"}', 1, "needs one of 'prompt' and 'messages'"),
        ('{"prompt": "x", "messages": []}', 1, "needs one of 'prompt' and 'messages'"),
        ('["x"]', 1, "not a JSON object"),
        ('{"id": 1, "messages": []}', 11, "'messages' must be a list"),
        ('{"messages": [{"role": "user"}]}', 2, "'messages' needs a 'role'"),
        ('{"prompt": "\\ud800"}', 13, "surrogate"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: str, column: int, said: str) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text(f'{{"prompt": "good"}}\n\n{line}\n')
    with pytest.raises(UsageError) as wrong:
        label(prompts, "openai:http://localhost:1/v1#m", tmp_path / "s.sqlite")
    assert f"line 3, column {column}: " in wrong.value.message
    assert said in wrong.value.message
    assert not (tmp_path / "s.sqlite").exists()


def test_no_prompts_at_all(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text("\n")
    for path in (tmp_path / "p.jsonl", tmp_path / "none.jsonl"):
        with pytest.raises(UsageError, match=r"are empty|cannot be read"):
            label(path, "openai:http://localhost:1/v1#m", tmp_path / "s.sqlite")
    assert main(["label", "--teacher", "openai:http://h/v1#m", "--data", "p", "-o", "x.csv"]) == 2


def test_what_was_spent_and_left_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prompts = write_prompts(tmp_path / "p.jsonl", 20)
    prompts.write_text(prompts.read_text() + '{"prompt": "question 1"}\n')
    prices = ["--price-in", "1000", "--price-out", "2000", "--budget-tokens", "200", "--max-tokens", "5"]
    with teaching(lambda before, prompt: "ok" if before or prompt != "question 0" else "cut") as teacher:
        arguments = ["label", "--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "s.sqlite")]
        assert main([*arguments, *prices, "--concurrency", "1"]) == 3
        answered = sum(teacher.answered.values())
    out = capsys.readouterr().out
    assert f"{answered} of 20 prompts have a response" in out
    assert f"{20 - answered} prompts were not asked: the budget does not cover" in out
    assert "1 duplicate prompts were asked once" in out
    assert "1 requests were sent and got no response" in out
    bound = len("userquestion 0") + 64 + 16
    money = (10 * answered + bound) / 1000 + (5 * answered + 5) / 500
    assert f"{10 * answered + bound} prompt tokens and {5 * answered + 5} response tokens, {money:.4f} spent" in out
    assert main([*arguments, "--budget-money", "1"]) == 2
    assert "--price-in" in capsys.readouterr().err


@contextlib.contextmanager
def labelling(folder: Path, teacher: TeacherServer, count: int) -> Any:
    """As a process of its own."""
    prompts = write_prompts(folder / "prompts.jsonl", count)
    arguments = ["--teacher", teacher.url, "--data", str(prompts), "-o", str(folder / "store.sqlite")]
    process = subprocess.Popen(
        [sys.executable, "-m", "edgecompress", "label", *arguments, "--concurrency", "4", "--max-tokens", "5"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"},
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_goes_on(tmp_path: Path, how: signal.Signals) -> None:
    with teaching(lambda _, prompt: "ok" if int(prompt.split()[1]) < 10 else "wait") as teacher:
        with labelling(tmp_path, teacher, 30) as process:
            wait_until(
                "some are stored, some on their way", lambda: teacher.flying == 4 and len(teacher.answered) == 10
            )
            with pytest.raises(OutputError, match="another run is writing"):
                ask(tmp_path, teacher, 30)
            process.send_signal(how)
            out, err = process.communicate(timeout=20)
        assert process.returncode == (-9 if how is signal.SIGKILL else 130)
        if how is not signal.SIGKILL:
            assert "interrupted; 10 responses are in" in err
            assert "Traceback" not in err
            assert out == ""
        teacher.release.set()
        wait_until("the server let go", lambda: teacher.flying == 0)
        found = ask(tmp_path, teacher, 30)
        assert (found.found, found.answered) == (10, 20)
        assert found.lost == 4  # were on their way: these, and no others, may be paid twice
        assert all(teacher.asked[f"question {number}"] == 1 for number in range(10))
        assert sum(teacher.asked.values()) == 34
    with sqlite3.connect(tmp_path / "store.sqlite") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert connection.execute("SELECT COUNT(*) FROM responses").fetchone() == (30,)
    connection.close()
