"""One class per failure that a user can meet, each with its exit code and a hint.

The command line catches :class:`EdgeCompressError` in one place, prints ``edgecompress: <message>`` and the hint on
stderr, and exits with ``exit_code``. A traceback that reaches the user is a bug.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class EdgeCompressError(Exception):
    """A failure that the user can act on.

    ``message`` says what is wrong, in one line; ``hint`` says what to do next.
    """

    exit_code = 2

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgeCompressError):
    """A flag, a path or an input is not valid."""


class StudentError(EdgeCompressError):
    """The checkpoint cannot be read or is not supported."""


class UnknownTargetError(EdgeCompressError):
    """No target has this name, or the target file is not valid."""


class RecipeError(EdgeCompressError):
    """The recipe contradicts itself, or does not suit the checkpoint or the target."""


class ChipError(RecipeError):
    """The target does not compute in the requested precision."""

    exit_code = 3


class CalibrationError(EdgeCompressError):
    """The calibration text is missing, empty, binary or too short."""


class OutputError(EdgeCompressError):
    """The output already exists or cannot be written, or the disk is full."""


class HostError(EdgeCompressError):
    """This machine lacks something: a package, an execution provider, a backend, an instruction set, memory."""

    exit_code = 3


class DeviceError(EdgeCompressError):
    """A device cannot be reached, refuses the login, is lost, or lacks what a profile needs."""

    exit_code = 3


class EndpointError(EdgeCompressError):
    """A teacher's endpoint cannot be reached, refuses the key, lacks the model, or only answers with errors."""

    exit_code = 3


class HubError(EdgeCompressError):
    """The hub cannot be reached, or refuses the token or the upload."""

    exit_code = 3


class EngineError(EdgeCompressError):
    """TensorRT rejects the graph, or the engine that it built has the wrong precision."""

    exit_code = 3


class WideProductsError(EngineError):
    """The engine multiplies some layers in more bits than its graph has."""

    def __init__(self, message: str, *, hint: str, layers: tuple[str, ...], of: int) -> None:
        super().__init__(message, hint=hint)
        self.layers = layers  # their names
        self.of = of  # how many layers the graph has in those bits


class QualityBudgetError(EdgeCompressError):
    """The compressed model is further from the reference than the quality budget allows."""

    exit_code = 4


class ProvenanceError(EdgeCompressError):
    """The licence terms are restricted or unknown, and the policy is to refuse them."""

    exit_code = 6


class BundleError(EdgeCompressError):
    """The bundle is missing, truncated, altered, of a newer schema, or reaches outside its own folder."""

    exit_code = 7


class InterruptedRunError(EdgeCompressError):
    """Ctrl-C or SIGTERM stopped the command."""

    exit_code = 130


class InternalError(EdgeCompressError):
    """A defect in edgecompress: EDGECOMPRESS_TRACEBACK=1 shows the traceback."""

    exit_code = 70


def first_line(error: BaseException, otherwise: str = "") -> str:
    """Return the first line of the error's text that is not blank, or ``otherwise``."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), otherwise)


def nearest(name: str, known: Iterable[str], *, cutoff: float = 0.4) -> str:
    """Return ``" Did you mean 'x'?"`` for the closest known name, or an empty string if none is close.

    ``cutoff``: from 0, where anything is close, to 1, where only the same name is.
    """
    names = list(known)
    matches = difflib.get_close_matches(name.lower(), [n.lower() for n in names], n=1, cutoff=cutoff)
    if not matches:
        parts = [n for n in names if name and name.lower() in n.lower()]
        return f" Did you mean '{parts[0]}'?" if parts else ""
    original = next(n for n in names if n.lower() == matches[0])
    return f" Did you mean '{original}'?"
