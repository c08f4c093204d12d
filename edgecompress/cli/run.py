"""``edgecompress run``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from edgecompress.errors import HostError, UsageError
from edgecompress.kinds import find_kind, kinds
from edgecompress.kinds.base import FlagGroup, Kind
from edgecompress.terminal import add_json_flag


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument(
        "inputs", nargs="*", default=[], metavar="INPUT", help="a text, a prompt or an image file (default: stdin)"
    )
    parser.add_argument(
        "--file", type=Path, help="read inputs from a file: one per line, or the whole file as one prompt"
    )
    parser.add_argument("--threads", type=int, help="threads (default: the target's)")
    parser.add_argument("--device", type=int, metavar="N", help="number of the GPU, if there are several")
    parser.add_argument("--allow-mismatch", action="store_true", help="run a bundle that was made for another CPU")
    add_json_flag(parser)
    flags = KindFlags()
    for kind in kinds().values():
        if kind.has("run"):
            flags.add(kind, parser.add_argument_group(kind.run.PURPOSE))
    parser.set_defaults(kind_flags=flags)


def run(options: argparse.Namespace) -> int:
    from edgecompress.loading import load

    wanted = {"threads": options.threads, "device": options.device, "allow_mismatch": options.allow_mismatch}
    with load(options.bundle, **wanted) as model:
        kind = find_kind(model.manifest.kind)
        if not kind.has("run"):
            raise UsageError(
                f"`edgecompress run` cannot run bundles of the kind '{kind.name}'",
                hint="Load it in Python: `edgecompress.load(…)`.",
            )
        options.kind_flags.refuse(kind, model.manifest.task, options)
        return kind.run.run(model, options)


class KindFlags:
    """Every kind's flags in one parser: a flag that several kinds share is added once, and its kinds are recorded."""

    def __init__(self) -> None:
        self._actions: dict[str, argparse.Action] = {}  # by each of a flag's names
        self._kinds: dict[argparse.Action, list[Kind]] = {}

    def add(self, kind: Kind, group: FlagGroup) -> None:
        """Raises HostError for a kind that redefines one of the command's own flags."""
        kind.run.add_arguments(_KindGroup(kind, group, self))

    def add_argument(self, kind: Kind, group: FlagGroup, names: tuple[str, ...], settings: dict[str, Any]) -> None:
        action = next((self._actions[name] for name in names if name in self._actions), None)
        if action is None:
            try:
                action = group.add_argument(*names, **settings)
            except argparse.ArgumentError as error:
                raise HostError(
                    f"the kind '{kind.name}' redefines a flag of `edgecompress run`: {'/'.join(names)}",
                    hint=f"Uninstall the package of {kind.plug_in.package}, or ask its author to rename the flag.",
                ) from error
        elif settings.get("help", "") not in (action.help or ""):
            action.help = f"{action.help}; for {kind.run.PURPOSE}: {settings['help']}"
        self._actions |= dict.fromkeys(action.option_strings, action)
        self._kinds.setdefault(action, []).append(kind)

    def refuse(self, kind: Kind, task: str, options: argparse.Namespace) -> None:
        """Raises UsageError for a given flag that belongs to other kinds only."""
        for action, owners in self._kinds.items():
            given = getattr(options, action.dest) not in (None, False)
            if given and kind.name not in [owner.name for owner in owners]:
                raise UsageError(
                    f"{action.option_strings[-1]} is for {owners[0].run.PURPOSE}, and this bundle is for {task}",
                    hint=f"Leave out {action.option_strings[-1]}.",
                )


class _KindGroup:
    """A group of one kind's flags."""

    def __init__(self, kind: Kind, group: FlagGroup, flags: KindFlags) -> None:
        self._kind, self._group, self._flags = kind, group, flags

    def add_argument(self, *names: str, **settings: Any) -> None:
        self._flags.add_argument(self._kind, self._group, names, settings)
