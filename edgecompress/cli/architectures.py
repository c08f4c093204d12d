"""``edgecompress architectures``."""

from __future__ import annotations

import argparse

from edgecompress.errors import UsageError, nearest
from edgecompress.terminal import add_json_flag, emit_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="a model_type as config.json has it; all of them if left out")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.kinds.architectures import ARCHITECTURES

    chosen = list(ARCHITECTURES.values())
    if options.name is not None:
        if options.name not in ARCHITECTURES:
            raise UsageError(
                f"'{options.name}' was never tried.{nearest(options.name, ARCHITECTURES)}",
                hint="It may work: every export is checked against PyTorch before anything is written.",
            )
        chosen = [ARCHITECTURES[options.name]]
    if options.json:
        emit_json(chosen)
        return 0
    rows = [[a.name, a.kind, "supported" if a.refused is None else "refused", a.refused or a.note] for a in chosen]
    print(table(["architecture", "kind", "verdict", "why"], rows))
    supported = sum(a.refused is None for a in chosen)
    if options.name is None:
        print(f"\n{supported} of {len(chosen)} that were tried are supported")
    return 0
