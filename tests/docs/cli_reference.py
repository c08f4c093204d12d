"""The command line's reference, out of the parsers themselves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from edgecompress.cli import COMMANDS, parser_of


def commands() -> str:
    """A section a command: what it does, how it is called, a table of its arguments."""
    return "\n".join(line for name in COMMANDS for line in _command(name))


def _command(name: str) -> Iterator[str]:
    parser = parser_of(name)
    yield from (f"## `edgecompress {name}`", "", _sentence(COMMANDS[name]), "")
    yield from ("```text", _usage(parser), "```", "")
    for group in parser._action_groups:
        actions = [action for action in group._group_actions if action.help != argparse.SUPPRESS]
        actions = [action for action in actions if not isinstance(action, argparse._HelpAction)]
        if not actions:
            continue
        standard = group.title in ("positional arguments", "options")
        if not standard:
            yield from (f"{_sentence(group.title or '')[:-1]}:", "")
            if group.description:
                yield from (group.description, "")
        yield from (
            "| " + ("argument" if group.title == "positional arguments" else "option") + " | |",
            "| --- | --- |",
        )
        for action in actions:
            yield f"| {_spelling(action)} | {_escape(_help(parser, action))} |"
        yield ""


def _usage(parser: argparse.ArgumentParser) -> str:
    """One line: argparse breaks its own by the width of the terminal."""
    words = [parser.prog]
    for action in parser._actions:
        if action.option_strings:
            continue
        name = _metavar(action)
        words.append({"?": f"[{name}]", "*": f"[{name} …]", "+": f"{name} [{name} …]"}.get(str(action.nargs), name))
    return " ".join([*words, "[options]"])


def _spelling(action: argparse.Action) -> str:
    if not action.option_strings:
        return f"`{_metavar(action)}`"
    value = "" if action.nargs == 0 else f" {_metavar(action)}"
    return ", ".join(f"`{option}{value}`" for option in action.option_strings)


def _metavar(action: argparse.Action) -> str:
    if action.choices is not None and action.metavar is None:
        return "{" + ",".join(map(str, action.choices)) + "}"
    name = action.metavar or (action.dest.upper() if action.option_strings else action.dest)
    text = name if isinstance(name, str) else " ".join(name)
    return f"{text} …" if action.option_strings and action.nargs in ("+", "*") else text


def _help(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    return formatter._expand_help(action) if action.help else ""


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "." if text else ""
