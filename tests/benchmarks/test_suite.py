"""The benchmarks' suite: all of them are in its table, a regression is seen, noise is not, and history is git's."""

from __future__ import annotations

import json
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks import suite, tables
from benchmarks.history import history, series, write_page
from benchmarks.peer_venvs import LISTS, PEERS, WITH_OURS, Venv, ready, requirements, steps
from benchmarks.ratios import Comparison, check, ratios, stored_for
from benchmarks.result_lines import RESULTS, HostKind, parse, read
from benchmarks.suites import BENCHES, INPUTS, RatioRule

FOLDER = Path(suite.__file__).parent
HOST = {"cpu": "A", "cpu_family_model": "25/17", "features": ["avx2"]}
ENCODER = BENCHES["encoder"].held
assert ENCODER is not None


def text(ratio: float, *, spread: float = 0.05, host: dict[str, Any] = HOST, name: str = "ours") -> str:
    row = {
        "kind": "row", "name": name, "shape": "1x16", "threads": 2, "ours": name == "ours",
        "ratio_median": ratio, "ratio_p10": ratio * (1 - spread), "ratio_p90": ratio * (1 + spread),
        "best_peer": {"name": "peer", "ratio_median": 1.5, "ratio_p10": 1.4, "ratio_p90": 1.6},
    }  # fmt: skip
    return "".join(json.dumps(line) + "\n" for line in ({"kind": "header", "host": host}, row))


def against(old: str, new: str, held: RatioRule = ENCODER) -> Comparison:
    return check(parse(old), parse(new), held)


def test_every_benchmark_is_in_the_table() -> None:
    there = {path.stem for path in FOLDER.glob("bench_*.py")} | {"cold_start", "decoder_quality"}
    assert {part.module for bench in BENCHES.values() for part in bench.parts} == there
    names = {"work", "student", *INPUTS, *PEERS}
    for name, bench in BENCHES.items():
        words = [word for part in (*bench.parts, *filter(None, [bench.quick])) for word in part.arguments]
        assert {found for word in words for found in re.findall(r"\{(\w+)\}", word)} <= names, name
        assert {*bench.inputs} <= {*INPUTS}, name
        assert {*filter(None, [bench.python]), *bench.peers} <= {*PEERS}, name
        assert bench.held or not bench.quick, name
    stored = {re.sub(r"-[\w-]+$", "", path.stem) for path in RESULTS.glob("*.jsonl")}
    assert stored <= {bench.results for bench in BENCHES.values()}
    feeds = [table for bench in BENCHES.values() for table in bench.feeds if table != "summary"]
    assert sorted([*feeds, "summary"]) == sorted(tables.TABLES)


def test_arguments_are_those_that_each_benchmark_takes() -> None:
    for name, bench in BENCHES.items():
        for part in (*bench.parts, *filter(None, [bench.quick])):
            text = (FOLDER / f"{part.module}.py").read_text(encoding="utf-8")
            options = [word for word in (*part.arguments, *bench.peers.values(), "--out") if word.startswith("--")]
            assert [option for option in options if f'"{option}"' not in text] == [], (name, part.module)


@pytest.mark.parametrize("path", tables.FILES, ids=lambda path: path.name)
def test_tables_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert tables.updated_text(text) == (text, [])
    assert text.count("<!-- table ") == text.count("<!-- end -->")


def test_every_table_is_on_the_page() -> None:
    text = tables.PAGE.read_text(encoding="utf-8")
    assert sorted(re.findall(r"<!-- table ([\w-]+) -->", text)) == sorted(tables.TABLES)
    assert tables.updated_text(text.replace("| 2.90 |", "| 2.95 |", 1))[1] == ["encoder-1"]


def test_the_summary_repeats_other_tables() -> None:
    """From one kind of host, which its heading names."""
    kinds = {read(RESULTS / f"{file}.jsonl").host_kind for file in BENCHES if "summary" in BENCHES[file].feeds}
    (kind,) = kinds
    assert kind is not None
    assert kind.model == "25/17"
    lines = tables.TABLES["summary"]().splitlines()
    assert len(lines) <= 10
    speed, cosine = (lines[n] for n in (2, 3))
    row = next(line for line in tables.TABLES["encoder-kernels"]().splitlines() if "with kernels" in line)
    peer = next(line for line in tables.TABLES["encoder-kernels"]().splitlines() if "nncf" in line)
    assert f"**{row.split(' | ')[2]}**" in speed
    assert f"NNCF {peer.split(' | ')[2]}," in speed
    assert f"**{row.split(' | ')[5].rstrip(' |')}**" in cosine


def test_a_table_that_differs_is_named_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page, plain = tmp_path / "page.md", tmp_path / "plain.md"
    page.write_text("before\n<!-- table cold-start -->\nold\n<!-- end -->\nafter\n")
    plain.write_text("no table\n")
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "FILES", (page, plain))
    monkeypatch.setattr("sys.argv", ["tables"])
    assert tables.main() == 1
    assert capsys.readouterr().out == "page.md: cold-start: differs from the results; --write updates it\n"
    assert "old" in page.read_text()
    monkeypatch.setattr("sys.argv", ["tables", "--write"])
    assert tables.main() == 0
    assert tables.TABLES["cold-start"]() in page.read_text()
    assert page.read_text().startswith("before\n")
    assert tables.main() == 0
    assert {path.name for path in tmp_path.iterdir()} == {"page.md", "plain.md"}
    page.write_text("<!-- table nowhere -->\n<!-- end -->\n")
    with pytest.raises(KeyError, match="nowhere"):
        tables.main()


def test_a_regression_is_seen_and_noise_is_not() -> None:
    assert against(text(3.0), text(2.9)).worse == ()
    assert against(text(3.0), text(3.6)).worse == ()
    found = against(text(3.0), text(2.6))
    assert [(old.median, new.median) for old, new in found.worse] == [(3.0, 2.6)]
    assert found.compared == 2
    assert against(text(3.0, spread=0.2), text(2.6, spread=0.2)).worse == ()


def test_what_is_held_of_a_choice_falls_when_it_becomes_worse() -> None:
    def line(ratio: float) -> str:
        over = {"median": ratio, "p10": ratio * 0.98, "p90": ratio * 1.02}
        row = {"variant": "v", "shape": "1x16", "threads": 1, "precision": "int8", "time_over_chosen": over}
        return "".join(json.dumps(row) + "\n" for row in ({"kind": "header", "host": HOST}, row))

    held = BENCHES["graph_choices"].held
    assert held is not None
    assert against(line(1.2), line(1.4), held).worse == ()
    assert len(against(line(1.2), line(1.0), held).worse) == 1


def test_bytes_are_held_to_their_last_digit_and_less_is_better() -> None:
    def line(ratio: float) -> str:
        row = {"student": "s", "target": "t", "precision": "int8", "weights_bytes_over_fp16": ratio}
        return "".join(json.dumps(row) + "\n" for row in ({"kind": "header", "host": HOST}, row))

    held = BENCHES["engines"].held
    assert held is not None
    assert against(line(0.504), line(0.504), held).worse == ()
    assert against(line(0.504), line(0.45), held).worse == ()
    assert len(against(line(0.504), line(0.506), held).worse) == 1


def test_another_kind_of_host_is_not_compared(tmp_path: Path) -> None:
    (tmp_path / "encoder.jsonl").write_text(text(3.0))
    kinds = [parse(text(1.0, host=HOST | change)).host_kind for change in ({}, {"cpu": "B"}, {"cpu_family_model": ""})]
    assert all(kinds)
    same, other, untold = (stored_for(tmp_path, BENCHES["encoder"], kind) for kind in kinds if kind)
    assert same == (tmp_path / "encoder.jsonl", "")
    assert other[0] is None
    assert other[1].startswith("not comparable: stored on A 25/17 (avx2); this is B 25/17")
    assert untold[0] is None
    assert "no row is in both" in against(text(3.0).replace("best_peer", "x"), text(3.0, name="other")).why
    assert parse('{"kind": "row"}').host_kind is None


def test_results_of_another_kind_of_host_get_a_file_of_their_own(tmp_path: Path) -> None:
    kind = HostKind(cpu="AMD EPYC", model="25/1", features=("avx2",))
    bench = BENCHES["encoder"]
    assert suite.stored_as(tmp_path, bench, kind).name == "encoder.jsonl"
    (tmp_path / "encoder.jsonl").write_text(text(3.0))
    assert suite.stored_as(tmp_path, bench, kind).name == "encoder-amd-epyc-25-1.jsonl"
    (tmp_path / "encoder-zen3.jsonl").write_text(
        text(3.0, host={"cpu": "AMD EPYC", "cpu_family_model": "25/1"} | {"features": ["avx2"]})
    )
    assert suite.stored_as(tmp_path, bench, kind).name == "encoder-zen3.jsonl"


def test_check_ends_with_1_where_something_is_worse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    (tmp_path / "encoder.jsonl").write_text(text(3.0))
    fresh = tmp_path / "now" / "fresh.jsonl"
    fresh.parent.mkdir()
    for ratio, code in ((2.9, 0), (2.0, 1)):
        fresh.write_text(text(ratio))
        assert suite.main(["check", "encoder", "--fresh", str(fresh)]) == code
    said = capsys.readouterr().out
    assert "WORSE  1x16, threads 2, ours: 3 (2.85 to 3.15), now 2 (1.9 to 2.1)" in said
    assert "encoder: 1 of 2 ratios have become worse" in said
    fresh.write_text(text(2.0, host=HOST | {"cpu": "B"}))
    assert suite.main(["check", "encoder", "--fresh", str(fresh)]) == 2


def test_check_measures_anew_and_stores_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "RESULTS", tmp_path)
    monkeypatch.setattr(suite, "lacks", lambda bench, work: [])
    (tmp_path / "graph_choices.jsonl").write_text(text(3.0))
    asked: list[list[str]] = []

    def run(words: Any) -> None:
        asked.append([*words])
        Path(words[-1]).write_text(
            text(3.0).replace('"ours": true', '"time_over_chosen": {"median": 1, "p10": 1, "p90": 1}')
        )

    code = suite.check_all(["graph_choices"], tmp_path / "work", fresh=None, full=False, run=run)
    assert code == 2  # what is stored here has no such ratios
    assert asked[0][1:5] == ["-m", "benchmarks.bench_graph_choices", "--threads", "2"]
    assert (tmp_path / "graph_choices.jsonl").read_text() == text(3.0)


def test_a_run_puts_the_parts_together_under_one_header(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(suite, "lacks", lambda bench, work: [])
    for name in ("decoder", "decoder_bundle"):
        (tmp_path / "work" / INPUTS[name].path).mkdir(parents=True)

    def run(words: Any) -> None:
        Path(words[-1]).write_text(text(3.0 + len(words)))

    assert suite.run_all(["decoder_quality"], tmp_path / "work", tmp_path, run) == 0
    found = read(tmp_path / "decoder_quality.jsonl")
    assert found.host == HOST
    assert [row["ratio_median"] for row in found.rows] == [9.0, 10.0]


def test_a_peer_that_cannot_be_installed_is_left_out_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "lacks", lambda bench, work: [])
    monkeypatch.setattr(
        suite, "make", lambda name, work: Venv(name, None if name == "llama" else Path(name), "no compiler")
    )
    for name in ("r1", "r1_bundle"):
        (tmp_path / INPUTS[name].path).mkdir()
    asked: list[list[str]] = []

    def run(words: Any) -> None:
        asked.append([*words])
        Path(words[-1]).write_text(text(3.0))

    suite.run_parts(
        BENCHES["decoder"], BENCHES["decoder"].parts, suite.Inputs(tmp_path, run), run, tmp_path / "out.jsonl"
    )
    assert "without a peer: the peer llama cannot be installed: no compiler" in capsys.readouterr().out
    assert "--python-llama" not in asked[0]
    assert asked[0][asked[0].index("--python-genai") + 1] == "genai"


def test_the_stored_results_have_ratios_that_are_told_apart() -> None:
    for name, bench in BENCHES.items():
        path = RESULTS / f"{bench.results}.jsonl"
        if bench.held is None or not path.exists():
            continue
        results = read(path)
        assert results.host_kind is not None or bench.held.any_host, name
        everything = [ratio for ratio in ratios(results, bench.held).values()]
        assert everything, name
        assert all(ratio.low <= ratio.median <= ratio.high for ratio in everything), name
        # none fell upon another for want of a field in the key
        rows = [row for row in results.rows if all(row.get(key) in values for key, values in bench.held.only.items())]
        counted = sum(len(ratios(replace(results, rows=[row]), bench.held)) for row in rows)
        assert counted == len(everything), name
        assert check(results, results, bench.held).worse == ()


def test_what_cannot_run_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(suite, "has_gpu", lambda: False)
    assert suite.run_all(["gpu_attention"], tmp_path) == 1
    said = capsys.readouterr().out
    assert re.search(r"not run: gpu_attention: it needs .*an NVIDIA GPU", said)
    monkeypatch.setattr(suite, "available_bytes", lambda: 10**9)
    assert "8 GB of memory, of which 1.0 GB are free" in suite.lacks(BENCHES["export"], tmp_path)
    assert "lacks" in suite.listed(tmp_path)


def test_what_is_needed_is_made_once(tmp_path: Path) -> None:
    asked: list[list[str]] = []

    def run(words: Any) -> None:
        asked.append([*words[1:]])
        target = {
            "benchmarks.r1_shape": "r1-shape", "benchmarks.bench_decoder": "ours-128.bundle",
            "benchmarks.small_decoder": "small-decoder", "edgecompress": "small.bundle",
        }[words[2]]  # fmt: skip
        (tmp_path / target).mkdir()

    made = suite.Inputs(tmp_path, run)
    for _ in range(2):
        words = made.words(BENCHES["generation"].parts[0].arguments)
    assert words == ["--bundle", str(tmp_path / "ours-128.bundle"), "--trained", str(tmp_path / "small.bundle")]
    assert [each[1] for each in asked] == [
        "benchmarks.r1_shape",
        "benchmarks.bench_decoder",
        "benchmarks.small_decoder",
        "edgecompress",
    ]


def test_peers_have_exact_versions_and_torch_goes_first() -> None:
    assert {path.stem for path in LISTS.glob("*.txt")} == {*PEERS}
    for name in PEERS:
        wanted = requirements(name)
        assert wanted[0] == "torch==2.13.0"
        assert all("==" in line for line in wanted if line != WITH_OURS), name
        assert ready(name, Path("nowhere")) is None
        assert steps(name)[0] == ["torch==2.13.0"]


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
    (first,) = series(path, ENCODER).values()
    assert [ratio.median for _, ratio in first] == [2.0, 2.5, 3.0]
    page = write_page(tmp_path / "page.html", tmp_path).read_text(encoding="utf-8")
    assert page.count("<figure>") == 1
    assert not re.findall(r'(?:src|href)="(?!#)', page)
    (tmp_path / ".git").rename(tmp_path / "gone")
