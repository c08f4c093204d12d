"""The command line: parse, call one function, print. One file a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
import re
import signal
import sys
from types import FrameType, ModuleType
from typing import NoReturn

from edgecompress.errors import EdgeCompressError, HostError, InterruptedRunError, UsageError, nearest
from edgecompress.version import __version__

COMMANDS = {
    "export": "turn a checkpoint into a verified bundle for a target",
    "build": "build a bundle's engine on the device that runs it",
    "run": "run a bundle on texts or images",
    "distill": "train a small student from a teacher: a checkpoint, or a model behind an API",
    "label": "collect a teacher's responses to prompts over an API",
    "serve": "serve a bundle over OpenAI's API: chat, completions, embeddings",
    "profile": "measure a bundle on this machine or a device: latency percentiles, stages, cold start, memory",
    "compare": "time bundles and other runtimes side by side",
    "estimate": "estimate a bundle's latency on hardware you do not have, as a range",
    "inspect": "show what is in a bundle",
    "lineage": "show what a bundle or checkpoint was made from, under which licences, and who says so",
    "sign": "sign every file of a bundle with your own key",
    "push": "upload a bundle to the Hugging Face Hub",
    "verify": "check a bundle's hashes, target and fidelity on this machine",
    "targets": "list the known targets, show one, or detect this machine",
    "architectures": "list the model architectures that were tested, and which are supported",
    "kernels": "list the kernels of edgecompress, with their instruction sets and CPUs",
    "doctor": "check this installation: versions, execution providers, CPU features",
    "completion": "print a completion script for bash, zsh or fish",
}
"""Command -> its line in the help; the module is edgecompress.cli.<command>."""

_OLDEST_PYTHON = (3, 11)


class _Parser(argparse.ArgumentParser):
    """argparse that fails as everything else here does, with a suggestion for a misspelt flag or choice."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(self._in_plain_words(message), hint=f"See `{self.prog} --help`.")

    def _in_plain_words(self, message: str) -> str:
        if found := re.fullmatch("unrecognized arguments: (.*)", message, re.DOTALL):
            flag = next((each.partition("=")[0] for each in found[1].split() if each.startswith("-")), "")
            known = [each for each in self._option_string_actions if each.startswith("--")]
            return f"no flag named '{flag}'.{nearest(flag, known)}" if flag else f"unexpected argument: {found[1]}"
        if found := re.fullmatch("the following arguments are required: (.*)", message):
            names = [name if name.startswith("-") else name.upper() for name in found[1].split(", ")]
            return f"{' and '.join(names)} must be given"
        if found := re.fullmatch("argument (.*): invalid (int|float) value: (.*)", message):
            return f"{found[1]} takes a {'whole number' if found[2] == 'int' else 'number'}, not {found[3]}"
        if found := re.fullmatch("argument (.*): not allowed with argument (.*)", message):
            return f"{found[1]} and {found[2]} exclude each other"
        if found := re.fullmatch("argument (.*): expected (one|at least one) argument", message):
            return f"{found[1]} takes a value"
        return re.sub("^argument (.*?): ", r"\1: ", message)

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            name = "/".join(action.option_strings) or action.metavar or action.dest
            raise UsageError(
                f"{name} cannot be '{value}'.{nearest(str(value), known)}", hint=f"Known: {', '.join(known)}."
            )


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. The one place that catches what a user may meet."""
    arguments = sys.argv[1:] if argv is None else argv
    flags = arguments[: arguments.index("--")] if "--" in arguments else arguments
    as_json = "--json" in flags
    if sys.version_info < _OLDEST_PYTHON:
        return _fail(_old_python(), as_json)
    previous = _catch_sigterm()
    try:
        return _dispatch(arguments)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Exception, KeyboardInterrupt) as error:
        if not isinstance(error, EdgeCompressError | KeyboardInterrupt) and os.environ.get("EDGECOMPRESS_TRACEBACK"):
            raise
        from edgecompress.cli.failures import as_failure

        return _fail(as_failure(error, arguments[0] if arguments else ""), as_json)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _old_python() -> HostError:
    found = ".".join(map(str, sys.version_info[:3]))
    needed = ".".join(map(str, _OLDEST_PYTHON))
    return HostError(
        f"Python {needed} or later is needed; this is Python {found} ({sys.executable})",
        hint=f"Install edgecompress into a virtual environment of a newer one: `python{needed} -m venv .venv`.",
    )


def _dispatch(arguments: list[str]) -> int:
    if not arguments:
        print(_usage())
        return UsageError.exit_code
    if arguments[0] in ("-h", "--help", "help"):
        if arguments[1:] and arguments[0] == "help":
            return _dispatch([arguments[1], "--help"])
        print(_help())
        return 0
    if arguments[0] == "--version":
        print(f"edgecompress {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise _unknown_command(name)
    module = importlib.import_module(f"edgecompress.cli.{name}")
    try:
        options = parser_of(name, module).parse_intermixed_args(arguments[1:])  # texts may stand behind flags
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    from edgecompress.cli.operands import check_operands  # not before --help, which needs none of it

    check_operands(name, options)
    code: int = module.run(options)
    return code


def parser_of(name: str, module: ModuleType | None = None) -> argparse.ArgumentParser:
    """The parser of one command."""
    parser = _Parser(
        prog=f"edgecompress {name}",
        description=COMMANDS[name][0].upper() + COMMANDS[name][1:] + ".",
        allow_abbrev=False,
    )
    (module or importlib.import_module(f"edgecompress.cli.{name}")).add_arguments(parser)
    return parser


def _unknown_command(name: str) -> UsageError:
    if name.startswith("-"):
        return UsageError(
            f"no flag named '{name}' before the command.{nearest(name, ('--help', '--version'), cutoff=0.6)}",
            hint="The command comes first: `edgecompress COMMAND …`. `edgecompress --help` lists the commands.",
        )
    if os.path.exists(name):
        return UsageError(
            f"'{name}' is a path, and the command comes first",
            hint=f"A bundle: `edgecompress run {name} …` or `edgecompress inspect {name}`.\n"
            f"A checkpoint: `edgecompress export {name} -o NAME.bundle`.",
        )
    return UsageError(f"no command named '{name}'.{nearest(name, COMMANDS)}", hint=f"Commands: {', '.join(COMMANDS)}.")


def _usage() -> str:
    lines = [
        "usage: edgecompress COMMAND …",
        "",
        "A distilled student in, a verified bundle for one named hardware target out. Start with:",
        "",
        "  edgecompress doctor                               check this installation",
        "  edgecompress export CHECKPOINT -o my.bundle       a checkpoint folder, or a hub id such as owner/name",
        '  edgecompress run my.bundle "a text"               run the bundle',
        "",
        "`edgecompress --help` lists every command.",
    ]
    return "\n".join(lines)


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: edgecompress COMMAND …",
        "",
        "A distilled student in, a verified bundle for one named hardware target out.",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "`edgecompress COMMAND --help` shows a command's options. With --json a command prints one JSON document,",
        "errors too.",
    ]
    return "\n".join(lines)


def _fail(error: EdgeCompressError, as_json: bool) -> int:
    print(f"edgecompress: {error.message}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    if as_json:
        from edgecompress.terminal import emit_json
        from edgecompress.types.failure import ErrorDocument, Failure

        found = Failure(type=type(error).__name__, message=error.message, hint=error.hint, exit_code=error.exit_code)
        emit_json(ErrorDocument(error=found))
    return error.exit_code


def _catch_sigterm() -> signal.Handlers | int | None:
    """SIGTERM unwinds like Ctrl-C, so that every `finally` runs and nothing half-written stays."""

    def stop(_: int, __: FrameType | None) -> None:
        raise InterruptedRunError("stopped by SIGTERM; nothing was left behind")

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None
    return previous if isinstance(previous, int | signal.Handlers) else signal.SIG_DFL
