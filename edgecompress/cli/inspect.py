"""``edgecompress inspect``."""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from edgecompress.terminal import add_json_flag, emit_json, table
from edgecompress.types.bundle import MODEL, Manifest, TensorSpec, Variant
from edgecompress.types.provenance import Lineage, Statement
from edgecompress.types.report import Measurements, Report


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
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
    from edgecompress.cli.export_lines import candidate_table, describe, kernel_table
    from edgecompress.kinds import find_kind

    kind = find_kind(manifest.kind)
    own = kind.inspect.rows(manifest, report) if kind.has("inspect") else ()
    fidelity = report.fidelity
    parts = [
        f"{manifest.name}: {manifest.architecture}, {manifest.task}, {manifest.precision} for {manifest.target.name}",
        f"identity  sha256 {identity}",
        *_models(manifest),
        f"needs     {manifest.target.arch}: {', '.join(manifest.target.isa) or 'no particular feature'}",
        *(f"{title:<9} {text}" for title, text in own),
        f"fidelity  {describe(fidelity, kind.metric)} ({fidelity.samples} held-out samples: {report.held_out_text})",
    ]
    parts += [f"note      {note}" for note in report.notes]
    if measurements is not None and measurements.kernels:
        parts += ["", kernel_table(measurements.kernels)]
    parts += ["", _precisions(report), "", _ops(report), ""]
    rows = [[name, f"{r.bytes:_}", r.sha256[:16] + "…"] for name, r in manifest.files.items()]
    parts += [table(["file", "bytes", "sha256"], [*rows, ["total", f"{manifest.bytes:_}", ""]]), ""]
    parts += [_lineage(lineage)]
    if measurements is not None and measurements.latencies:
        host = ", ".join(f"{k} {v}" for k, v in sorted(measurements.host.items()))
        latencies = [
            [r.case, f"{r.p50_ms:.2f}", f"{r.p90_ms:.2f}", f"{r.p99_ms:.2f}", str(r.threads)]
            for r in measurements.latencies
        ]
        parts += ["", f"measured on {host}", table(["shape", "p50 ms", "p90 ms", "p99 ms", "threads"], latencies)]
    if measurements is not None and measurements.candidates:
        parts += ["", "candidates", candidate_table(measurements.candidates, kind.metric)]
    return "\n".join(parts)


def _models(manifest: Manifest) -> Iterator[str]:
    """Each model and variant; a single one gets no heading."""
    for name, model in manifest.models.items():
        if list(manifest.models) != [MODEL]:
            yield f"model     {name}"
        for number, variant in enumerate(model.variants, start=1):
            if len(model.variants) > 1:
                yield f"variant   {number} of {len(model.variants)}: {variant.path}"
            yield from _variant(variant)


def _variant(variant: Variant) -> Iterator[str]:
    from edgecompress.cli.engine_lines import describe_build, describe_engine

    threads = f"{variant.runtime.threads} threads" if variant.runtime.threads else "one thread per core"
    yield f"inputs    {_specs(variant.inputs)}"
    yield f"outputs   {_specs(variant.outputs)}"
    yield f"runtime   {', '.join([variant.backend, *variant.providers, threads])}"
    if variant.engine is not None:
        yield f"engine    {describe_engine(variant.engine)}"
    elif variant.build is not None:
        yield f"engine    {describe_build(variant.build)}"


def _specs(specs: Sequence[TensorSpec]) -> str:
    return ", ".join(f"{s.name} {s.dtype} [{', '.join(map(str, s.shape))}]" for s in specs)


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
