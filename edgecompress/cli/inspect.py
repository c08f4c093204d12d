"""``edgecompress inspect``."""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

from edgecompress.cli.output import add_json_flag, emit_json, table
from edgecompress.types.bundle import Manifest
from edgecompress.types.provenance import Lineage, Statement
from edgecompress.types.report import Measurements, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.formats import manifest as files

    manifest, folder = files.open_bundle(options.bundle)
    identity = files.file_sha256(folder / files.MANIFEST)
    report, lineage = files.read_report(folder), files.read_lineage(folder)
    measurements = files.read_measurements(folder)
    if options.json:
        emit_json(
            {
                "identity": identity,
                "manifest": manifest,
                "report": report,
                "lineage": lineage,
                "measurements": measurements,
            }
        )
        return 0
    print(_text(manifest, report, lineage, measurements, identity))
    return 0


def _text(
    manifest: Manifest, report: Report, lineage: Lineage, measurements: Measurements | None, identity: str
) -> str:
    from edgecompress.cli.engine_lines import describe_build, describe_engine
    from edgecompress.cli.export import candidate_table, describe, kernel_table
    from edgecompress.kinds import kind_of_task

    metric = kind_of_task(manifest.task).metric
    size = sum(record.bytes for record in manifest.files.values())
    runtime = manifest.runtime
    threads = f"{runtime.threads} threads" if runtime.threads else "as many threads as cores"
    parts = [
        f"{manifest.name}: {manifest.architecture}, {manifest.task}, {manifest.precision} for {manifest.target.name}",
        f"identity  sha256 {identity}",
        f"inputs    {_specs(manifest.inputs)}",
        f"outputs   {_specs(manifest.outputs)}",
        f"runtime   {', '.join([manifest.target.backend, *manifest.target.providers, threads])}",
        *([f"engine    {describe_engine(manifest.engine)}"] if manifest.engine is not None else []),
        *([f"engine    {describe_build(manifest.build)}"] if manifest.build and not manifest.engine else []),
        f"needs     {manifest.target.arch}: {', '.join(manifest.target.isa) or 'no feature in particular'}",
        *_cache(manifest, report),
        f"fidelity  {describe(report.fidelity, metric)} ({report.fidelity.samples} held-out samples: {report.held_out_text})",
    ]
    parts += [f"note      {note}" for note in report.notes]
    if measurements is not None and measurements.kernels:
        parts += ["", kernel_table(measurements.kernels)]
    parts += ["", _precisions(report), "", _ops(report), ""]
    rows = [[name, f"{r.bytes:_}", r.sha256[:16] + "…"] for name, r in manifest.files.items()]
    parts += [table(["file", "bytes", "sha256"], [*rows, ["total", f"{size:_}", ""]]), ""]
    parts += [_lineage(lineage)]
    if measurements is not None and measurements.latencies:
        host = ", ".join(f"{k} {v}" for k, v in sorted(measurements.host.items()))
        latencies = [
            [r.case, f"{r.p50_ms:.2f}", f"{r.p90_ms:.2f}", f"{r.p99_ms:.2f}", str(r.threads)]
            for r in measurements.latencies
        ]
        parts += ["", f"measured on {host}", table(["shape", "p50 ms", "p90 ms", "p99 ms", "threads"], latencies)]
    if measurements is not None and measurements.candidates:
        parts += ["", "what was tried", candidate_table(measurements.candidates, metric)]
    return "\n".join(parts)


def _cache(manifest: Manifest, report: Report) -> list[str]:
    """A decoder's KV cache: in what it is kept, and what that costs."""
    past = [spec for spec in manifest.inputs if spec.name.startswith("past_key_values.")]
    if manifest.generation is None or not past:
        return []
    width = 1 if manifest.generation.kv_dtype == "int8" else 4
    size = sum(width * int(spec.shape[1]) * int(spec.shape[3]) for spec in past)
    line = f"KV cache  {manifest.generation.kv_dtype}, {size:_} bytes a token"
    cost = report.kv_cache
    if cost is not None:
        line += f" (float32: {cost.float_bytes_per_token:_}); perplexity ratio of the cache alone "
        line += f"{cost.perplexity_ratio:.4f}, with a float32 cache {cost.float_fidelity.perplexity_ratio:.4f}"
        line += f"; scales from {cost.calibration_tokens:_} tokens"
    return [line]


def _specs(specs: tuple[object, ...]) -> str:
    return ", ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs)  # type: ignore[attr-defined]


def _precisions(report: Report) -> str:
    rows = [
        [layer.name, layer.op, "×".join(map(str, layer.shape)), layer.precision, f"{layer.bytes:_}"]
        for layer in report.layers
    ]
    headers = ["layer", "op", "weight", "precision", "bytes"]
    if any(layer.alone_kl is not None for layer in report.layers):
        headers.append("KL if it alone is int4")
        for row, layer in zip(rows, report.layers, strict=True):
            row.append(f"{layer.alone_kl:.2e}" if layer.alone_kl is not None else "—")
    return table(headers, rows)


def _ops(report: Report) -> str:
    groups: dict[int, list[str]] = defaultdict(list)
    for op, count in report.ops.items():
        groups[count].append(op)
    lines = [f"  {count:>4} × {', '.join(groups[count])}" for count in sorted(groups, reverse=True)]
    return "\n".join(["graph", *lines])


def _lineage(lineage: Lineage) -> str:
    def row(name: str, statement: Statement) -> list[str]:
        return [name, statement.value or "unknown", statement.said_by]

    rows = [
        row("source", lineage.source),
        row("revision", lineage.revision),
        row("licence", lineage.licence if lineage.licence_name.value is None else lineage.licence_name),
        row("status", lineage.status),
        row("base model", lineage.base_model),
        row("datasets", lineage.datasets),
        row("calibration", lineage.calibration),
        *([row("accepted", lineage.accepted)] if lineage.accepted.value is not None else []),
    ]
    return table(["lineage", "value", "who says so"], [[a, b if len(b) < 90 else b[:89] + "…", c] for a, b, c in rows])
