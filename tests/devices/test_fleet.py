"""Jobs over a real Dask scheduler and real workers: each job's result once, whatever is lost."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from benchmarks.local_fleet import LocalFleet
from edgecompress.cli import main
from edgecompress.devices.fleet import Fleet, connect_fleet, labels_of
from edgecompress.devices.jobs import Job, JobRequest, Plan
from edgecompress.devices.store import open_store
from edgecompress.errors import DeviceError
from edgecompress.formats.codec import dumps, from_jsonable
from edgecompress.profile.run import Asked
from edgecompress.types.fleet import FleetResult, FleetRow
from edgecompress.types.profile import Host, Noise, Profile
from tests.devices import standin
from tests.devices.conftest import running_in, wait_until

pytestmark = pytest.mark.slow

pytest.importorskip("distributed")
QUICK = Asked(shapes="1x16", threads=(1,), percentile=50, cold=False, operators=False)
FLAGS = ["--shapes", "1x16", "--threads", "1", "--percentile", "50", "--no-cold-start", "--no-operators"]
LABELS = {"one": "steady", "two": "steady", "three": "weak", "four": "weak", "five": "other"}


PROFILE = Profile(
    tool_version="0",
    bundle="b",
    identity="i",
    name="n",
    task="t",
    precision="fp32",
    target="local",
    bundle_bytes=1,
    verified=True,
    host=Host(
        cpu="c",
        arch="a",
        isa=(),
        cores=1,
        system="s",
        kernel="k",
        python="3",
        governor=None,
        clock_mhz=(),
        load_average_1min=None,
        memory_bytes=None,
        cpu_limit=None,
        virtual_machine=False,
    ),
    noise=Noise(loop_ms=1.0, spread=0.0, slowest_over_fastest=1.0, noisy=False),
    measurements=(),
)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalFleet]:
    """Its scheduler gives a job up when its worker was lost twice."""
    folder = tmp_path_factory.mktemp("fleet")
    environment = {
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "STANDIN": str(folder),
    }
    (folder / "profile.json").write_text(dumps(PROFILE))
    with LocalFleet(folder, environment) as started:
        for name, label in LABELS.items():
            started.add_worker(name, label)
        with connect_fleet(started.address) as client:
            wait_until("all are there", lambda: sum(map(len, labels_of(client).values())) == len(LABELS), 60)
        yield started


@pytest.fixture
def client(fleet: LocalFleet) -> Iterator[Any]:
    with connect_fleet(fleet.address) as connected:
        yield connected


def jobs_of(bundle: Path, number: int, label: str) -> list[Job]:
    return Plan([JobRequest(bundle=bundle, label=label, asked=QUICK, run=run) for run in range(number)]).jobs([])


def run(client: Any, jobs: list[Job], path: Path | None = None, **options: Any) -> FleetResult:
    with open_store(path) as store:
        return Fleet(client, store, lambda _: None, **options).run(jobs)


def test_real_profiles_on_every_label(
    fleet: LocalFleet, minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bundle goes to each worker once; what is kept is not run again; what was altered there is sent again."""
    trace = tmp_path / "requests.jsonl"
    trace.write_text('{"tokens": 12}\n')
    call = ["profile", str(minilm_bundle), "--fleet", fleet.address, *FLAGS, "--shapes", f"1x8,trace:{trace}"]
    both = [*call, "--label", "steady", "--label", "other", "--label", "other", "-o", str(tmp_path / "out")]
    assert main([*both, "--json"]) == 0
    found = from_jsonable(FleetResult, json.loads(capsys.readouterr().out))
    assert [row.target for row in found.rows] == ["steady", "other"]
    assert found.workers == {"other": 1, "steady": 2, "weak": 2}
    for row in found.rows:
        assert row.profile is not None
        assert [m.workload for m in row.profile.measurements] == ["1x8", "requests.jsonl"]
        assert row.profile.bundle == row.bundle == minilm_bundle.name
        assert row.attempts == 1
    lines = (tmp_path / "out" / "fleet.jsonl").read_text().splitlines()
    assert {from_jsonable(FleetRow, json.loads(line)).job for line in lines} == {row.job for row in found.rows}
    assert main(both) == 0
    assert "2 of 2 jobs have a profile; 2 of them from an earlier run" in capsys.readouterr().out
    there = next(fleet.cache("five").glob("edgecompress/device/bundles/*/tokenizer.json"))
    there.write_text("altered")
    assert main([*call, "--label", "other", "-o", str(tmp_path / "again")]) == 0
    assert there.read_bytes() == (minilm_bundle / "tokenizer.json").read_bytes()


def test_jobs_of_a_lost_worker_go_to_another(
    fleet: LocalFleet, client: Any, minilm_bundle: Path, tmp_path: Path
) -> None:
    """Of many one stalls; its worker is killed; every job has one result, and that job was begun twice."""
    stalled = fleet.folder / "stalled"
    stalled.unlink(missing_ok=True)
    results = tmp_path / "fleet.jsonl"

    def kill() -> None:
        wait_until("the others are done", lambda: results.exists() and results.read_bytes().count(b"\n") == 39, 60)
        fleet.kill(stalled.read_text())

    killer = threading.Thread(target=kill)
    killer.start()
    found = run(client, jobs_of(minilm_bundle, 40, "steady"), results, task=standin.stalling)
    killer.join()
    assert found.failed == ()
    assert Counter(row.attempts for row in found.rows) == {1: 39, 2: 1}
    assert (found.retried, found.duplicates, found.found) == (1, 0, 0)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert Counter(line["job"] for line in lines) == Counter(row.job for row in found.rows)
    assert len({line["worker"] for line in lines}) == 1, "the killed one gave none"
    again = run(client, jobs_of(minilm_bundle, 41, "steady"), results, task=standin.quick)
    assert (again.found, len(again.rows), len(results.read_text().splitlines())) == (40, 41, 41)


def test_a_worker_that_lacks_the_files_says_so(fleet: LocalFleet, client: Any, minilm_bundle: Path) -> None:
    """As one that came later: they are sent, and the job is run again; nothing of that is an attempt."""
    (job,) = jobs_of(minilm_bundle, 1, "other")
    with open_store(None) as store:
        one = Fleet(client, store, lambda _: None)
        sent: Future[None] = Future()
        sent.set_result(None)
        (address,) = labels_of(client)["other"]
        one._sending[address, job.payload] = sent
        for there in fleet.cache("five").glob("edgecompress/device/bundles/*/model.onnx"):
            there.unlink()
        (row,) = one.run([job]).rows
    assert row.profile is not None, row.failure
    assert row.attempts == 1


def test_what_fails_there(client: Any, minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgecompress.devices import fleet as module

    (row,) = run(client, jobs_of(minilm_bundle, 1, "other"), task=standin.raising).rows
    assert row.failure is not None
    assert (row.failure.type, row.failure.message) == ("DeviceError", "RuntimeError: a defect")
    refused = Plan([JobRequest(bundle=minilm_bundle, label="other", asked=Asked(shapes="1x9999"))]).jobs([])
    (row,) = run(client, refused).rows
    assert row.failure is not None
    assert (row.failure.type, row.failure.exit_code) == ("UsageError", 2)
    assert row.failure.message.startswith("other, tcp://127.0.0.1:")
    monkeypatch.setattr(module, "__version__", "9.9")
    (row,) = run(client, jobs_of(minilm_bundle, 1, "other")).rows
    assert row.failure is not None
    assert row.failure.message.endswith("has edgecompress 0.1.0, this machine 9.9")


def test_a_label_that_nobody_carries(
    fleet: LocalFleet, minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("edgecompress.devices.fleet._WAIT_S", 0.1)
    call = ["profile", str(minilm_bundle), "--fleet", fleet.address, *FLAGS]
    assert main([*call, "--label", "raspberry-pi-5"]) == 3
    said = capsys.readouterr().err
    assert "has the label 'raspberry-pi-5'" in said
    assert "Labels present: other (1), steady (" in said
    assert '--nthreads 1 --resources "target:raspberry-pi-5=1"' in said


def test_no_scheduler(minilm_bundle: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("edgecompress.devices.fleet._CONNECT_S", 0.2)
    assert main(["profile", str(minilm_bundle), "--fleet", "tcp://127.0.0.1:9", *FLAGS]) == 3
    assert "no Dask scheduler answers at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert main(["profile", str(minilm_bundle), "--fleet", "127.0.0.1:9", *FLAGS]) == 2
    assert "is not the address of a scheduler" in capsys.readouterr().err


def test_a_job_that_kills_its_workers_fails(client: Any, minilm_bundle: Path, tmp_path: Path) -> None:
    """It is not tried for ever; and once its label is gone, a job says so. Another run tries a failed job again."""
    results = tmp_path / "fleet.jsonl"
    (job,) = jobs_of(minilm_bundle, 1, "weak")
    (row,) = run(client, [job], results, task=standin.deadly).rows
    assert row.failure is not None
    assert row.failure.message.startswith("its worker was lost 2 times, last tcp://127.0.0.1:")
    found = run(client, [job], results, gone_s=0.3)
    assert found.found == 0
    assert found.rows[0].failure is not None
    assert found.rows[0].failure.message == "no worker with the label 'weak' for 0.3 s"
    assert found.rows[0].failure.exit_code == DeviceError.exit_code


def test_an_interrupt_ends_the_profile_there(fleet: LocalFleet, minilm_bundle: Path) -> None:
    process = profiling(fleet, minilm_bundle, "steady")
    wait_until("it runs", lambda: any(running(fleet)))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130
    wait_until("it ends there", lambda: not any(running(fleet)))


def test_a_killed_workers_profile_ends_too(fleet: LocalFleet, minilm_bundle: Path) -> None:
    process = profiling(fleet, minilm_bundle, "other")
    wait_until("it runs", lambda: any(running(fleet)))
    fleet.kill("five")
    wait_until("it ends there", lambda: not any(running(fleet)))
    process.send_signal(signal.SIGINT)
    assert process.wait(30) == 130


def test_a_lost_scheduler(fleet: LocalFleet, client: Any, minilm_bundle: Path, tmp_path: Path) -> None:
    """Results that came are kept."""
    results = tmp_path / "fleet.jsonl"
    killer = threading.Thread(
        target=lambda: (
            wait_until("some are done", lambda: results.exists() and results.read_bytes().count(b"\n") >= 5),
            fleet.kill_scheduler(),
        )
    )
    killer.start()
    with pytest.raises(DeviceError, match="the connection to the scheduler was lost"):
        run(client, jobs_of(minilm_bundle, 200, "steady"), results, task=standin.quick)
    killer.join()
    with open_store(results) as store:
        assert 5 <= len(store.rows) < 200


def profiling(fleet: LocalFleet, bundle: Path, label: str) -> subprocess.Popen[bytes]:
    """A call that would take a minute."""
    command = [sys.executable, "-m", "edgecompress", "profile", str(bundle), "--fleet", fleet.address, *FLAGS]
    return subprocess.Popen([*command, "--duration", "60", "--label", label])


def running(fleet: LocalFleet) -> list[int]:
    return [pid for name in LABELS for pid in running_in(fleet.cache(name))]
