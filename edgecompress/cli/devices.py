"""``edgecompress profile --on``, ``--fleet`` and ``--jobs``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgecompress.errors import UsageError
from edgecompress.types.fleet import FleetResult
from edgecompress.types.profile import Profile

if TYPE_CHECKING:
    from edgecompress.profile.run import Asked

RESULTS = "fleet.jsonl"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("on other devices")
    group.add_argument(
        "--on", metavar="ssh://USER@DEVICE", help="profile on this device; the bundle and a runtime are sent to it"
    )
    group.add_argument(
        "--wheels", type=Path, metavar="DIR", help="--on: folder of wheels, for a device without a network"
    )
    group.add_argument("--fleet", metavar="tcp://SCHEDULER:8786", help="profile on the workers of a Dask scheduler")
    group.add_argument(
        "--label", action="append", metavar="NAME", help="--fleet: only workers with this label (default: every label)"
    )
    group.add_argument(
        "--jobs", type=Path, metavar="FILE", help="--fleet: jobs as JSON lines with bundle, target, shapes"
    )
    group.add_argument(
        "--device-python", metavar="PATH", help="--on: a Python on the device that already has edgecompress"
    )


def check_flags(options: argparse.Namespace) -> None:
    """Raises UsageError for flags that contradict each other."""
    if options.on is not None and options.fleet is not None:
        raise UsageError("--on and --fleet exclude each other", hint="--on is for one device, --fleet for many.")
    for owner, flag, name in (
        ("on", "--wheels", "wheels"),
        ("on", "--device-python", "device_python"),
        ("fleet", "--label", "label"),
        ("fleet", "--jobs", "jobs"),
    ):
        if getattr(options, name) is not None and getattr(options, owner) is None:
            raise UsageError(f"{flag} goes with --{owner}", hint=f"Give --{owner}, or leave {flag} out.")
    if options.wheels is not None and options.device_python is not None:
        raise UsageError(
            "--wheels and --device-python exclude each other: nothing is installed into --device-python",
            hint="Leave one of them out.",
        )
    if options.bundle is None and options.jobs is None:
        raise UsageError("BUNDLE must be given", hint="Give the folder that `edgecompress export` wrote.")


def run_on_device(options: argparse.Namespace, asked: Asked, show: Callable[[str], None]) -> Profile:
    from edgecompress.devices.run import profile_over_ssh
    from edgecompress.devices.ssh import parse_address

    return profile_over_ssh(
        options.bundle,
        asked,
        parse_address(options.on),
        wheels=options.wheels,
        python=options.device_python,
        show=show,
    )


def run_fleet(options: argparse.Namespace, asked: Asked) -> int:
    """Run the jobs, print their results, and return the exit code of the first failed one."""
    from edgecompress.devices.fleet import profile_on_fleet
    from edgecompress.devices.jobs import JobRequest, read_job_requests
    from edgecompress.terminal import emit_json, note, progress

    if options.jobs is not None:
        requests = read_job_requests(options.jobs, options.bundle, asked)
    else:
        requests = [JobRequest(bundle=options.bundle, label=None, asked=asked)]
    path = None if options.output is None else options.output / RESULTS
    with progress() as show:
        found = profile_on_fleet(requests, options.fleet, options.label or [], path, show)
    if path is not None:
        note(f"wrote {path}")
    if options.json:
        emit_json(found)
    else:
        print(describe(found))
    return next((row.failure.exit_code for row in found.rows if row.failure is not None), 0)


def describe(found: FleetResult) -> str:
    """For a terminal."""
    from edgecompress.terminal import table

    rows = []
    for row in found.rows:
        head = [row.target, row.bundle] + ([str(row.run)] if any(each.run for each in found.rows) else [])
        if row.profile is None:
            rows.append([*head, "", "", "", "failed"])
            continue
        for m in row.profile.measurements:
            p50 = "" if m.latency is None or m.latency.p50_ms is None else f"{m.latency.p50_ms:.2f}"
            state = f"attempt {row.attempts}" if row.attempts > 1 else "done"
            rows.append([*head, m.workload, str(m.threads), p50, state])
    runs = ["run"] if any(each.run for each in found.rows) else []
    lines = [table(["target", "bundle", *runs, "shape", "threads", "p50 ms", "state"], rows), ""]
    done = len(found.rows) - len(found.failed)
    counts = [f"{done} of {len(found.rows)} jobs have a profile"]
    counts += [f"{found.found} of them from an earlier run"] * bool(found.found)
    counts += [f"{found.retried} retries after a worker was lost"] * bool(found.retried)
    counts += [f"{found.duplicates} duplicate results dropped"] * bool(found.duplicates)
    lines.append("; ".join(counts))
    for row in found.failed:
        assert row.failure is not None
        lines.append(f"failed: {row.target}, {row.bundle}: {row.failure.message}. {row.failure.hint}")
    return "\n".join(lines)
