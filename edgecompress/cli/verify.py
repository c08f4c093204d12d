"""``edgecompress verify``."""

from __future__ import annotations

import argparse
from pathlib import Path

from edgecompress.errors import BundleError, UsageError
from edgecompress.terminal import add_json_flag, emit_json

_FAILED = BundleError.exit_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("--threads", type=int, help="threads (default: the target's)")
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU, if there are several")
    parser.add_argument("--allow-mismatch", action="store_true", help="verify a bundle that was made for another CPU")
    parser.add_argument(
        "--key", type=Path, metavar="PUBLIC", help="public key in PEM: first check that its owner signed every file"
    )
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.cli.export_lines import describe
    from edgecompress.formats.manifest import MANIFEST, file_sha256, open_bundle
    from edgecompress.formats.recipe import read_recipe
    from edgecompress.kinds import find_kind
    from edgecompress.lineage.signature import signature_of, verify
    from edgecompress.loading import open_models
    from edgecompress.runtime.session import check_host

    signed = verify(options.bundle, options.key) if options.key is not None else None
    manifest, folder = open_bundle(options.bundle)
    unchecked = signature_of(folder) if signed is None else None
    if not options.allow_mismatch:
        check_host(manifest)
    kind = find_kind(manifest.kind)
    if not kind.has("check"):
        raise UsageError(
            f"`edgecompress verify` cannot check bundles of the kind '{kind.name}'",
            hint="Compare its outputs with the checkpoint's yourself; `edgecompress inspect` shows its files.",
        )
    fidelity = kind.check.check(open_models(manifest, folder, threads=options.threads, device=options.device))
    quality = read_recipe(folder / "recipe.toml").quality
    missed = kind.metric.shortfall(fidelity, quality)
    if options.json:
        emit_json(
            {
                "bundle": str(options.bundle),
                "identity": file_sha256(folder / MANIFEST),
                "files": len(manifest.files),
                "signature": "verified" if signed is not None else "not checked" if unchecked is not None else None,
                "target": manifest.target.name,
                "fidelity": fidelity,
                "budget": quality,
                "missed": missed,
            }
        )
    else:
        print(
            f"files     {len(manifest.files)} files, {manifest.bytes / 1e6:.1f} MB: every sha256 matches the manifest"
        )
        if signed is not None:
            print(f"signature {signed.path.name}: {signed.files} files match the signature of key {signed.key[:16]}…")
            print("          (measurements.json is not signed)")
        elif unchecked is not None:
            print(f"signature {unchecked.name} was NOT checked: give --key PUBLIC")
        print(f"schema    {manifest.schema_version}, written by edgecompress {manifest.tool_version}")
        state = "not checked" if options.allow_mismatch else "this machine has what it needs"
        print(f"target    {manifest.target.name}: {state}")
        print(
            f"fidelity  {describe(fidelity, kind.metric)}, against the {fidelity.samples} PyTorch outputs in the bundle"
        )
        print("verified" if missed is None else f"FAILED: {missed}")
    return 0 if missed is None else _FAILED
