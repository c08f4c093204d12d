"""Does a fleet lose or duplicate results? Many jobs on several workers, one of which is killed midway.

    python -m benchmarks.bench_fleet [--jobs 200] [--workers 4] [--bundle BUNDLE]

Each job is a real, short ``edgecompress profile`` in a process of its own, on one thread. All workers are processes of
this machine, so the latencies mean nothing here; the results are counted. One JSON line for the host and one for the
run, in benchmarks/results/fleet.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.bench_encoder import note
from benchmarks.local_fleet import LocalFleet
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.devices.fleet import Fleet, connect_fleet, wait_for_labels
from edgecompress.devices.jobs import JobRequest, Plan
from edgecompress.devices.store import open_store
from edgecompress.profile.run import Asked

LABEL = "this-machine"


def tiny_bundle(folder: Path) -> Path:
    """An encoder of two layers with random weights."""
    from edgecompress.export.pipeline import export
    from edgecompress.types.recipe import Recipe, RuntimeRecipe, StudentRecipe
    from tests.tiny import tiny_checkpoint

    student = StudentRecipe(source=str(tiny_checkpoint(folder / "tiny", "bert")))
    export(Recipe(precision="fp32", student=student, runtime=RuntimeRecipe(kernels="none")), folder / "tiny.bundle")
    return folder / "tiny.bundle"


def kill_one(fleet: LocalFleet, results: Path, after: int, killed: list[dict[str, Any]]) -> None:
    """The first worker, while it has a job, once so many results are there."""
    name = next(iter(fleet.workers))
    running = fleet.cache(name) / "edgecompress" / "device" / "jobs"
    while True:
        done = results.read_bytes().count(b"\n") if results.exists() else 0
        if done >= after and running.is_dir() and any(running.iterdir()):
            fleet.kill(name)
            killed.append({"worker": name, "results_then": done, "jobs_with_it": len(list(running.iterdir()))})
            return
        time.sleep(0.02)


def orphans(caches: list[Path]) -> int:
    """Processes that still run in a worker's cache."""
    found = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            here = os.readlink(folder / "cwd")
        except OSError:
            continue
        found += any(here.startswith(str(cache)) for cache in caches)
    return found


def run(bundle: Path, jobs: int, workers: int, folder: Path) -> dict[str, Any]:
    asked = Asked(shapes="1x16", threads=(1,), duration_s=0.1, percentile=50, cold=False, operators=False)
    plan = Plan([JobRequest(bundle=bundle, label=LABEL, asked=asked, run=number) for number in range(jobs)])
    results = folder / "fleet.jsonl"
    killed: list[dict[str, Any]] = []
    with LocalFleet(folder, {"TOKENIZERS_PARALLELISM": "false"}) as fleet:
        names = [f"worker-{number}" for number in range(workers)]
        for name in names:
            fleet.add_worker(name, LABEL)
        with connect_fleet(fleet.address) as client, open_store(results) as store:
            while len(wait_for_labels(client, fleet.address, [LABEL], 60)[LABEL]) < workers:
                time.sleep(0.1)
            began = time.monotonic()
            killer = threading.Thread(target=kill_one, args=(fleet, results, jobs // 4, killed), daemon=True)
            killer.start()
            found = Fleet(client, store, lambda _: None).run(plan.jobs([]))
            seconds = time.monotonic() - began
            killer.join(10)
        left = orphans([fleet.cache(name) for name in names])
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    times = Counter(line["job"] for line in lines if line["profile"] is not None)
    return {
        "kind": "fleet",
        "bundle": bundle.name,
        "jobs": jobs,
        "workers": workers,
        "killed": killed,
        "results": len(times),
        "results_twice": sum(count > 1 for count in times.values()),
        "duplicates_dropped": found.duplicates,
        "failed": len(found.failed),
        "retried": found.retried,
        "jobs_of_several_attempts": sum(row.attempts > 1 for row in found.rows),
        "workers_that_gave_results": len({line["worker"] for line in lines}),
        "processes_left_behind": left,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, help="a tiny encoder unless given")
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--out", type=Path, default=RESULTS / "fleet.jsonl")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        row = run(options.bundle or tiny_bundle(folder), options.jobs, options.workers, folder)
    dask = {name: version(name) for name in ("dask", "distributed")}
    write(options.out, [header(dask=dask), row])
    note(json.dumps(row, sort_keys=True))


if __name__ == "__main__":
    main()
