"""Is ``edgecompress compare`` right? A bundle is compared with itself, and with itself slowed down on purpose.

    python -m benchmarks.bench_compare --bundle BUNDLE [--runs 100]

Each run is a whole comparison with its launches. For a planted slowdown the second side spins after each call, for a
share of the time of that call. It also measures what the timing loop of ``profile`` costs a call, as a share of a
millisecond. One JSON line per kind of run, in benchmarks/results/compare.jsonl. Runs of both kinds alternate, so that a
noisy minute affects both.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.profile.compare import LAUNCHES, PAIRS, compare
from edgecompress.profile.sides import Spec, parse_side, read_workloads
from edgecompress.profile.timing import measure
from edgecompress.runtime.subject import Side
from edgecompress.types.arrays import Array, Feed

PLANTED = 0.05
SPIN_S = 0.001
_SPINS = 2000


def slowed(spec: Spec, share: float) -> Spec:
    """The same, each call of which takes ``share`` longer."""

    def open_one(threads: int) -> Side:
        side = spec.open(threads)

        def run(feed: Feed) -> Array:
            began = time.perf_counter()
            found = side.run(feed)
            until = began + (time.perf_counter() - began) * (1 + share)
            while time.perf_counter() < until:
                pass
            return found

        return Side(run, side.close)

    return replace(spec, name=f"{spec.name}, {share:.0%} slower", open=open_one)


def overhead() -> dict[str, Any]:
    """What a timed call of the loop costs beside the call itself, of one that spins for a millisecond.

    The call tells its own time; the whole run's, less these, is the loop's and that of the clock readings in the call.
    """
    own: list[float] = []

    def spin() -> None:
        began = time.perf_counter()
        while time.perf_counter() - began < SPIN_S:
            pass
        own.append(time.perf_counter() - began)

    began = time.perf_counter()
    timed = measure(spin, _SPINS * SPIN_S, needs=50, whole_s=SPIN_S)
    whole = time.perf_counter() - began
    shares = (timed.seconds - np.array(own)) / SPIN_S
    return {
        "kind": "overhead",
        "calls": len(own),
        "loop_share_of_a_millisecond": round((whole - sum(own)) / len(own) / SPIN_S, 5),
        "reported_above_own_median": round(float(np.median(shares)), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", required=True)
    parser.add_argument("--shape", default="1x16")
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS / "compare.jsonl")
    options = parser.parse_args()
    spec = parse_side(options.bundle)
    workloads = read_workloads(options.shape, [spec])
    others = {"itself": spec, "planted": slowed(spec, PLANTED)}
    found: dict[str, list[Any]] = {kind: [] for kind in others}
    began = time.perf_counter()
    for number in range(options.runs):
        for kind, other in others.items():
            made = compare([spec, other], workloads, options.threads)
            found[kind].append((made.rows[1], made.noise))
        note(f"{number + 1}: " + ", ".join(f"{k} {rows[-1][0].verdict}" for k, rows in found.items()))
    rows: list[dict[str, Any]] = [
        header(
            bundle=Path(options.bundle).name,
            shape=options.shape,
            threads=options.threads,
            launches=LAUNCHES,
            pairs=PAIRS,
            seconds_a_comparison=round((time.perf_counter() - began) / (2 * options.runs), 2),
        ),
        overhead(),
    ]
    for kind, results in found.items():
        said = [row.verdict for row, _ in results]
        rows.append(
            {
                "kind": kind,
                "planted": PLANTED if kind == "planted" else 0.0,
                "runs": options.runs,
                "verdicts": {name: said.count(name) for name in sorted(set(said))},
                "median_ratio": round(float(np.median([row.first_over_it.middle for row, _ in results])), 4),
                "median_least_difference": round(float(np.median([row.least_difference for row, _ in results])), 4),
                "runs_on_a_noisy_host": sum(noise.noisy for _, noise in results),
                "median_noise": round(float(np.median([noise.spread for _, noise in results])), 4),
            }
        )
    write(options.out, rows)
    for row in rows:
        note(json.dumps(row, sort_keys=True))


if __name__ == "__main__":
    main()
