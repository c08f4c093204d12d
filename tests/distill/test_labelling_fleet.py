"""A labelling over a real Dask scheduler and worker processes: shares of the prompts, each response once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.local_fleet import LocalFleet
from edgecompress.cli import main
from edgecompress.devices.fleet import connect_fleet
from edgecompress.distill import fleet_labelling
from edgecompress.distill.budget import Limits
from edgecompress.distill.fleet_labelling import label_on_fleet
from edgecompress.distill.labelling import LabellingResult, RetryPolicy
from edgecompress.distill.prompts import Sampling
from edgecompress.distill.responses import read_pairs
from edgecompress.errors import DeviceError, EdgeCompressError, InterruptedRunError
from tests.distill.teacher_server import USAGE, TeacherServer, teaching, texts_of, write_prompts
from tests.serve.running import wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("distributed")
pytest.importorskip("openai")
pytest.importorskip("fastapi")
KEY = "sk-of-the-fleet-Zq7Secret0815"
QUICK = RetryPolicy(tries=2, base_s=0.01, timeout_s=10.0)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Two workers, which have the key in their environment."""
    with LocalFleet(tmp_path_factory.mktemp("fleet"), {"OPENAI_API_KEY": KEY}) as made:
        for name in ("one", "two"):
            made.add_worker(name, "any")
        with connect_fleet(made.address) as client:
            client.wait_for_workers(2, timeout=60)
        yield made


def ask(folder: Path, fleet: LocalFleet, teacher: TeacherServer, count: int, **options: Any) -> LabellingResult:
    prompts = write_prompts(folder / "prompts.jsonl", count)
    wishes = {"sampling": Sampling(max_tokens=5), "patience": QUICK, "concurrency": 2, "share": 4} | options
    return label_on_fleet(prompts, teacher.url, folder / "store.sqlite", fleet.address, **wishes)


def test_shares_are_merged(tmp_path: Path, fleet: LocalFleet, capsys: pytest.CaptureFixture[str]) -> None:
    with teaching() as teacher:
        found = ask(tmp_path, fleet, teacher, 22)
        assert (found.answered, found.failed, found.lost) == (22, 0, 0)
        assert [text for _, text in read_pairs(tmp_path / "store.sqlite")] == [
            f"an answer to question {n}" for n in range(22)
        ]
        assert found.prompt_tokens == 22 * USAGE[0]
        prompts = write_prompts(tmp_path / "prompts.jsonl", 24)
        arguments = ["--teacher", teacher.url, "--data", str(prompts), "-o", str(tmp_path / "store.sqlite")]
        assert main(["label", *arguments, "--fleet", fleet.address, "--max-tokens", "5"]) == 0
        assert "22 of them from earlier runs" in capsys.readouterr().out
        assert teacher.answered == {f"question {n}": 1 for n in range(24)}
        assert teacher.keys == {KEY}
    assert KEY not in texts_of(tmp_path) + texts_of(fleet.folder)
    for name in ("one", "two"):  # handed in, and forgotten
        assert not list(fleet.cache(name).rglob("*.sqlite"))


def test_errors_and_failures_come_back(tmp_path: Path, fleet: LocalFleet) -> None:
    with teaching(lambda _, prompt: 400 if prompt.endswith("3") else "ok") as teacher:
        found = ask(tmp_path, fleet, teacher, 6)
        assert (found.answered, found.failed) == (5, 1)
        assert found.reasons[0].startswith("1 × 400: ")
        teacher.script = lambda *_: 401
        with pytest.raises(EdgeCompressError, match=r"rejects the API key \(401\)") as refused:
            ask(tmp_path, fleet, teacher, 8)
        assert refused.value.exit_code == 3
        teacher.script = lambda *_: "ok"
        assert ask(tmp_path, fleet, teacher, 8).complete
    assert KEY not in texts_of(tmp_path) + texts_of(fleet.folder)


def test_a_budget_holds_for_all_workers_together(tmp_path: Path, fleet: LocalFleet) -> None:
    each, most = sum(USAGE), 25 * sum(USAGE)
    with teaching() as teacher:
        found = ask(tmp_path, fleet, teacher, 40, limits=Limits(tokens=most))
        assert each * sum(teacher.answered.values()) <= most
        assert found.prompt_tokens + found.completion_tokens <= most
        assert found.answered > 8
        assert found.answered + found.left == 40


def test_a_run_that_is_interrupted_stops_its_workers(tmp_path: Path, fleet: LocalFleet) -> None:
    with teaching(lambda *_: "wait") as teacher:

        def show(_: str) -> None:
            if teacher.flying == 4:
                raise KeyboardInterrupt

        with pytest.raises(InterruptedRunError, match="interrupted; 0 responses"):
            ask(tmp_path, fleet, teacher, 12, show=show)
        wait_until("nobody asks any more", lambda: teacher.flying == 0)
        asked = sum(teacher.asked.values())
        teacher.release.set()
        assert ask(tmp_path, fleet, teacher, 12).complete
        assert asked == 4


def test_the_share_of_a_lost_worker_goes_to_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fleet_labelling, "_GONE_S", 1.0)
    (tmp_path / "fleet").mkdir()
    with LocalFleet(tmp_path / "fleet") as fleet, teaching(lambda *_: "wait") as teacher:
        for name in ("one", "two"):
            fleet.add_worker(name, "any")
        with connect_fleet(fleet.address) as client:
            client.wait_for_workers(2, timeout=60)
        done: list[LabellingResult] = []
        thread = threading.Thread(target=lambda: done.append(ask(tmp_path, fleet, teacher, 12)))
        thread.start()
        wait_until("each has a share", lambda: teacher.flying == 4)
        fleet.kill("one")
        wait_until("its requests are gone", lambda: teacher.flying < 4)
        teacher.release.set()
        thread.join(60)
        assert done[0].answered == 12
        assert len(list(read_pairs(tmp_path / "store.sqlite"))) == 12
        assert set(teacher.asked) == {f"question {n}" for n in range(12)}
        assert sum(teacher.asked.values()) <= 12 + 2  # two were on their way
        fleet.kill("two")
        with pytest.raises(DeviceError, match="the scheduler has no worker"):
            ask(tmp_path, fleet, teacher, 20)
