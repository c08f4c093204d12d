"""``edgecompress estimate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecompress.terminal import add_json_flag, emit_json, table
from edgecompress.types.estimate import Estimate, Estimates
from edgecompress.types.workload import CALL

_PER_S = 5  # its column


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--target", help="one or several with commas: raspberry-pi-5,rtx-4090, a .toml file, local")
    parser.add_argument(
        "--measured",
        type=Path,
        action="append",
        default=[],
        metavar="PROFILE",
        help="a profile.json from that machine, of any bundle; repeat it for more; narrows the range",
    )
    parser.add_argument("--shapes", help="texts x tokens: 1x16,8x128")
    parser.add_argument("--threads", type=int, metavar="N", help="threads, on local or a profiled machine")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.profile.estimate import estimate

    targets = [name.strip() for name in options.target.split(",")] if options.target else []
    found = estimate(options.bundle, targets, options.measured, options.shapes, options.threads)
    if options.json:
        emit_json(found)
    else:
        print(describe(found))
    return 0


def describe(found: Estimates) -> str:
    """For a terminal."""
    heads = ["target", "shape", "threads", "from ms", "to ms", "tokens/s", "dominated by", "memory"]
    rows = [_row(row) for row in found.rows]
    if not any(row[_PER_S] for row in rows):  # of decoders
        heads, rows = heads[:_PER_S] + heads[_PER_S + 1 :], [row[:_PER_S] + row[_PER_S + 1 :] for row in rows]
    lines = [f"{found.bundle}: estimates, not measurements", table(heads, rows)]
    for basis in dict.fromkeys(row.basis for row in found.rows):
        names = ", ".join(dict.fromkeys(row.target for row in found.rows if row.basis == basis))
        lines.append(f"{names}: {basis}")
    return "\n".join([*lines, *(f"note: {remark}" for remark in found.remarks)])


def _row(row: Estimate) -> list[str]:
    per_s = ""
    if row.tokens is not None:
        per_s = f"{row.tokens / row.ms.high * 1e3:.3g} to {row.tokens / row.ms.low * 1e3:.3g}"
    return [
        row.target,
        row.workload if row.phase == CALL else f"{row.workload} {row.phase}",
        str(row.threads or "—"),
        f"{row.ms.low:g}",
        f"{row.ms.high:g}",
        per_s,
        _MOST[row.bound],
        {None: "unknown", True: "fits", False: "DOES NOT FIT"}[row.fits_memory],
    ]


_MOST = {"compute": "arithmetic", "memory": "memory traffic", "overhead": "overhead per node"}
