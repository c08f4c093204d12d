"""The command line: parse, call one function, print. One file a command, imported only when it is asked for."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from edgecompress.errors import EdgeCompressError, HostError, InterruptedRunError, OutputError, UsageError, nearest
from edgecompress.types.packages import RUNTIME
from edgecompress.version import __version__

COMMANDS = {
    "export": "turn a checkpoint into a verified bundle for a target",
    "build": "build a bundle's engine on the device that runs it",
    "run": "run a bundle on texts or images",
    "distill": "teach a smaller student from a teacher: its checkpoint, or what it answers",
    "label": "ask a teacher behind an API for a response to each of many prompts",
    "serve": "answer OpenAI's protocol with a bundle: chat, completions, embeddings",
    "profile": "measure a bundle's latency on this machine: percentiles, stages, cold start, memory",
    "compare": "run bundles and other runtimes side by side, and say which is faster",
    "estimate": "say what a bundle would take on hardware that is not at hand: a span, nothing is run",
    "inspect": "show what is in a bundle",
    "lineage": "show who made a bundle or a checkpoint from what, under which terms, and who says so",
    "sign": "sign every file of a bundle with a key of your own",
    "push": "send a bundle to the Hugging Face hub",
    "verify": "check a bundle's hashes, target and fidelity on this machine",
    "targets": "list known targets, show one, or detect this machine",
    "architectures": "list the model architectures that were tried, and which are supported",
    "kernels": "list our own kernels, and the instruction sets and CPUs that they are for",
    "doctor": "show versions, providers and CPU features, and what does not fit",
}
"""Command -> its line in the help; the module is edgecompress.cli.<command>."""

_INTERNAL_ERROR = 70


class _Parser(argparse.ArgumentParser):
    """argparse that fails as everything else here does."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message, hint=f"See `{self.prog} --help`.")


def main(argv: list[str] | None = None) -> int:
    """Run one command; return its exit code. The one place that catches what a user may meet."""
    arguments = sys.argv[1:] if argv is None else argv
    as_json = "--json" in arguments
    previous = _catch_sigterm()
    try:
        return _dispatch(arguments)
    except EdgeCompressError as error:
        return _fail(error, as_json)
    except KeyboardInterrupt:
        return _fail(InterruptedRunError("interrupted; nothing was left behind"), as_json)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package.startswith("edgecompress"):
            return _internal(error, as_json)
        extra = "edgecompress" if package in RUNTIME else "edgecompress[export]"
        missing = HostError(f"this command needs the package '{package}'", hint=f"pip install '{extra}'")
        return _fail(missing, as_json)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return _fail(OutputError("the disk is full; nothing was left behind", hint="Free some space."), as_json)
        return _internal(error, as_json)
    except Exception as error:
        return _internal(error, as_json)
    finally:
        if previous is not None:
            signal.signal(signal.SIGTERM, previous)


def _dispatch(arguments: list[str]) -> int:
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_help())
        return 0 if arguments else UsageError.exit_code
    if arguments[0] == "--version":
        print(f"edgecompress {__version__}")
        return 0
    name = arguments[0]
    if name not in COMMANDS:
        raise UsageError(
            f"no command named '{name}'.{nearest(name, COMMANDS)}", hint=f"Commands: {', '.join(COMMANDS)}."
        )
    module = importlib.import_module(f"edgecompress.cli.{name}")
    parser = _Parser(prog=f"edgecompress {name}", description=COMMANDS[name][0].upper() + COMMANDS[name][1:] + ".")
    module.add_arguments(parser)
    try:
        options = parser.parse_intermixed_args(arguments[1:])  # texts may stand behind flags
    except SystemExit as stop:  # --help
        return int(stop.code or 0)
    code: int = module.run(options)
    return code


def _help() -> str:
    width = max(map(len, COMMANDS))
    lines = [
        "usage: edgecompress COMMAND …",
        "",
        "A distilled student in, a verified bundle for one named hardware target out.",
        "",
        *(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()),
        "",
        "`edgecompress COMMAND --help` shows a command's options; every command takes --json.",
    ]
    return "\n".join(lines)


def _fail(error: EdgeCompressError, as_json: bool) -> int:
    print(f"edgecompress: {error.message}", file=sys.stderr)
    if error.hint:
        print(error.hint, file=sys.stderr)
    if as_json:
        from edgecompress.terminal import emit_json

        emit_json(
            {
                "error": {
                    "type": type(error).__name__,
                    "message": error.message,
                    "hint": error.hint,
                    "exit_code": error.exit_code,
                }
            }
        )
    return error.exit_code


def _internal(error: BaseException, as_json: bool) -> int:
    if os.environ.get("EDGECOMPRESS_TRACEBACK"):
        raise error
    failure = EdgeCompressError(
        f"internal error: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"[:300],
        hint="This is a defect. Set EDGECOMPRESS_TRACEBACK=1 and run again to see where.",
    )
    _fail(failure, as_json)
    return _INTERNAL_ERROR


def _catch_sigterm() -> signal.Handlers | int | None:
    """SIGTERM unwinds like Ctrl-C, so that every `finally` runs and nothing half-written stays."""

    def stop(_: int, __: FrameType | None) -> None:
        raise InterruptedRunError("stopped by SIGTERM; nothing was left behind")

    try:
        previous = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread
        return None
    return previous if isinstance(previous, int | signal.Handlers) else signal.SIG_DFL
