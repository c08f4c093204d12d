"""Estimates: factors that are fitted come back, spans hold what they should, and what cannot be estimated is said."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgecompress.cli import main
from edgecompress.errors import UsageError
from edgecompress.formats.codec import dumps, from_jsonable
from edgecompress.profile.costs import Cost
from edgecompress.profile.efficiency import fit, kind_of, predicted, table_factors, usual_peaks, work_of
from edgecompress.profile.peaks import memory_rate, read_rate
from edgecompress.types.estimate import Estimates
from edgecompress.types.profile import Noise, Operator, OperatorProfile, Peaks, Profile, Reads

PEAKS = {
    threads: Peaks(
        threads=threads,
        reads=(
            Reads(buffer_bytes=1 << 20, bytes_per_s=4e10 * threads),
            Reads(buffer_bytes=1 << 24, bytes_per_s=1e10 * threads),
        ),
        ops_per_s={"float32": 1e11 * threads, "int8": 4e11 * threads},
    )
    for threads in (1, 2)
}
TRUE = {"int8 products": (2e-6, 2.0, 0.0), "attention": (1e-6, 4.0, 0.0), "rows": (5e-7, 0.0, 1.5)}


def made_up(threads: int, seed: int, noise: float = 0.0, cpu: str = "A") -> Profile:
    """A machine whose nodes take just what the factors say, times a little."""
    rng, peaks = np.random.default_rng(seed), PEAKS[threads]
    calls = []
    for size in (0.25, 1.0, 4.0):
        operators = []
        costs = [
            (
                op,
                Cost(
                    ops=size * float(rng.uniform(1e7, 1e9)) if op != "Add" else 1e4,
                    bytes=int(size * rng.uniform(1e5, 1e7)),
                    computes=computes,
                ),
            )
            for op, computes in [
                ("MatMulIntegerToFloat", "int8"),
                ("MultiHeadAttention", "float32"),
                ("Add", "float32"),
            ]
            * 8
        ]
        whole = sum(cost.bytes for _, cost in costs)
        for index, (op, cost) in enumerate(costs):
            overhead, compute, memory = TRUE[kind_of(op, cost)]
            rate = read_rate(peaks, cost.bytes if op == "Add" else whole)
            computes = cost.computes
            took = overhead + compute * cost.ops / peaks.ops_per_s[computes] + memory * cost.bytes / rate
            operators.append(
                Operator(
                    name=f"{index}",
                    module="m",
                    op=op,
                    ms=took * 1e3 * float(np.exp(noise * rng.standard_normal())),
                    share=0,
                    ops=cost.ops,
                    bytes=cost.bytes,
                    computes=computes,
                    bound="compute",
                    roof_ms=0,
                    of_roof=0,
                )
            )
        whole = sum(operator.ms for operator in operators)
        calls.append(
            OperatorProfile(
                workload=f"1x{int(16 * size)}",
                threads=threads,
                phase="call",
                calls=20,
                call_ms=whole,
                nodes_ms=whole,
                between_ms=0,
                operators=tuple(operators),
            )
        )
    from edgecompress.profile.host import describe_host

    return Profile(
        tool_version="0",
        bundle="b",
        identity="",
        name="n",
        task="t",
        precision="p",
        target="local",
        bundle_bytes=1,
        verified=True,
        host=replace(describe_host(), cpu=cpu),
        noise=Noise(loop_ms=1, spread=0, slowest_over_fastest=1, noisy=False),
        measurements=(),
        peaks=(peaks,),
        operators=tuple(calls),
    )


def test_reads_lie_on_the_line_between_two_measured_sizes_and_end_with_them() -> None:
    peaks = PEAKS[1]
    assert read_rate(peaks, 10) == pytest.approx(4e10)
    assert read_rate(peaks, 1 << 22) == pytest.approx(2e10)  # the middle, of logarithms
    assert read_rate(peaks, 1 << 30) == pytest.approx(1e10) == memory_rate(peaks)


def test_a_pass_over_rows_finds_them_in_a_cache_and_weights_lie_where_all_that_is_moved_can_lie() -> None:
    row, product = (
        ("Add", Cost(ops=1e4, bytes=1 << 20, computes="float32")),
        ("MatMul", Cost(ops=1e9, bytes=1 << 26, computes="float32")),
    )
    rows, products = work_of([row, product], PEAKS[1])
    assert rows.moving_s == pytest.approx((1 << 20) / 4e10)
    assert products.moving_s == pytest.approx((1 << 26) / 1e10)
    assert products.computing_s == pytest.approx(1e9 / 1e11)


def test_what_a_machine_usually_does_is_the_median() -> None:
    slow = replace(PEAKS[1], reads=tuple(replace(each, bytes_per_s=each.bytes_per_s / 2) for each in PEAKS[1].reads))
    fast = replace(PEAKS[1], ops_per_s={"float32": 2e11, "int8": 1e11})
    usual = usual_peaks(1, [slow, fast, *PEAKS.values()])
    assert usual.reads == PEAKS[1].reads
    assert usual.ops_per_s == {"float32": 1e11, "int8": 4e11}
    assert usual_peaks(2, [slow, *PEAKS.values()]) == PEAKS[2]


def test_the_factors_come_back_from_exact_times() -> None:
    made = fit([made_up(1, seed=0)])
    for kind, (overhead, compute, memory) in TRUE.items():
        found = made.by_kind[kind]
        assert (found.overhead_s, found.compute, found.memory) == pytest.approx((overhead, compute, memory), rel=1e-3)


def test_a_fit_at_one_thread_tells_the_other_and_another_graph() -> None:
    made = fit([made_up(1, seed=0, noise=0.1), made_up(1, seed=1, noise=0.1)])
    for call in made_up(2, seed=7).operators:
        assert predicted(made, call, PEAKS[2]) * 1e3 == pytest.approx(call.call_ms, rel=0.1)
    assert 0.02 < made.spread < 0.15


def test_no_factor_is_below_zero() -> None:
    for seed in range(5):
        for factors in fit([made_up(1, seed=seed, noise=0.5)]).by_kind.values():
            assert min(factors.overhead_s, factors.compute, factors.memory) >= 0


def test_a_fit_is_of_one_machine() -> None:
    with pytest.raises(UsageError, match="2 machines: A, B"):
        fit([made_up(1, 0), made_up(1, 1, cpu="B")])
    with pytest.raises(UsageError, match="hold no operators"):
        fit([replace(made_up(1, 0), operators=())])


@pytest.mark.parametrize("accelerator", ["cpu", "cuda"])
def test_the_best_of_a_table_is_never_slower_than_its_worst(accelerator: str) -> None:
    best, worst = (table_factors(accelerator, best=end) for end in (True, False))
    assert set(best) == set(worst) >= {"float32", "int8", "attention", "rows", "nothing"}
    for kind, factors in best.items():
        for name in ("overhead_s", "compute", "memory"):
            assert 0 <= getattr(factors, name) <= getattr(worst[kind], name), (kind, name)
        if kind not in ("rows", "nothing"):
            assert factors.compute >= 1, "nothing is above its peak"


def estimated(bundle: Path, *flags: str, capsys: pytest.CaptureFixture[str]) -> Estimates:
    assert main(["estimate", str(bundle), "--json", *flags]) == 0
    return from_jsonable(Estimates, json.loads(capsys.readouterr().out))


def test_spans_for_devices_that_are_not_at_hand(minilm_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = "raspberry-pi-5,raspberry-pi-4,rtx-4090"
    found = estimated(minilm_bundle, "--target", targets, "--shapes", "1x16,8x128", capsys=capsys)
    assert [(row.target, row.workload) for row in found.rows] == [
        (target, shape) for target in targets.split(",") for shape in ("1x16", "8x128")
    ]
    by = {(row.target, row.workload): row for row in found.rows}
    for row in found.rows:
        assert 0 < row.ms.low < row.ms.middle < row.ms.high
        assert "the bundle did not run" in found.remarks[0]
        # The products alone, at the chip's peak, take longer than no time and no longer than the least.
    least = 2 * 8 * 128 * 6 * (4 * 384 * 384 + 2 * 384 * 1536) / 614.4e9 * 1e3
    assert by["raspberry-pi-5", "8x128"].ms.low > least
    assert by["raspberry-pi-5", "8x128"].ms.high < by["raspberry-pi-4", "8x128"].ms.high
    assert by["rtx-4090", "8x128"].ms.high < by["raspberry-pi-5", "8x128"].ms.low
    assert by["rtx-4090", "1x16"].fits_memory is True
    assert by["raspberry-pi-5", "1x16"].fits_memory is None


def test_a_decoders_steps_are_bound_by_memory(kernel_bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = estimated(kernel_bundle, "--target", "raspberry-pi-5", "--shapes", "1x64", capsys=capsys)
    assert [row.phase for row in found.rows] == ["prefill", "decode"]
    assert main(["estimate", str(kernel_bundle), "--target", "raspberry-pi-5", "--shapes", "1x64"]) == 0
    out = capsys.readouterr().out
    assert "1x64 decode" in out
    assert "estimates, not measurements" in out


def test_a_profile_of_the_machine_makes_the_span_narrow(
    minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--shapes", "1x32,2x64", "--threads", "1", "--percentile", "50", "--no-cold-start"]
    assert main(["profile", str(minilm_bundle), *flags, "-o", str(tmp_path)]) == 0
    capsys.readouterr()
    found = estimated(minilm_bundle, "--measured", str(tmp_path), "--shapes", "1x48", capsys=capsys)
    (row,) = found.rows
    assert row.threads == 1
    assert row.basis.startswith("fitted to 2 profiled calls")
    wide = estimated(minilm_bundle, "--target", "raspberry-pi-5", "--shapes", "1x48", capsys=capsys).rows[0]
    assert row.ms.high / row.ms.low < wide.ms.high / wide.ms.low or "noisy" in row.basis


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "an estimate needs a target"),
        (["--target", "x86-64-avx512-vnni"], "has no memory_bandwidth_bytes_per_s or peak_ops_per_s"),
        (["--target", "rtx-4090", "--threads", "2"], "of the whole chip"),
        (["--target", "no-such"], "no target named 'no-such'"),
        (["--target", "rtx-4090", "--shapes", "1by16"], "'1by16' is not a shape"),
        (["--measured", "nowhere"], "there is no profile"),
    ],
)
def test_what_cannot_be_estimated_is_said(
    minilm_bundle: Path, flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", str(minilm_bundle), *flags]) == 2
    assert message in capsys.readouterr().err


def test_profiles_of_another_kind_of_bundle_or_machine(
    minilm_bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = made_up(1, 0)
    path = tmp_path / "p.json"
    bare = [replace(call, operators=tuple(o for o in call.operators if o.op == "Add")) for call in only.operators]
    path.write_text(dumps(replace(only, operators=tuple(bare))))
    assert main(["estimate", str(minilm_bundle), "--measured", str(path)]) == 2
    assert "hold no node like this bundle's" in capsys.readouterr().err
    assert main(["estimate", str(minilm_bundle), "--measured", str(path), "--threads", "3"]) == 2
    assert "hold no run with 3 threads" in capsys.readouterr().err
    assert main(["estimate", str(minilm_bundle), "--measured", str(path), "--target", "rtx-4090"]) == 2
    assert "describes only the machine that it was made on" in capsys.readouterr().err
    path.write_text("{")
    assert main(["estimate", str(minilm_bundle), "--measured", str(path)]) == 2
    assert "is not a profile" in capsys.readouterr().err
