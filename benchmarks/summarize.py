"""Markdown tables from the results' JSON lines: ``python -m benchmarks.summarize [FILE …]``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.result_lines import RESULTS, Results, Row, read


def markdown(headers: list[str], rows: list[list[str]]) -> str:
    lines = [headers, ["---"] * len(headers), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def describe(results: Results) -> str:
    host = results.host
    versions = host.get("versions", {})
    shown = ("onnxruntime", "openvino", "nncf", "torch", "transformers")
    known = ", ".join(f"{name} {versions[name]}" for name in shown if versions.get(name, "absent") != "absent")
    where = f"{host.get('cpu')} (family/model {host.get('cpu_family_model')}), {host.get('cores')} cores"
    where += ", virtual machine" if host.get("virtual_machine") else ""
    settings = f" {results.about['settings']}." if "settings" in results.about else ""
    return f"{where}; {', '.join(host.get('features', []))}; Python {host.get('python')}; {known}.{settings}"


def name_of(row: Row) -> str:
    return f"**{row['name']}**" if row.get("ours") else str(row["name"])


def band(row: Row) -> str:
    return f"{row['ratio_median']:.2f} ({row['ratio_p10']:.2f}-{row['ratio_p90']:.2f})"


def encoder_tables(results: Results) -> str:
    """One table per thread count: speed over the baseline for each shape; then fidelity and size, once a side."""
    about, rows = results.about, results.rows
    parts = [describe(results)]
    timed = [row for row in rows if row["kind"] == "row"]
    shapes = list(dict.fromkeys(row["shape"] for row in timed))
    for threads in dict.fromkeys(row["threads"] for row in timed):
        cells = {(row["name"], row["shape"]): row for row in timed if row["threads"] == threads}
        names = list(dict.fromkeys(name for name, _ in cells))
        body = []
        for name in names:
            found = [cells.get((name, shape)) for shape in shapes]
            body.append([name_of(next(row for row in found if row)), *(band(row) if row else "" for row in found)])
        plural = "s" if threads > 1 else ""
        title = f"Times as fast as {about['baseline']}, {threads} thread{plural}: median of paired ratios (p10-p90)"
        parts += [title, markdown(["side", *shapes], body)]
        against = [row for row in cells.values() if "best_peer" in row]
        if against:
            body = [[name_of(row), row["shape"], row["best_peer"]["name"], band(row["best_peer"])] for row in against]
            title = f"Times as fast as the fastest peer of the shape, {threads} thread{plural}"
            parts += [title, markdown(["side", "shape", "fastest peer", "ratio"], body)]
    sides = {row["name"]: row for row in rows if "mean_cosine" in row}
    body = [
        [
            name_of(row) + (" (wrong, not timed)" if row["kind"] == "wrong" else ""),
            f"{row['mean_cosine']:.4f} / {row['min_cosine']:.4f}",
            f"{row['mean_cosine_passages']:.4f} / {row['min_cosine_passages']:.4f}",
            f"{row['top10_agreement']:.3f}",
            f"{row['model_bytes'] / 1e6:.1f}",
        ]
        for row in sides.values()
    ]
    headers = ["side", "cosine, sentences: mean / min", "128-256 tokens: mean / min", "top-10 kept", "model, MB"]
    parts += [f"Fidelity to {about['reference']} on held-out text", markdown(headers, body)]
    return "\n\n".join([*parts, *not_run(rows)])


def start_tables(results: Results) -> str:
    body = []
    for row in (row for row in results.rows if row["kind"] == "row"):
        against = band(row["against_torch"]) if "against_torch" in row else ""
        wall = f"{row['wall_s_median']:.2f} ({row['wall_s_p10']:.2f}-{row['wall_s_p90']:.2f})"
        body.append([name_of(row), wall, f"{row['peak_rss_bytes'] / 1e6:.0f}", against, str(row["runs"])])
    headers = [
        "process, start to first vector or to its end",
        "wall, s",
        "peak RSS, MB",
        "times as fast as torch",
        "runs",
    ]
    return "\n\n".join([describe(results), markdown(headers, body), *not_run(results.rows)])


def not_run(rows: Sequence[Row]) -> list[str]:
    reasons = {row["name"]: row["reason"] for row in rows if row["kind"] == "not run"}
    return [f"Not run: {name}: {why}" for name, why in reasons.items()]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, nargs="*", help="default: encoder.jsonl and cold_start.jsonl of results/")
    files = parser.parse_args().files or [RESULTS / "encoder.jsonl", RESULTS / "cold_start.jsonl"]
    for path in (path for path in files if path.exists()):
        results = read(path)
        print(encoder_tables(results) if "baseline" in results.about else start_tables(results), end="\n\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
