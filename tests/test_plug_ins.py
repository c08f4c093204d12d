"""A kind and a backend that somebody else wrote, through every command, with no edit inside edgecompress.

The kind is an adder (:mod:`tests.toy_kind`: two numbers in, one out, its own metric), the backend a table of numbers
(:mod:`tests.toy_backend`: its own file, run by NumPy). Both are found by their entry points, as pip would leave them.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

from edgecompress import registry
from edgecompress.backends import backends
from edgecompress.cli import main
from edgecompress.errors import HostError, QualityBudgetError
from edgecompress.export.pipeline import export
from edgecompress.formats.codec import from_jsonable
from edgecompress.formats.cpu import host_arch
from edgecompress.formats.manifest import open_bundle, read_measurements, read_report
from edgecompress.kinds import kinds
from edgecompress.runtime import load
from edgecompress.types.profile import Comparison, Profile
from edgecompress.types.recipe import Recipe, StudentRecipe
from tests.serve.running import running
from tests.toy_kind.bundle import install

Captured = pytest.CaptureFixture[str]
WEIGHTS = [1.0003, 0.99993]  # float16 has neither
TARGET = f"""
schema_version = 1
name = "tabulator"
title = "a machine that has tables"
arch = "{host_arch()}"
accelerator = "cpu"
isa = []
backends = ["table"]
computes = ["float32", "float16"]
opset = 21
"""


@pytest.fixture(autouse=True)
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For this process and for those that it starts."""
    site = tmp_path / "site-packages"
    install(site, monkeypatch)
    root = str(Path(__file__).parent.parent)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), root, *(path for path in sys.path if path)]))
    yield
    registry.plug_ins.cache_clear()


@pytest.fixture
def student(tmp_path: Path) -> Path:
    folder = tmp_path / "one-and-one"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "adder", "weights": WEIGHTS}))
    return folder


@pytest.fixture
def target(tmp_path: Path) -> Path:
    path = tmp_path / "tabulator.toml"
    path.write_text(TARGET)
    return path


@pytest.fixture
def table(student: Path, target: Path, tmp_path: Path) -> Path:
    assert main(["export", str(student), "--target", str(target), "-o", str(tmp_path / "table.bundle")]) == 0
    return tmp_path / "table.bundle"


@pytest.fixture
def session(student: Path, tmp_path: Path) -> Path:
    """The same student on a backend of ours."""
    assert main(["export", str(student), "--precision", "fp32", "-o", str(tmp_path / "ort.bundle")]) == 0
    return tmp_path / "ort.bundle"


def test_they_are_installed_beside_ours() -> None:
    assert list(kinds()) == ["encoder", "vision", "decoder", "adder"]
    assert list(backends())[-1] == "table"


def test_a_name_that_is_taken_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = tmp_path / "more" / "another-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: another\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[edgecompress.kinds]\nencoder = somewhere.else\n")
    monkeypatch.syspath_prepend(str(info.parent))
    registry.plug_ins.cache_clear()
    with pytest.raises(HostError, match=r"somewhere\.else\) has the name of edgecompress\.kinds\.encoder"):
        kinds()


def test_auto_chooses_by_its_own_metric(table: Path) -> None:
    manifest, folder = open_bundle(table)
    assert (manifest.kind, manifest.task, manifest.settings) == ("adder", "addition", {"numbers": 2})
    variant = manifest.variant()
    assert (variant.backend, variant.path, variant.providers) == ("table", "table.json", ())
    measurements = read_measurements(folder)
    assert measurements is not None
    tried = {row.precision: row for row in measurements.candidates}
    assert list(tried) == ["fp32", "fp16"]
    errors = [row.fidelity.measures["largest_error"] for row in tried.values() if row.fidelity is not None]
    assert errors[0] < 1e-5 < errors[1] < 0.01
    assert all(row.speedup is not None for row in tried.values())
    assert [latency.case for latency in measurements.latencies] == ["1 pairs", "8 pairs"]
    report = read_report(folder)
    assert report.ops == {"Table": 1}
    assert "a table, not a graph" in report.notes
    assert "adder.add(1.0, 2.0)" in (table / "README.md").read_text()
    assert "largest error of a sum" in (table / "README.md").read_text()


def test_a_budget_of_its_own_is_kept(student: Path, target: Path, tmp_path: Path, capsys: Captured) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text("[quality]\nlimits = { largest_error = 1e-5 }\n")
    asked = ["export", str(student), "--target", str(target), "--recipe", str(recipe)]
    assert main([*asked, "--precision", "fp16", "-o", str(tmp_path / "b")]) == QualityBudgetError.exit_code
    assert "a sum is wrong by" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
    assert main([*asked, "-o", str(tmp_path / "b")]) == 0
    assert open_bundle(tmp_path / "b")[0].precision == "fp32"
    assert "largest_error" in (tmp_path / "b" / "recipe.toml").read_text()


def test_collections_after_a_stage_walk_only_what_the_stages_made(student: Path, target: Path, tmp_path: Path) -> None:
    recipe = Recipe(target=str(target), student=StudentRecipe(source=str(student)))
    stages: list[tuple[str, int]] = []
    gc.unfreeze()
    export(recipe, tmp_path / "a", progress=lambda said: stages.append((said.split()[0], gc.get_freeze_count())))
    assert gc.get_freeze_count() == 0
    assert {name for name, count in stages if count > 0} >= {"quantize", "compile", "measure"}
    assert {name for name, count in stages if count == 0} == {"capture", "verify", "bundle"}
    gc.freeze()  # as an application may have done
    before = gc.get_freeze_count()
    export(recipe, tmp_path / "b")
    assert 0 < gc.get_freeze_count() <= before


def test_an_interrupt_that_a_callback_swallows_ends_the_export_before_its_next_stage(
    student: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages: list[str] = []
    kept: list[object] = []

    class Referred:
        pass

    def progress(said: str) -> None:
        stages.append(said)
        if said.startswith("verify reference"):
            referred = Referred()
            kept.append(weakref.ref(referred, lambda _: signal.raise_signal(signal.SIGINT)))
            del referred

    # Python prints what it drops, and pytest would count that as a warning.
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    (tmp_path / "out").mkdir()
    recipe = Recipe(target=str(target), student=StudentRecipe(source=str(student)))
    with pytest.raises(KeyboardInterrupt):
        export(recipe, tmp_path / "out" / "b", progress=progress)
    assert stages[-1] == "verify reference"
    assert list((tmp_path / "out").iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_its_students_run_on_a_backend_of_ours_and_others_refuse_its_backend(
    session: Path, student: Path, capsys: Captured
) -> None:
    assert open_bundle(session)[0].variant().backend == "onnxruntime-cpu"
    with load(session) as adder:
        assert adder.add(2.0, 3.0) == pytest.approx(2 * WEIGHTS[0] + 3 * WEIGHTS[1], abs=1e-5)
    assert main(["export", str(student), "--backend", "table", "-o", "x"]) == 2
    assert "has no backend named 'table'" in capsys.readouterr().err


def test_every_command_works(table: Path, capsys: Captured) -> None:
    assert main(["verify", str(table)]) == 0
    assert "verified" in capsys.readouterr().out
    assert main(["run", str(table), "1", "2", "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)["results"]
    assert result["output"]["sum"] == pytest.approx(3.0, abs=5e-3)
    assert main(["run", str(table), "1,2"]) == 2
    assert "run needs two numbers" in capsys.readouterr().err
    assert main(["inspect", str(table)]) == 0
    shown = capsys.readouterr().out
    assert "sum of    2 numbers" in shown
    assert "table" in shown
    assert "largest error" in shown
    assert main(["lineage", str(table)]) == 0
    assert main(["doctor"]) in (0, 3)
    assert "table" in capsys.readouterr().out


def test_it_is_profiled(table: Path, capsys: Captured) -> None:
    assert main(["profile", str(table), "--json", "--percentile", "50", "--duration", "0.05"]) == 0
    found = from_jsonable(Profile, json.loads(capsys.readouterr().out))
    assert [(m.workload, m.scenario) for m in found.measurements] == [("1", "single-stream"), ("4", "multi-stream")]
    assert all([stage.name for stage in m.stages] == ["add"] and m.tokens is None for m in found.measurements)
    assert found.cold_start is not None
    assert [tried.quality for tried in found.tried] == ["largest error of a sum"] * 2
    assert any("operators are not measurable here" in remark for remark in found.remarks)
    assert main(["profile", str(table), "--shapes", "1x2"]) == 2
    assert "'1x2' is not a number of pairs" in capsys.readouterr().err


def test_the_same_student_on_two_backends_is_compared(table: Path, session: Path, capsys: Captured) -> None:
    capsys.readouterr()
    sides = [str(table), str(session)]
    assert main(["compare", *sides, "--launches", "8", "--pairs", "5", "--threads", "1", "--json"]) == 0
    found = from_jsonable(Comparison, json.loads(capsys.readouterr().out))
    assert [row.workload for row in found.rows] == ["4", "4"]
    assert found.rows[1].agreement == pytest.approx(1.0, abs=1e-3)


def test_it_is_served(table: Path) -> None:
    with running(table) as server:
        answer = httpx2.post(f"{server.url}/sums", json={"numbers": [1, 2]})
        assert answer.json()["sum"] == pytest.approx(3.0, abs=5e-3)


def test_a_process_of_its_own_finds_them(table: Path) -> None:
    script = (
        "import sys; from edgecompress import load\n"
        f"with load({str(table)!r}) as adder:\n"
        "    print(round(adder.add(1.0, 2.0), 2), 'onnxruntime' in sys.modules and 'torch' in sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["3.0", "False"]
