"""The cost of exporting a decoder: seconds, peak memory and bytes, each export in its own process.

    python -m benchmarks.bench_export CHECKPOINT --out-dir FOLDER --kinds rtn gptq kv8 mixed

When an export ends, its row replaces the stored row of the same kind, so kinds can be measured one at a time; each row
has its own host. The checkpoint may have random weights (``benchmarks.r1_shape``): the quality budget is off, and no
quality is reported.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.bench_encoder import note
from benchmarks.cold_start import command_row
from benchmarks.hosts import describe_host
from benchmarks.ours_encoder import COMMAND
from benchmarks.peers_decoder import folder_bytes
from benchmarks.result_lines import RESULTS, lines_of, write

KINDS = {
    "rtn": ["--precision", "int4", "--method", "rtn"],
    "gptq": ["--precision", "int4", "--method", "gptq"],
    "kv8": ["--precision", "int4", "--method", "rtn", "--kv-cache", "int8"],
    "mixed": ["--precision", "mixed", "--method", "rtn"],
}
_OPEN = ["--block-size", "128", "--max-kl", "100", "--max-perplexity-ratio", "100"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--out-dir", type=Path, required=True, help="where the bundles stay")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path, default=RESULTS / "export.jsonl")
    options = parser.parse_args()
    options.out_dir.mkdir(parents=True, exist_ok=True)
    for kind in options.kinds:
        bundle = options.out_dir / f"{kind}.bundle"
        flags = [*KINDS[kind], *_OPEN]
        command = [*COMMAND, "export", str(options.checkpoint), *flags, "-o", str(bundle), "--force"]
        host = describe_host()  # its load is that before the export
        row = command_row(f"edgecompress export {' '.join(flags)}", command, 1)
        if row["kind"] == "row":
            row["bundle_bytes"] = folder_bytes(bundle, "*")
        there = lines_of(options.out.read_text(encoding="utf-8")) if options.out.exists() else []
        others = [line for line in there if line["name"] != row["name"]]
        write(options.out, [*others, row | {"checkpoint": options.checkpoint.name, "host": host}])
        note(json.dumps(row))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
