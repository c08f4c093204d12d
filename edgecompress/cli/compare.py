"""``edgecompress compare``."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecompress.terminal import add_json_flag, emit_json, progress, table, write_json
from edgecompress.types.profile import Compared, Comparison


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "sides",
        nargs="+",
        metavar="SIDE",
        help="a bundle, torch:CHECKPOINT, openvino:MODEL.xml or onnx:MODEL.onnx; the first is the baseline",
    )
    parser.add_argument("--shapes", help="texts x tokens (1x128)")
    parser.add_argument("--threads", type=int, help="threads of every side (default: the cores of this machine)")
    parser.add_argument("--launches", type=int, help="how often every side is opened again (16)")
    parser.add_argument("--pairs", type=int, help="pairs of calls per launch (40)")
    parser.add_argument("--allow-mismatch", action="store_true", help="compare bundles that were made for another CPU")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="write the comparison as JSON")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.errors import OutputError, UsageError
    from edgecompress.formats.cpu import host_cores
    from edgecompress.profile.compare import LAUNCHES, PAIRS, compare
    from edgecompress.profile.sides import parse_side, read_workloads

    if options.threads is not None and options.threads < 1:
        raise UsageError(
            f"threads must be at least 1, not {options.threads}", hint="Leave --threads out to use all cores."
        )
    if options.output is not None and not (folder := options.output.absolute().parent).is_dir():
        raise OutputError(f"there is no folder {folder}", hint="Create it, or give another -o FILE.")
    specs = [parse_side(text, allow_mismatch=options.allow_mismatch) for text in options.sides]
    workloads = read_workloads(options.shapes, specs)
    with progress() as show:
        found = compare(
            specs,
            workloads,
            options.threads or host_cores(),
            launches=LAUNCHES if options.launches is None else options.launches,
            pairs=PAIRS if options.pairs is None else options.pairs,
            show=show,
        )
    if options.output is not None:
        write_json(found, options.output)
    if options.json:
        emit_json(found)
    else:
        print(describe(found))
    return 0


def describe(found: Comparison) -> str:
    """For a terminal."""
    from edgecompress.profile.host import describe_noise

    rows = [_row(row) for row in found.rows]
    heads = ["shape", "side", "p50 ms", "the first's time over its", "verdict", "outputs"]
    lines = [
        f"{found.host.cpu}, {found.threads} threads; {describe_noise(found.noise)}",
        f"{found.launches} launches of {found.pairs} pairs; 99 % intervals",
        "",
        table(heads, rows),
        *(f"note: {remark}" for remark in found.remarks),
    ]
    return "\n".join(lines)


def _row(row: Compared) -> list[str]:
    ratio = row.first_over_it
    interval = f"{ratio.middle:.3f}  [{ratio.low:.3f}, {ratio.high:.3f}]"
    said = row.verdict
    if said == "the first":
        interval = "1"
    elif said == "no difference seen":
        said += f"; one of {row.least_difference:.1%} would have been"
    outputs = "of other shapes" if row.agreement is None else f"cosine {row.agreement:.4f}"
    return [row.workload, row.side, f"{row.p50_ms:.3f}", interval, said, outputs]
