"""``edgecompress verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecompress.cli.output import add_json_flag, emit_json
from edgecompress.errors import BundleError

_FAILED = BundleError.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, help="the target's choice unless given")
    parser.add_argument("--device", type=int, metavar="N", help="the GPU, where there are several")
    parser.add_argument("--allow-mismatch", action="store_true", help="verify on another CPU than the target's")
    parser.add_argument(
        "--key", type=Path, metavar="PUBLIC", help="in PEM: check that its owner signed every file, before all else"
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.cli.export import describe
    from edgecompress.formats.manifest import file_sha256, open_bundle
    from edgecompress.kinds import kind_of_task
    from edgecompress.kinds.decoder.check import verify_decoder
    from edgecompress.kinds.encoder.check import verify_outputs
    from edgecompress.kinds.encoder.runtime import Encoder
    from edgecompress.lineage.signature import signature_of, verify
    from edgecompress.runtime.session import check_host

    signed = verify(options.bundle, options.key) if options.key is not None else None
    manifest, folder = open_bundle(options.bundle)
    unchecked = signature_of(folder) if signed is None else None
    if not options.allow_mismatch:
        check_host(manifest)
    if manifest.generation is not None:
        fidelity, quality = verify_decoder(manifest, folder, options.threads, options.device)
    else:
        with Encoder(manifest, folder, options.threads, options.device) as encoder:
            fidelity, quality = verify_outputs(encoder, folder)
    metric = kind_of_task(manifest.task).metric
    missed = metric.shortfall(fidelity, quality)
    if options.json:
        emit_json(
            {
                "bundle": str(options.bundle),
                "identity": file_sha256(folder / "manifest.json"),
                "files": len(manifest.files),
                "signature": "verified" if signed is not None else "not checked" if unchecked is not None else None,
                "target": manifest.target.name,
                "fidelity": fidelity,
                "budget": quality,
                "missed": missed,
            }
        )
    else:
        size = sum(record.bytes for record in manifest.files.values())
        print(f"files     {len(manifest.files)} files, {size / 1e6:.1f} MB: every sha256 is the manifest's")
        if signed is not None:
            print(f"signature {signed.path.name}: {signed.files} files are as the key {signed.key[:16]}… signed them")
            print("          (not over measurements.json)")
        elif unchecked is not None:
            print(f"signature {unchecked.name} is there and was NOT checked: give --key PUBLIC")
        print(f"schema    {manifest.schema_version}, written by edgecompress {manifest.tool_version}")
        state = "not checked" if options.allow_mismatch else "this machine has what it needs"
        print(f"target    {manifest.target.name}: {state}")
        print(f"fidelity  {describe(fidelity, metric)}, against the {fidelity.samples} PyTorch outputs in the bundle")
        print("verified" if missed is None else f"FAILED: {missed}")
    return 0 if missed is None else _FAILED
