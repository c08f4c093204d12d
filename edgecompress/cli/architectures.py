"""``edgecompress architectures``."""

from __future__ import annotations

import argparse

from edgecompress.errors import UsageError, nearest
from edgecompress.terminal import add_json_flag, emit_json, table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="a model_type of config.json (default: all)")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.kinds.architectures import architectures

    known = architectures()
    chosen = list(known.values())
    if options.name is not None:
        if options.name not in known:
            raise UsageError(
                f"the architecture '{options.name}' was never tested.{nearest(options.name, known)}",
                hint="It may work: an export is checked against PyTorch before it is written.",
            )
        chosen = [known[options.name]]
    if options.json:
        emit_json([{"kind": kind, **vars(a)} for kind, a in chosen])
        return 0
    rows = [[a.name, kind, "supported" if a.refused is None else "refused", a.refused or a.note] for kind, a in chosen]
    print(table(["architecture", "kind", "verdict", "why"], rows))
    supported = sum(a.refused is None for _, a in chosen)
    if options.name is None:
        print(f"\n{supported} of {len(chosen)} tested architectures are supported")
    return 0
