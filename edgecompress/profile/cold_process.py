"""A process that opens a bundle and runs one text, for :mod:`edgecompress.profile.cold`; JSON on stdout."""

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
    import numpy as np

    from edgecompress.kinds.encoder.runtime import Encoder
    from edgecompress.runtime import load

    imported = time.monotonic()
    with load(job["bundle"], threads=job["threads"], device=job["device"], allow_mismatch=True) as model:
        loaded = time.monotonic()
        if not isinstance(model, Encoder):
            model.generate(job["text"], max_new_tokens=1, temperature=0.0)
        elif model.manifest.image is not None:
            image = model.manifest.image
            model.run({"pixel_values": np.zeros((1, 3, image.height, image.width), dtype=np.float32)})
        else:
            for _ in model.batches([job["text"]], truncate=True):
                pass
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
