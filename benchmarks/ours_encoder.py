"""Our side of the encoder benchmark: bundles made by the command line and run as their manifest says."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers_encoder import SPIN_SETTING, Side, Vectors, bytes_of, pool
from benchmarks.texts_encoder import Feeds

COMMAND = [sys.executable, "-c", "import sys; from edgecompress.cli import main; sys.exit(main())"]
# (precision, --kernels): kernels are named or left out, so that what is measured does not hang on what was measured.
DEFAULT_BUNDLES = (
    ("int8-static", "none"), ("int8-dynamic", "none"), ("int8-dynamic", "encoder"), ("fp32", "none"),
)  # fmt: skip
WITH_KERNELS = " with kernels"


def export_bundle(checkpoint: str, precision: str, kernels: str, target: str, out_dir: Path) -> Path:
    """``edgecompress export`` in a process of its own. Raises RuntimeError with its last line if it fails."""
    arguments = ["export", checkpoint, "--target", target, "--precision", precision, "--kernels", kernels]
    arguments += ["-o", str(out_dir)]
    done = subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise RuntimeError(f"edgecompress export --precision {precision} exited with {done.returncode}: {lines[0]}")
    return out_dir


def bundle_kind(bundle: Path) -> str:
    """The manifest's precision (for ``auto``, the chosen one), and whether the bundle has our kernels."""
    return _kind(importlib.import_module("edgecompress.formats.manifest").read_manifest(bundle))


def _kind(manifest: Any) -> str:
    return f"{manifest.precision}{WITH_KERNELS if manifest.variant().kernels else ''}"


def our_side(bundle: Path, threads: int, label: str = "") -> Side:
    """The bundle through the runtime: the model alone for shapes of one length, as for every peer.

    Mixed lengths go through the runtime's own plan of batches and its padding, both inside the time.
    Raises RuntimeError if the bundle lets an idle pool spin: the other sides would pay for it.
    """
    runtime = importlib.import_module("edgecompress.runtime")
    batching = importlib.import_module("edgecompress.runtime.batching")
    encoder = runtime.load(bundle, threads=threads)
    manifest = encoder.manifest
    if manifest.variant().runtime.session_config.get(SPIN_SETTING[0]) != SPIN_SETTING[1]:
        raise RuntimeError(f"{bundle.name}: its sessions spin when idle, so it cannot be timed beside others")

    def run(inputs: Feeds) -> Vectors:
        output: Vectors = encoder.run(inputs)[0]
        return pool(output, inputs["attention_mask"]) if output.ndim == 3 else output

    def encode(rows: list[tuple[int, ...]]) -> Vectors:
        tokens = [batching.Tokens(ids=list(r), type_ids=[0] * len(r), offsets=[], sequence_ids=[]) for r in rows]
        vectors: Vectors | None = None
        for batch, (found,) in encoder.run_tokens(tokens):
            vectors = np.empty((len(rows), found.shape[1]), dtype=np.float32) if vectors is None else vectors
            vectors[batch] = found
        assert vectors is not None
        return vectors

    return Side(
        name=f"edgecompress {_kind(manifest)}{label}",
        run=run,
        model_bytes=bytes_of(bundle / manifest.variant().path),
        note=f"bundle for {manifest.target.name}",
        ours=True,
        encode=encode,
    )
