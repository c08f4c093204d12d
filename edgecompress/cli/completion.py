"""``edgecompress completion``: a static script, so that a press of the Tab key starts no Python."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass

from edgecompress.cli.lineage import FORMATS
from edgecompress.terminal import add_json_flag, emit_json

SHELLS = ("bash", "zsh", "fish")
_OWN_VALUES = {"lineage": {"--format": FORMATS}}
"""Command -> flags that mean something else in it."""


@dataclass(frozen=True, kw_only=True)
class Completions:
    """What can follow one command. A flag without values is completed with file names."""

    flags: Mapping[str, str]  # -> its help
    values: Mapping[str, tuple[str, ...]]  # of a flag
    operands: tuple[str, ...]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("shell", choices=SHELLS, help="bash, zsh or fish: eval its output in the shell's start-up file")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    text = {"bash": bash, "zsh": zsh, "fish": fish}[options.shell](completions())
    if options.json:
        emit_json({"shell": options.shell, "script": text})
    else:
        print(text, end="")
    return 0


def completions() -> dict[str, Completions]:
    """Of every command, read from its own parser."""
    from edgecompress.cli import COMMANDS, parser_of

    shared = _values()
    found = {}
    for command in COMMANDS:
        actions = parser_of(command)._actions
        flags = {name: action.help or "" for action in actions for name in action.option_strings}
        operands = [str(choice) for a in actions if not a.option_strings for choice in a.choices or ()]
        values = shared | _OWN_VALUES.get(command, {})
        if command == "targets":
            operands += values["--target"]
        found[command] = Completions(
            flags=flags, values={name: values[name] for name in flags if name in values}, operands=tuple(operands)
        )
    return found


def _values() -> dict[str, tuple[str, ...]]:
    """The flags that take one of a few names."""
    from edgecompress.backends import backends, target_names
    from edgecompress.kinds import kinds, known_tasks
    from edgecompress.profile.run import SCENARIOS
    from edgecompress.targets import LOCAL, known_targets
    from edgecompress.types.precision import AUTO, PRECISIONS
    from edgecompress.types.provenance import POLICIES
    from edgecompress.types.recipe import (
        BLOCK_METHODS,
        BUNDLE,
        CALIBRATION_METHODS,
        HARDWARE_COMPATIBILITY,
        KERNELS,
        KV_CACHES,
    )

    short = [name for kind in kinds().values() for name in kind.plan.SHORT_PRECISIONS]
    formats = [form.name for kind in kinds().values() for form in kind.plan.FORMATS]
    return {
        "--target": (*known_targets(), LOCAL),
        "--precision": tuple(dict.fromkeys((AUTO, *PRECISIONS, *short))),
        "--backend": tuple(dict.fromkeys((*target_names(), *backends()))),
        "--task": known_tasks(),
        "--format": tuple(dict.fromkeys((BUNDLE, *formats))),
        "--method": BLOCK_METHODS,
        "--calibration-method": CALIBRATION_METHODS,
        "--kv-cache": KV_CACHES,
        "--kernels": ("auto", "none", *KERNELS),
        "--engine-compatible": HARDWARE_COMPATIBILITY,
        "--provenance": POLICIES,
        "--scenario": SCENARIOS,
    }


def bash(found: Mapping[str, Completions]) -> str:
    """Needs no bash-completion package, and works in zsh under bashcompinit."""
    lines = [
        '# edgecompress: completion for bash. In ~/.bashrc:  eval "$(edgecompress completion bash)"',
        "_edgecompress() {",
        "    local current=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} command=${COMP_WORDS[1]}",
        "    local words= flags= operands=",
        "    COMPREPLY=()",
        '    case "$command" in',
    ]
    for command, of in found.items():
        lines.append(f"        {command}) flags='{' '.join(of.flags)}' operands='{' '.join(of.operands)}' ;;")
    lines += ["    esac", '    case "$current" in -*) words=$flags ;; *) words=$operands ;; esac']
    lines.append('    case "$command $before" in')
    for command, of in found.items():
        lines += [f"        '{command} {flag}') words='{' '.join(of.values[flag])}' ;;" for flag in of.values]
    lines += [
        "    esac",
        f"    [ \"$COMP_CWORD\" -eq 1 ] && words='{' '.join(found)} --help --version'",
        '    COMPREPLY=($(compgen -W "$words" -- "$current"))',
        "}",
        "complete -o default -F _edgecompress edgecompress",
    ]
    return "\n".join(lines) + "\n"


def zsh(found: Mapping[str, Completions]) -> str:
    head = "autoload -U +X compinit && compinit -u\nautoload -U +X bashcompinit && bashcompinit\n"
    return head + bash(found).replace("for bash. In ~/.bashrc", "for zsh. In ~/.zshrc").replace(
        "completion bash", "completion zsh"
    )


def fish(found: Mapping[str, Completions]) -> str:
    from edgecompress.cli import COMMANDS

    lines = [
        "# edgecompress: completion for fish. In ~/.config/fish/config.fish:  edgecompress completion fish | source"
    ]
    for command, text in COMMANDS.items():
        lines.append(f"complete -c edgecompress -f -n __fish_use_subcommand -a {command} -d {_fish_quoted(text)}")
    for command, of in found.items():
        head = f"complete -c edgecompress -n '__fish_seen_subcommand_from {command}'"
        for flag, text in of.flags.items():
            name = f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"
            values = f" -x -a {_fish_quoted(' '.join(of.values[flag]))}" if flag in of.values else ""
            lines.append(f"{head} {name}{values} -d {_fish_quoted(text)}")
        if of.operands:
            lines.append(f"{head} -f -a {_fish_quoted(' '.join(of.operands))}")
    return "\n".join(lines) + "\n"


def _fish_quoted(text: str) -> str:
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
