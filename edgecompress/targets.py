"""Finds, validates and detects targets."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from edgecompress.backends import backends, names_on, target_names
from edgecompress.errors import ChipError, RecipeError, UnknownTargetError, nearest
from edgecompress.formats.cpu import (
    host_arch,
    host_cache_bytes,
    host_cores,
    host_cpu_name,
    host_features,
    host_memory_bytes,
)
from edgecompress.formats.gpus import detect_gpus
from edgecompress.formats.target import read_target
from edgecompress.types.precision import AUTO, PRECISIONS
from edgecompress.types.target import Target

LOCAL = "local"


def known_targets() -> dict[str, Path]:
    """Name -> file of each target that ships with edgecompress, sorted by name."""
    folder = Path(str(resources.files("edgecompress_targets")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_target(name_or_path: str) -> Target:
    """Find a shipped target by name, "local", or a TOML file by path. Raises UnknownTargetError."""
    if name_or_path == LOCAL:
        return detect()
    known = known_targets()
    if name_or_path in known:
        return read_target(known[name_or_path])
    if name_or_path.endswith(".toml"):
        return _with_known_backends(read_target(Path(name_or_path)), name_or_path)
    names = [*known, LOCAL]
    raise UnknownTargetError(
        f"no target named '{name_or_path}'.{nearest(name_or_path, names)}",
        hint=f"Known targets: {', '.join(names)}.\n"
        "Run `edgecompress targets`, or give a path to a .toml file of your own.",
    )


def _with_known_backends(target: Target, path: str) -> Target:
    """Return the target. Raises UnknownTargetError if it names a backend that is not installed."""
    known = target_names()
    if not set(target.backends) <= {*known, *backends()}:
        raise UnknownTargetError(
            f"the target file {path} is not valid: backends must be among {', '.join(known)}",
            hint="Compare it with a shipped target: `edgecompress targets show x86-64-avx2`.",
        )
    return target


def detect() -> Target:
    """This machine as a target: CPU features, cores, caches and memory as the kernel reports them."""
    arch, features = host_arch(), host_features()
    gpus = detect_gpus()
    seen = "; ".join(f"{g.name}, {g.memory_bytes >> 20} MiB, compute capability {g.compute_capability}" for g in gpus)
    return Target(
        name=LOCAL,
        title=host_cpu_name(),
        arch=arch,
        accelerator="cpu",
        isa=tuple(sorted(features)),
        backends=names_on("cpu"),
        computes=("float32", "int8", "int4"),
        opset=21,
        cores=host_cores(),
        memory_bytes=host_memory_bytes(),
        l2_cache_bytes=host_cache_bytes(2),
        l3_cache_bytes=host_cache_bytes(3),
        sources=dict.fromkeys(
            ("isa", "cores", "memory_bytes", "l2_cache_bytes", "l3_cache_bytes"), "detected on this machine"
        ),
        notes=f"GPU: {seen} (not used; to use it, give a GPU target)" if seen else "no GPU found through NVML",
    )


def matches_host(target: Target) -> list[str]:
    """What this machine lacks to run bundles for ``target``; empty if it lacks nothing."""
    if target.accelerator != "cpu":
        return [f"a {target.accelerator} accelerator"]
    if target.arch != host_arch():
        return [target.arch]
    return sorted(set(target.isa) - host_features())


def require_backend(target: Target, wanted: str | None = None) -> str:
    """The backend to compile with: ``wanted``, or the target's first.

    Raises RecipeError if the target has no such backend.
    """
    if wanted is not None and wanted not in target.backends:
        raise RecipeError(
            f"target '{target.name}' has no backend named '{wanted}'.{nearest(wanted, target.backends)}",
            hint=f"Give one of --backend {', '.join(target.backends)}.",
        )
    return wanted or target.backends[0]


def require_precision(target: Target, precision: str) -> None:
    """Raises ChipError if the target cannot compute in ``precision``, RecipeError if no such precision exists."""
    known = (AUTO, *PRECISIONS)
    if precision not in known:
        raise RecipeError(
            f"no precision named '{precision}'.{nearest(precision, known)}", hint=f"Known: {', '.join(known)}."
        )
    if precision == AUTO:
        return
    missing = PRECISIONS[precision].needs - set(target.computes)
    if missing:
        raise ChipError(
            f"target '{target.name}' does not compute in {' and '.join(sorted(missing))}, which {precision} needs",
            hint=f"Give one of --precision {', '.join([AUTO, *computable(target)])}.",
        )


def computable(target: Target) -> tuple[str, ...]:
    """The precisions that the target computes in."""
    return tuple(name for name, precision in PRECISIONS.items() if precision.needs <= set(target.computes))
