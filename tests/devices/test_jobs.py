"""Jobs are read with line and column of what is wrong; results are kept once, whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgecompress.cli import main
from edgecompress.devices.jobs import Plan, read_job_requests
from edgecompress.devices.store import open_store
from edgecompress.errors import OutputError, UsageError
from edgecompress.formats.codec import to_jsonable
from edgecompress.profile.run import Asked
from edgecompress.types.fleet import Failure, FleetRow
from tests.devices.test_fleet import PROFILE

BASE = Asked(shapes="1x16", threads=(2,))


def write(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_line_says_what_differs(minilm_bundle: Path, tmp_path: Path) -> None:
    path = write(
        tmp_path / "jobs.jsonl",
        '{"target": "a"}',
        "",
        '{"target": "a", "run": 1, "threads": 4, "duration_s": 1, "cold": false}',
        '{"target": "b", "shapes": "8x8", "threads": [1, 2], "scenarios": ["offline"]}',
        '{"shapes": "2x8"}',
    )
    requests = read_job_requests(path, minilm_bundle, BASE)
    assert [request.asked for request in requests] == [
        BASE,
        Asked(shapes="1x16", threads=(4,), duration_s=1, cold=False),
        Asked(shapes="8x8", threads=(1, 2), scenarios=("offline",)),
        Asked(shapes="2x8", threads=(2,)),
    ]
    plan = Plan(requests)
    assert plan.labels([]) == ["a", "b"]
    assert plan.labels(["c"]) == ["a", "b", "c"]
    jobs = plan.jobs(["a", "c", "c"])
    assert [job.label for job in jobs] == ["a", "a", "b", "a", "c"]
    assert len({job.id for job in jobs}) == 5
    assert [job.id for job in Plan(requests).jobs(["a", "c"])] == [job.id for job in jobs], "they are what they ask"
    assert len({job.payload for job in jobs}) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"target": "a" "shapes": 1}', "line 2, column 16: Expecting ',' delimiter"),
        ('{"target": "a", "shape": "1x8"}', "line 2, column 17: unknown key 'shape'"),
        ('{"target": "a", "threads": "two"}', "line 2, column 17: 'threads' must be a list, not str"),
        ('["a"]', "line 2, column 1: the document must be a table, not list"),
        ('{"target": "a", "shapes": "8by8"}', "line 2: '8by8' is no"),
        ('{"target": "a", "threads": 0}', "line 2: threads must be at least 1"),
        ('{"target": "a", "scenarios": ["x"]}', "line 2: unknown scenario 'x'"),
        ('{"target": "a", "bundle": "/nowhere"}', "line 2: there is no bundle at /nowhere"),
        ('{"target": "a"}', "line 2: the same job as .*jobs.jsonl, line 1"),
    ],
)
def test_what_is_wrong_with_a_line(minilm_bundle: Path, tmp_path: Path, line: str, message: str) -> None:
    path = write(tmp_path / "jobs.jsonl", '{"target": "a"}', line)
    with pytest.raises(Exception, match=message) as caught:
        Plan(read_job_requests(path, minilm_bundle, BASE)).jobs([])
    assert getattr(caught.value, "exit_code", 0) in (2, 7)
    assert getattr(caught.value, "hint", "")


def test_files_of_jobs_that_are_none(minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for content, message in [
        (b"\n", "holds no jobs"),
        (b"\xff", "cannot read the jobs"),
        (b'{"target": "a"}', "line 1: no bundle"),
    ]:
        (tmp_path / "jobs").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            read_job_requests(tmp_path / "jobs", None, BASE)
    with pytest.raises(UsageError, match="cannot read the jobs"):
        read_job_requests(tmp_path / "nothing", None, BASE)
    (tmp_path / "jobs").write_text('{"target": "a"\n')
    assert main(["profile", str(minilm_bundle), "--fleet", "tcp://127.0.0.1:9", "--jobs", str(tmp_path / "jobs")]) == 2
    assert "jobs, line 1, column " in capsys.readouterr().err, "before a scheduler is asked"


def row(job: str, *, good: bool = True, run: int = 0) -> FleetRow:
    failure = None if good else Failure(type="HostError", message="m", hint="w", exit_code=3)
    return FleetRow(
        job=job,
        bundle="b",
        identity="i",
        target="t",
        asked=(),
        run=run,
        profile=PROFILE if good else None,
        failure=failure,
    )


def test_the_first_result_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "out" / "fleet.jsonl"
    with open_store(path) as store:
        assert store.add(row("1", good=False))
        assert not store.has("1")
        assert store.add(row("1"))
        assert store.has("1")
        assert not store.add(row("1", run=7))
        assert not store.add(row("1", good=False))
        assert store.duplicates == 1
        assert store.add(row("2"))
    with open_store(path) as store:
        assert (store.has("1"), store.has("2"), store.rows["1"].run) == (True, True, 0)
        assert store.add(row("3"))
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["1", "1", "2", "3"]


def test_what_a_broken_off_write_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "fleet.jsonl"
    whole = json.dumps(to_jsonable(row("1"))) + "\n"
    path.write_text(whole + whole[:50])
    with open_store(path) as store:
        assert list(store.rows) == ["1"]
        store.add(row("2"))
    assert [json.loads(line)["job"] for line in path.read_text().splitlines()] == ["1", "2"]


@pytest.mark.parametrize(
    ("line", "message"),
    [("{]", r"fleet\.jsonl, line 1, column 2: "), ("{}", r"fleet\.jsonl, line 1: key 'job' is missing")],
)
def test_a_line_that_is_no_result_is_not_overwritten(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "fleet.jsonl"
    path.write_text(line + "\n")
    with pytest.raises(OutputError, match=message), open_store(path):
        pass
    assert path.read_text() == line + "\n"


def test_two_runs_do_not_write_to_one_file(tmp_path: Path) -> None:
    with (
        open_store(tmp_path / "f"),
        pytest.raises(OutputError, match="another run is writing"),
        open_store(tmp_path / "f"),
    ):
        pass
