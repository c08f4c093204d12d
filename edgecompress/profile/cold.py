"""The cost of a start, in fresh processes. Files are in the system's cache: reading them from disk comes on top."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from edgecompress.errors import HostError
from edgecompress.types.bundle import Manifest
from edgecompress.types.profile import ColdStart


def cold_start(manifest: Manifest, folder: Path, threads: int, device: int | None, processes: int = 3) -> ColdStart:
    """Medians over ``processes`` of them. Raises HostError with the last line of stderr if one fails."""
    backends = sorted({variant.backend for variant in manifest.variants})
    bundle = {"bundle": str(folder), "kind": manifest.kind, "backends": backends}
    job = json.dumps({**bundle, "threads": threads, "device": device})
    command = [sys.executable, "-m", "edgecompress.profile.cold_process", job]
    found = []
    for _ in range(processes):
        began = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            said = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
            raise HostError(f"a fresh process cannot open the bundle: {said[-1]}", hint="Run `edgecompress doctor`.")
        row = json.loads(done.stdout)
        found.append([row["done_at"] - began, row["import"], row["load"], row["first"], row["peak_rss_bytes"]])
    whole, imports, loads, firsts, peak = np.median(np.array(found), axis=0)
    return ColdStart(
        processes=processes,
        whole_ms=round(float(whole) * 1e3, 1),
        import_ms=round(float(imports) * 1e3, 1),
        load_ms=round(float(loads) * 1e3, 1),
        first_ms=round(float(firsts) * 1e3, 2),
        peak_rss_bytes=int(peak),
    )
