"""``edgecompress targets``."""

from __future__ import annotations

import argparse
from dataclasses import fields
from typing import Any

from edgecompress.errors import UsageError
from edgecompress.terminal import add_json_flag, emit_json, table
from edgecompress.types.target import Target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("action", nargs="?", choices=["list", "show", "detect"], default="list")
    parser.add_argument("name", nargs="?", help="target to show")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress import targets

    if options.action == "show" and not options.name:
        raise UsageError(
            "no target was named", hint="`edgecompress targets` lists them; then `edgecompress targets show NAME`."
        )
    if options.action == "list":
        known = [targets.find_target(name) for name in targets.known_targets()]
        if options.json:
            emit_json(known)
        else:
            print(_list(known))
        return 0
    target = targets.detect() if options.action == "detect" else targets.find_target(options.name)
    if options.json:
        emit_json(target)
    else:
        print(_show(target))
        if options.action == "detect":
            names = [n for n in targets.known_targets() if not targets.matches_host(targets.find_target(n))]
            print(f"\nthis machine runs bundles for: {', '.join(names) or 'none of the known targets'}")
    return 0


def _list(known: list[Target]) -> str:
    rows = []
    for target in known:
        state = "yes" if target.accelerator == "cpu" else "not run yet"
        rows.append([target.name, target.arch, ", ".join(target.backends), state, target.title])
    return table(["target", "arch", "backend", "works now", "hardware"], rows)


def _show(target: Target) -> str:
    rows = []
    for field in fields(target):
        value: Any = getattr(target, field.name)
        if value is None or value in ((), {}, "") or field.name in ("sources", "schema_version"):
            continue
        if isinstance(value, tuple):
            text = ".".join(map(str, value)) if field.name == "compute_capability" else ", ".join(map(str, value))
        elif isinstance(value, dict):
            text = ", ".join(f"{k} {v:.4g}" for k, v in value.items())
        elif isinstance(value, int) and "bytes" in field.name:
            text = f"{value:_}"
        else:
            text = str(value)
        rows.append([field.name, text, target.sources.get(field.name, "")])
    return table(["field", "value", "source"], rows)
