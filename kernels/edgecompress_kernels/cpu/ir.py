"""Compiles numba kernels to LLVM IR in separate processes and caches it on disk: numba takes seconds per kernel.

If numba was used before in a process, its code generator is set up for this machine and affects the IR: how values are
addressed, where constants are hoisted. A fresh process has no such state, so the same kernel always gives the same
library.
"""

from __future__ import annotations

import hashlib
import inspect
import os
import pickle
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import platformdirs

IR = tuple[str, str]  # name of the C entry point, text
_kept: dict[str, IR] = {}


class KernelError(Exception):
    """A kernel cannot be compiled; the message says which and why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel, identified by the function that makes it and its arguments, which works across processes."""

    key: str
    make: Callable[..., Callable[[int, int], None]] = field(compare=False, repr=False)
    arguments: tuple[Any, ...] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.make.__qualname__}{self.arguments!r}"


def kernel_of(make: Callable[..., Callable[[int, int], None]], *arguments: Any) -> Kernel:
    """The kernel ``make(*arguments)``, with ``inline`` as the last argument if ``make`` has a ``jit`` parameter.

    ``make`` must be a module-level function: another process calls it by name. Arguments are identified by their repr.
    """
    source = hashlib.sha256(Path(inspect.getfile(inspect.unwrap(make))).read_bytes()).hexdigest()
    return Kernel(f"{source} {make.__module__}.{make.__qualname__}{arguments!r}", make, arguments)


def cache_dir() -> Path:
    """The cache folder for IR and libraries of kernels."""
    return platformdirs.user_cache_path("edgecompress") / "kernels"


@cache
def fingerprint() -> str:
    """A hash of everything that a kernel's IR depends on: this package's source files and the compilers' versions."""
    found = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def to_ir(*kernels: Kernel) -> list[IR]:
    """Return each kernel's C entry point and unoptimized LLVM IR, which is the same for every CPU.

    Kernels that are not cached are compiled, on all cores. An unreadable or unwritable cache only costs time.
    Raises KernelError if numba cannot compile a kernel.
    """
    missing = {}
    for kernel in kernels:
        if kernel.key not in _kept and not _read(kernel):
            missing[kernel.key] = kernel
    if missing:
        _compile(list(missing.values()))
    return [_kept[kernel.key] for kernel in kernels]


def forget() -> None:
    """Clear this process's cache; the folder is unchanged."""
    _kept.clear()


def _path(kernel: Kernel) -> Path:
    return cache_dir() / f"{hashlib.sha256((fingerprint() + kernel.key).encode()).hexdigest()}.ll.z"


def _read(kernel: Kernel) -> bool:
    data = read_kept(_path(kernel))
    if data is None:
        return False
    entry, _, text = data.decode().partition("\n")
    _kept[kernel.key] = entry, text
    return True


def read_kept(path: Path) -> bytes | None:
    """Read what ``keep`` wrote, or None if it is missing or damaged."""
    try:
        return zlib.decompress(path.read_bytes())
    except (OSError, zlib.error):
        return None


def keep(path: Path, data: bytes) -> None:
    """Write the file atomically; do nothing if that fails."""
    made = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            made = Path(file.name)
            file.write(zlib.compress(data, 1))
        os.replace(made, path)
    except OSError:  # a full disk or a read-only home
        if made is not None:
            made.unlink(missing_ok=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile(kernels: Sequence[Kernel]) -> None:
    """Compile kernels into ``_kept`` and the cache, in one process per core with equal shares of the work."""
    count = min(len(kernels), _cores())
    alike = sorted(kernels, key=lambda kernel: kernel.name)
    shares = [alike[first::count] for first in range(count)]
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        running = []
        for number, share in enumerate(shares):
            work, out, errors = (Path(folder) / f"{number}.{name}" for name in ("work", "out", "errors"))
            work.write_bytes(
                pickle.dumps([(kernel.make.__module__, kernel.make.__qualname__, kernel.arguments) for kernel in share])
            )
            process = _start(work, out, errors)
            stack.callback(process.wait)
            stack.callback(process.kill)
            running.append((process, share, out, errors))
        for process, share, out, errors in running:
            if code := process.wait():
                said = errors.read_text(encoding="utf-8", errors="replace").strip().splitlines()
                names = ", ".join(kernel.name for kernel in share)
                raise KernelError(f"numba cannot compile {names}: {said[-1] if said else f'it ended with {code}'}")
            for kernel, (entry, text) in zip(share, pickle.loads(out.read_bytes()), strict=True):
                _kept[kernel.key] = entry, text
                keep(_path(kernel), f"{entry}\n{text}".encode())


def _start(work: Path, out: Path, errors: Path) -> subprocess.Popen[bytes]:
    """Start a process that compiles these kernels, without this process's numba settings."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    environment |= {"NUMBA_OPT": "0", "PYTHONHASHSEED": "0"}  # otherwise the IR depends on this machine
    environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
    command = [sys.executable, "-m", "edgecompress_kernels.cpu.ir_process"]
    with work.open("rb") as tasks, out.open("wb") as made, errors.open("wb") as said:
        return subprocess.Popen(command, stdin=tasks, stdout=made, stderr=said, env=environment)
