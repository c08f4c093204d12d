"""A process that opens a bundle and makes one call, for :mod:`edgecompress.profile.cold`; prints JSON on stdout."""

from __future__ import annotations

import time

_BEGAN = time.monotonic()

import json  # noqa: E402
import sys  # noqa: E402
from pathlib import Path  # noqa: E402


def _peak_rss_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> None:
    job = json.loads(sys.argv[1])
    from edgecompress.backends import find_backend
    from edgecompress.kinds import find_kind
    from edgecompress.loading import load

    runtime = find_kind(job["kind"]).runtime
    _ = [find_backend(name).load for name in job["backends"]]  # load() imports them too
    imported = time.monotonic()
    with load(job["bundle"], threads=job["threads"], device=job["device"], allow_mismatch=True) as model:
        loaded = time.monotonic()
        runtime.first_call(model)
        done = time.monotonic()
    print(
        json.dumps(
            {
                "import": imported - _BEGAN,
                "load": loaded - imported,
                "first": done - loaded,
                "done_at": done,
                "peak_rss_bytes": _peak_rss_bytes(),
            }
        )
    )


if __name__ == "__main__":
    main()
