"""The benchmarks' suite: all of them are in its table, a regression is seen, noise is not, and history is git's."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite
from benchmarks.history import history, series, write_page
from benchmarks.peer_venvs import LISTS, PEERS, ready, requirements
from benchmarks.ratios import RESULTS, check, host_of, ratios, read_lines

FOLDER = Path(suite.__file__).parent
HOST = {"cpu": "A", "cpu_family_model": "25/17", "features": ["avx2"]}


def text(ratio: float, *, spread: float = 0.05, host: dict[str, Any] = HOST, name: str = "ours") -> str:
    row = {
        "kind": "row", "name": name, "shape": "1x16", "threads": 2,
        "ratio_median": ratio, "ratio_p10": ratio * (1 - spread), "ratio_p90": ratio * (1 + spread),
        "best_peer": {"name": "peer", "ratio_median": 1.5, "ratio_p10": 1.4, "ratio_p90": 1.6},
    }  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in ({"kind": "header", "host": host}, row))


def test_every_benchmark_is_in_the_table() -> None:
    there = {path.stem for path in FOLDER.glob("bench_*.py")} | {"cold_start", "decoder_quality"}
    assert {bench.module for bench in suite.BENCHES.values()} == there
    for name, bench in suite.BENCHES.items():
        assert bench.minutes > 0
        assert not bench.results or bench.results.endswith(".jsonl"), name


def test_a_regression_is_seen_and_noise_is_not() -> None:
    assert check(text(3.0), text(2.9)).worse == ()
    assert check(text(3.0), text(3.6)).worse == ()
    found = check(text(3.0), text(2.6))
    assert [(old.median, new.median) for old, new in found.worse] == [(3.0, 2.6)]
    assert found.compared == 2
    assert check(text(3.0, spread=0.2), text(2.6, spread=0.2)).worse == ()


def test_less_is_better_for_times() -> None:
    def line(ratio: float) -> str:
        over = {"median": ratio, "p10": ratio * 0.98, "p90": ratio * 1.02}
        return "".join(
            json.dumps(row) + "\n"
            for row in ({"host": HOST}, {"variant": "v", "shape": "1x16", "time_over_chosen": over})
        )

    assert check(line(1.2), line(1.0)).worse == ()
    assert len(check(line(1.2), line(1.4)).worse) == 1


def test_another_kind_of_host_is_not_compared() -> None:
    found = check(text(3.0), text(1.0, host=HOST | {"cpu": "B"}))
    assert found.compared == 0
    assert found.why.startswith("not comparable: stored on A")
    assert "no row is in both" in check(text(3.0).replace("best_peer", "x"), text(3.0, name="other")).why
    assert "does not say" in check(text(3.0), '{"kind": "row"}').why


def test_check_ends_with_1_where_something_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    (tmp_path / "encoder.jsonl").write_text(text(3.0))
    fresh = tmp_path / "fresh.jsonl"
    for ratio, code in ((2.9, 0), (2.0, 1)):
        fresh.write_text(text(ratio))
        assert suite.main(["check", "encoder", "--fresh", str(fresh)]) == code
    assert "WORSE  ours, 1x16, threads 2: ratio: 3.0" in capsys.readouterr().out
    fresh.write_text(text(2.0, host=HOST | {"cpu": "B"}))
    assert suite.main(["check", "encoder", "--fresh", str(fresh)]) == 2


def test_the_stored_results_have_ratios_that_are_told_apart() -> None:
    for name, least in (("encoder", 110), ("cpu_attention", 100), ("graph_choices", 30), ("decode_step", 8)):
        rows = read_lines((RESULTS / f"{name}.jsonl").read_text(encoding="utf-8"))
        found = ratios(rows)
        assert len(found) >= least, name
        assert host_of(rows) is not None, name
        assert all(ratio.p10 <= ratio.median <= ratio.p90 for ratio in found.values()), name
        assert check(*[(RESULTS / f"{name}.jsonl").read_text(encoding="utf-8")] * 2).worse == ()


def test_what_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "has_gpu", lambda: False)
    assert suite.run(["gpu_attention"], tmp_path) == 1
    assert "not run: gpu_attention: it needs an NVIDIA GPU, and none is here" in capsys.readouterr().out


def test_what_is_needed_is_made_once(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(arguments: list[str]) -> None:
        asked.append(arguments)
        target = arguments[arguments.index("-o") + 1] if "-o" in arguments else arguments[2]
        Path(target).mkdir()

    made = suite.Made(tmp_path, run)
    bench = suite.BENCHES["generation"]
    for _ in range(2):
        words = suite.command(bench, made)
    assert words[:2] == ["-m", "benchmarks.bench_generation"]
    assert [each[1] for each in asked] == [
        "benchmarks.r1_shape",
        "edgecompress",
        "benchmarks.small_decoder",
        "edgecompress",
    ]


def test_peers_have_exact_versions_and_torch_goes_first() -> None:
    assert {path.stem for path in LISTS.glob("*.txt")} == {*PEERS, "openvino"}
    for name in PEERS:
        wanted = requirements(name)
        assert wanted[0] == "torch==2.13.0"
        assert ready(name, Path("nowhere")) is None


def test_history_is_gits(tmp_path: Path) -> None:
    path = tmp_path / "encoder.jsonl"
    assert not (tmp_path / ".git").exists()

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-C", str(tmp_path), *arguments], check=True, capture_output=True)

    git("init", "-q")
    for number, ratio in enumerate((2.0, 2.5)):
        path.write_text(text(ratio))
        git("add", path.name)
        date = f"2026-01-0{number + 1}T00:00:00"
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "x"],
            check=True, env={"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date, "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    path.write_text(text(3.0))
    assert [day for day, _ in history(path)] == ["2026-01-01", "2026-01-02", "now"]
    (first, _) = series(path).values()
    assert [ratio.median for _, ratio in first] == [2.0, 2.5, 3.0]
    page = write_page(tmp_path / "page.html", tmp_path).read_text(encoding="utf-8")
    assert page.count("<figure>") == 1
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    (tmp_path / ".git").rename(tmp_path / "gone")
