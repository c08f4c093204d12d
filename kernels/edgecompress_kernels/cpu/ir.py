"""LLVM IR of numba kernels, made in processes of its own and kept between processes: numba takes seconds for each.

In this process numba may have been used before, and then its code generator is set up for this machine and leaves its
traces in the IR: how values are addressed, where constants are hoisted to. A new one has nothing behind it, so that the
same kernel gives the same library wherever and whenever it is compiled.
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

IR = tuple[str, str]  # the name of the C entry, and the text
_kept: dict[str, IR] = {}


class KernelError(Exception):
    """A kernel cannot be compiled; the message says which and why."""


@dataclass(frozen=True)
class Kernel:
    """A kernel by what makes it and with what, so that it is known again in another process."""

    key: str
    make: Callable[..., Callable[[int, int], None]] = field(compare=False, repr=False)
    arguments: tuple[Any, ...] = field(compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"{self.make.__qualname__}{self.arguments!r}"


def kernel_of(make: Callable[..., Callable[[int, int], None]], *arguments: Any) -> Kernel:
    """``make(*arguments)``, with ``inline`` behind them if it takes a ``jit``. Arguments are told by their repr.

    ``make`` is found by its name in its module: it is called in another process.
    """
    source = hashlib.sha256(Path(inspect.getfile(inspect.unwrap(make))).read_bytes()).hexdigest()
    return Kernel(f"{source} {make.__module__}.{make.__qualname__}{arguments!r}", make, arguments)


def cache_dir() -> Path:
    """Where the IR of kernels, and libraries of them, are kept between processes."""
    return platformdirs.user_cache_path("edgecompress") / "kernels"


@cache
def fingerprint() -> str:
    """Of what a kernel's IR depends on beside its own source: all of these, and the versions of the compilers."""
    found = hashlib.sha256(f"{version('numba')} {version('llvmlite')}".encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        found.update(path.read_bytes())
    return found.hexdigest()


def to_ir(*kernels: Kernel) -> list[IR]:
    """The name of each kernel's C entry and its LLVM IR, before any optimization: the same for every CPU.

    What is not in the cache is compiled, on every core; one that cannot be read or written costs time alone.
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
    """What this process has read or compiled; the folder stays."""
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
    """What ``keep`` wrote there; None if there is nothing, or if it is damaged."""
    try:
        return zlib.decompress(path.read_bytes())
    except (OSError, zlib.error):
        return None


def keep(path: Path, data: bytes) -> None:
    """Write it for other processes, whole or not at all; where that cannot be done, nothing is."""
    made = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            made = Path(file.name)
            file.write(zlib.compress(data, 1))
        os.replace(made, path)
    except OSError:  # a full disk, or a home that is read-only
        if made is not None:
            made.unlink(missing_ok=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _compile(kernels: Sequence[Kernel]) -> None:
    """Each into ``_kept`` and into the cache; one process a core, with an equal share of what takes equally long."""
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
    """A process that compiles these, with nothing of this one's settings of numba."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("NUMBA_")}
    environment |= {"NUMBA_OPT": "0", "PYTHONHASHSEED": "0"}  # without, the IR is shaped for this machine
    environment["PYTHONPATH"] = os.pathsep.join(path or "." for path in sys.path)
    command = [sys.executable, "-m", "edgecompress_kernels.cpu.ir_process"]
    with work.open("rb") as tasks, out.open("wb") as made, errors.open("wb") as said:
        return subprocess.Popen(command, stdin=tasks, stdout=made, stderr=said, env=environment)
