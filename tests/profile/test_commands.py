"""``edgecompress profile`` and ``compare`` on bundles, whole."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli import main
from edgecompress.formats.codec import from_jsonable
from edgecompress.types.profile import Comparison, LatencyBudget, Profile

QUICK = ["--percentile", "50", "--no-cold-start"]


def profiled(bundle: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> Profile:
    assert main(["profile", str(bundle), "--json", *flags]) == 0
    return from_jsonable(Profile, json.loads(capsys.readouterr().out))


def test_an_encoders_profile(minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "report"
    flags = ["--shapes", "1x16,3x20", "--threads", "1,2", "--percentile", "90", "-o", str(out)]
    found = profiled(minilm_bundle, *flags, capsys=capsys)
    assert from_jsonable(Profile, json.loads((out / "profile.json").read_text())) == found
    assert {path.name for path in out.iterdir()} == {"profile.json", "report.html", "plots"}
    assert {(o.workload, o.threads) for o in found.operators} == {(m.workload, m.threads) for m in found.measurements}
    assert [peaks.threads for peaks in found.peaks] == [1, 2]
    assert found.verified
    assert [(m.workload, m.threads, m.scenario) for m in found.measurements] == [
        ("1x16", 1, "single-stream"), ("3x20", 1, "multi-stream"),
        ("1x16", 2, "single-stream"), ("3x20", 2, "multi-stream"),
    ]  # fmt: skip
    for m in found.measurements:
        assert m.latency is not None
        assert m.latency.calls >= 100
        assert m.latency.p50_ms is not None
        assert m.latency.p90_ms is not None
        assert m.latency.p50_ms <= m.latency.p90_ms <= m.latency.max_ms
        assert [stage.name for stage in m.stages] == ["tokenize", "batch", "compute"]
        assert sum(stage.share for stage in m.stages) == pytest.approx(1, abs=0.001)
        assert m.per_s is not None
        assert m.tokens is None
    cold = found.cold_start
    assert cold is not None
    assert cold.whole_ms >= cold.import_ms + cold.load_ms + cold.first_ms - 1
    assert found.peak_rss_bytes == cold.peak_rss_bytes > 50_000_000


def test_a_decoders_profile(small_decoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = tmp_path / "d.bundle"
    assert main(["export", str(small_decoder_dir), "--precision", "int8", "--kernels", "none", "-o", str(bundle)]) == 0
    capsys.readouterr()
    found = profiled(bundle, "--shapes", "1x20,2x12", "--new-tokens", "5", *QUICK, capsys=capsys)
    for m, rows in zip(found.measurements, (1, 2), strict=True):
        assert m.tokens is not None
        assert m.latency is not None
        assert m.tokens.ttft.calls == rows * m.latency.calls
        assert m.tokens.between.calls == 4 * m.latency.calls
        assert m.tokens.prefill_tokens_per_s > 0
        assert m.tokens.decode_tokens_per_s > 0
        assert [stage.name for stage in m.stages] == ["prefill", "decode", "detokenize"]
        assert m.tokens.ttft.mean_ms <= m.latency.mean_ms
    assert main(["profile", str(bundle), "--shapes", "1x20", "--new-tokens", "3", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "TPOT ms" in shown
    assert "energy      not measurable here" in shown or "J a call" in shown
    assert main(["profile", str(bundle), "--shapes", "1x99999"]) == 2
    assert "its context is" in capsys.readouterr().err
    assert main(["profile", str(bundle), "--shapes", "1x20", "--scenario", "offline"]) == 2
    assert "a decoder has no offline scenario" in capsys.readouterr().err


def test_a_trace_goes_through_its_requests(
    minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "requests.jsonl"
    trace.write_text('{"text": "why is the sky blue?"}\n{"tokens": 40}\n{"tokens": 4000}\n')
    found = profiled(minilm_bundle, "--shapes", f"trace:{trace}", *QUICK, capsys=capsys)
    (m,) = found.measurements
    assert m.workload == "requests.jsonl"
    assert m.latency is not None
    assert m.latency.max_ms > 1.5 * (m.latency.p50_ms or 0), "the long one takes longer"


def test_scenarios(minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--shapes", "1x16", "--scenario", "offline,server", "--per-second", "20", "--duration", "0.5"]
    found = profiled(minilm_bundle, *flags, "--bound-ms", "10000", *QUICK, capsys=capsys)
    offline, server = found.measurements
    assert (offline.scenario, server.scenario) == ("offline", "server")
    assert offline.per_s is not None
    assert server.server is not None
    assert (server.server.asked_per_s, server.server.within_bound) == (20, True)
    assert main(["profile", str(minilm_bundle), *flags, "--bound-ms", "0.001", *QUICK]) == 0
    shown = capsys.readouterr().out
    assert "20.0 requests/s asked" in shown
    assert "BEYOND the bound of 0.001 ms" in shown
    assert "texts/s" in shown


def test_a_latency_budget(minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--shapes", "1x16", "--no-operators", *QUICK]
    found = profiled(minilm_bundle, *flags, "--bound-ms", "10000", capsys=capsys)
    (m,) = found.measurements
    assert m.latency is not None
    assert m.budget == LatencyBudget(bound_ms=10000, percentile=50, value_ms=m.latency.p50_ms, met=True)
    assert main(["profile", str(minilm_bundle), *flags, "--bound-ms", "0.001"]) == 0
    assert "p50 is BEYOND the bound of 0.001 ms" in capsys.readouterr().out
    assert found.fidelity.startswith("mean cosine 0.99")
    assert found.fidelity.endswith("over 128 held-out samples")
    assert found.terms.startswith("apache-2.0 (read from card")
    assert not found.terms_open


def test_too_few_calls_leave_a_budget_open() -> None:
    from edgecompress.profile.run import _budget

    for calls, met in ((99, None), (100, True)):
        budget = _budget(np.full(calls, 0.002), 3.0, 90)
        assert (budget.met, budget.value_ms) == (met, None if met is None else 2.0)
    assert _budget(np.full(100, 0.002), 1.0, 90).met is False


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--shapes", "1x512"], "1x512.*a text has 2 to 256 tokens"),
        (["--shapes", "1x1"], "a text has 2 to 256 tokens"),
        (["--shapes", "1x16", "--duration", "0.01"], r"0\.01 s are about \d+ calls, and p99 takes 1,000"),
        (["--duration", "-1"], "the duration must be above 0"),
        (["--percentile", "100"], "the percentile must be from 50"),
        (["--scenario", "closed"], "unknown scenario 'closed'"),
        (["--scenario", "server"], "needs a rate or a latency bound"),
        (["--per-second", "3"], "--per-second is for the server scenario"),
        (["--bound-ms", "0"], "the latency bound must be above 0"),
        (["--threads", "1,none"], "'1,none'"),
        (["--new-tokens", "1"], "new tokens must be at least 2"),
        (["--device", "0"], "it runs on no GPU"),
    ],
)
def test_what_makes_no_sense_ends_with_2(
    minilm_bundle: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main(["profile", str(minilm_bundle), *flags]) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert len(said.splitlines()) == 2, "the hint too"


def test_a_file_where_the_report_should_be(minilm_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    assert main(["profile", str(minilm_bundle), "-o", str(tmp_path / "file")]) == 2
    assert (tmp_path / "file").read_text() == "mine"


def test_one_that_was_never_verified_is_said_so(
    minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from edgecompress.profile import run

    real = run.read_report
    monkeypatch.setattr(run, "read_report", lambda f: replace(real(f), fidelity=replace(real(f).fidelity, samples=0)))
    flags = ["profile", str(minilm_bundle), "--shapes", "1x16", "--no-operators", *QUICK]
    assert main(flags) == 0
    said = capsys.readouterr().out
    assert "was never verified" in said
    assert "\033[31m" not in said  # not on a terminal
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    assert main(flags) == 0
    assert "\033[31mnote: this bundle's fidelity was never verified" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    assert main(flags) == 0
    assert "\033[31m" not in capsys.readouterr().out


def test_compare_with_itself_and_with_torch(
    minilm_bundle: Path, minilm_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = ["--shapes", "1x16,2x24", "--launches", "8", "--pairs", "5", "--threads", "2"]
    out = tmp_path / "c.json"
    sides = [str(minilm_bundle), str(minilm_bundle), f"torch:{minilm_dir}"]
    assert main(["compare", *sides, *quick, "--json", "-o", str(out)]) == 0
    found = from_jsonable(Comparison, json.loads(capsys.readouterr().out))
    assert from_jsonable(Comparison, json.loads(out.read_text())) == found
    assert [(row.workload, row.side) for row in found.rows] == [(w, s) for w in ("1x16", "2x24") for s in sides]
    first, same, torch = found.rows[:3]
    assert first.first_over_it.low == first.first_over_it.high == 1
    assert first.verdict == "the first"
    assert same.agreement == 1.0
    assert torch.agreement is None, "a sentence's vector here, and tokens' there"
    for row in found.rows:
        assert row.first_over_it.low <= row.first_over_it.middle <= row.first_over_it.high
    assert main(["compare", *sides[:2], *quick]) == 0
    assert "cosine 1.0000" in capsys.readouterr().out


def test_a_graph_beside_the_bundle_that_holds_it(minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = ["--shapes", "1x16", "--launches", "8", "--pairs", "5", "--json"]
    assert main(["compare", str(minilm_bundle), f"onnx:{minilm_bundle / 'model.onnx'}", *flags]) == 0
    found = from_jsonable(Comparison, json.loads(capsys.readouterr().out))
    assert found.rows[1].agreement is not None
    assert found.rows[1].agreement > 0.999


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["BUNDLE"], "needs at least two sides"),
        (["BUNDLE", "torch:/nowhere"], "/nowhere does not exist"),
        (["BUNDLE", "BUNDLE", "--shapes", "1x999"], "1x999.*a text has at most 256 tokens"),
        (["BUNDLE", "BUNDLE", "--launches", "9"], "at least 8 launches, an even number"),
        (["BUNDLE", "BUNDLE", "--threads", "0"], "threads (are|must be) at least 1"),
        (["BUNDLE", "BUNDLE", "--shapes", "1x0"], "shapes of texts"),
    ],
)
def test_what_cannot_be_compared(
    minilm_bundle: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    words = [str(minilm_bundle) if word == "BUNDLE" else word for word in arguments]
    assert main(["compare", *words]) == 2
    assert re.search(message, capsys.readouterr().err)


def test_a_bundle_that_is_not_whole(minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "b"
    shutil.copytree(minilm_bundle, broken)
    (broken / "model.onnx").write_bytes(b"x")
    assert main(["profile", str(broken)]) == 7
    assert main(["compare", str(broken), str(minilm_bundle)]) == 7
