"""Any exception as the error that a user can act on: what is missing, unreachable, unwritable, or a defect of ours."""

from __future__ import annotations

import errno
import importlib.util
import sys

from edgecompress.errors import (
    EdgeCompressError,
    HostError,
    HubError,
    InternalError,
    InterruptedRunError,
    OutputError,
    UsageError,
    first_line,
)
from edgecompress.types.packages import ONNXRUNTIME, TORCH

EXTRAS = {
    "export": ("export",),
    "distill": ("export", "distill"),
    "label": ("distill",),
    "serve": ("serve",),
    "push": ("export",),
    "sign": ("sign",),
    "profile": ("profile",),
    "estimate": ("profile",),
    "compare": ("export",),
}
"""Command -> the extras that it always needs. Others depend on the bundle and on flags."""

_HTTP_CLIENTS = ("httpx", "httpcore", "requests", "urllib3")  # httpx2 and httpcore2 too
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
_OF_A_PATH = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.EEXIST),
    *(errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP),
)
_NOTHING_WRITTEN = "nothing was left behind"


def as_failure(error: BaseException, command: str) -> EdgeCompressError:
    """``command``: the one at work, which decides what is to be installed."""
    if isinstance(error, EdgeCompressError):
        return error
    if isinstance(error, KeyboardInterrupt):
        return InterruptedRunError(f"interrupted; {_NOTHING_WRITTEN}")
    found: EdgeCompressError | None = None
    if isinstance(error, ImportError):
        found = _of_import(error, command)
    elif isinstance(error, OSError):
        found = _of_path(error)
    elif isinstance(error, MemoryError):
        found = HostError("out of memory", hint="Close other programs, or give fewer or shorter inputs.")
    elif isinstance(error, AttributeError) and _is_leftover(ONNXRUNTIME):
        found = _leftover()
    if found is None and type(error).__module__.startswith(_HTTP_CLIENTS):
        found = HubError(
            f"the connection failed: {first_line(error)}",
            hint="Check the network and HTTPS_PROXY, then run it again; or give a local folder.",
        )
    return found or InternalError(
        f"internal error: {type(error).__name__}: {first_line(error)}"[:300],
        hint="This is a defect. Set EDGECOMPRESS_TRACEBACK=1 and run again to see where.",
    )


def _of_import(error: ImportError, command: str) -> HostError | None:
    from edgecompress.formats.packages import cpu_torch_command, distribution_of, install_command, installed_version

    error = _first_cause(error)
    module = error.name or ("numpy" if "numpy" in str(error) else "")  # whose C extension drops the cause
    package = module.partition(".")[0]
    if not module or package.startswith("edgecompress") or package in sys.stdlib_module_names:
        return None
    if package == ONNXRUNTIME and _is_leftover(ONNXRUNTIME):
        return _leftover()
    distribution = distribution_of(module)
    absent = isinstance(error, ModuleNotFoundError) or importlib.util.find_spec(package) is None
    if absent and (module == package or installed_version(distribution) is None):
        hint = install_command(module, EXTRAS.get(command, ()))
        if distribution == TORCH and (first := cpu_torch_command()) is not None:
            hint += f"\nRun this first, or pip downloads 2.8 GB of CUDA: {first}"
            hint += "\nPyTorch's install page shows the index of its CPU builds."
        return HostError(f"`edgecompress {command}` needs the package '{distribution}'", hint=hint)
    return HostError(
        f"the package '{distribution}' cannot be imported: {first_line(error)}",
        hint="`edgecompress doctor` shows which versions fit.",
    )


def _first_cause(error: ImportError) -> ImportError:
    """The missing module behind an ImportError that names none, as a C extension raises it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ImportError) and found.name:
            return found
        found = found.__cause__ or found.__context__
    return error


def _is_leftover(package: str) -> bool:
    """Whether only the folder of a package is left, as after one of two packages that share it was removed."""
    module = sys.modules.get(package)
    return module is not None and getattr(module, "__file__", None) is None


def _leftover() -> HostError:
    return HostError(
        "onnxruntime is only partly installed: onnxruntime and onnxruntime-gpu share their files, and one was removed",
        hint="pip uninstall -y onnxruntime onnxruntime-gpu; pip install onnxruntime",
    )


def _of_path(error: OSError) -> EdgeCompressError | None:
    if error.errno in _DISK_FULL:
        return OutputError(f"the disk is full; {_NOTHING_WRITTEN}", hint="Free some space.")
    if error.errno in _OF_A_PATH and error.filename is not None:
        return UsageError(
            f"{error.filename}: {(error.strerror or first_line(error)).lower()}",
            hint="Give another path, or change its permissions.",
        )
    return None
