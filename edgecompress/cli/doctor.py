"""``edgecompress doctor``."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError
from typing import TYPE_CHECKING

from edgecompress.errors import HostError
from edgecompress.formats.packages import (
    DEVELOPMENT_EXTRAS,
    DISTRIBUTION,
    Requirement,
    cpu_torch_command,
    gpu_build,
    installed_version,
    requirements,
)
from edgecompress.terminal import add_json_flag, emit_json, table
from edgecompress.types.packages import TORCH
from edgecompress.version import __version__

if TYPE_CHECKING:
    from edgecompress.runtime.accelerators import BackendState, LibraryState

RUNTIME = "runtime"  # "needed by" of the base install; else the name of an extra
EXPORT_EXTRA = "export"


@dataclass(frozen=True, kw_only=True)
class Package:
    """One package in one range. ``fits``: it is installed in a version of that range, or its GPU build is."""

    name: str
    range: str  # ">=2.0,<3"; "" is any version
    version: str | None
    needed_by: tuple[str, ...]
    fits: bool
    remark: str

    @property
    def of_runtime(self) -> bool:
        return RUNTIME in self.needed_by


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--extras", action="store_true", help="list what each extra needs that is not installed")
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.runtime.accelerators import find_libraries
    from edgecompress.targets import detect, find_target, known_targets, matches_host

    required, remark = find_requirements()
    names = {name for each in required for name in (each.name, gpu_build(each.name))}
    packages = check_packages(required, {name: installed_version(name) for name in names})
    providers = _providers()
    local = detect()
    stands_for = [name for name in known_targets() if not matches_host(find_target(name))]
    libraries = find_libraries()
    states = backend_states(libraries, providers)
    broken = [p for p in packages if p.of_runtime and not p.fits]
    if options.json:
        emit_json(
            {
                "edgecompress": __version__,
                "python": platform.python_version(),
                "packages": packages,
                "remark": remark,
                "providers": providers,
                "libraries": libraries,
                "backends": states,
                "host": local,
                "stands_for": stands_for,
                "fit": not broken,
            }
        )
    else:
        print(f"edgecompress {__version__}, Python {platform.python_version()}, {platform.system()} {local.arch}")
        print(_package_lines(packages, remark))
        if lines := _extra_lines(packages, everything=options.extras):
            print("\n" + "\n".join(lines))
        print(f"\nproviders  {', '.join(providers) or 'none'}")
        print(f"cpu        {local.title}, {local.cores} cores: {', '.join(local.isa)}")
        print(f"gpu        {local.notes.removeprefix('GPU: ')}")
        installed = ", ".join(f"{library.title} {library.version}" for library in libraries.values() if library.version)
        print(f"nvidia     {installed or 'no libraries found'}")
        print(f"runs for   {', '.join(stands_for) or 'none of the known targets'}")
        print("\n" + _backend_table(states))
        print("\n" + _summary(packages))
    return HostError.exit_code if broken else 0


def find_requirements() -> tuple[tuple[Requirement, ...], str]:
    """What the installed metadata states, and a remark where that is not the metadata of this code."""
    try:
        required = requirements()
    except PackageNotFoundError:
        return (), (
            f"{DISTRIBUTION} runs from its source and is not installed as a distribution: "
            "the versions of other packages that it needs are not known"
        )
    version = installed_version(DISTRIBUTION)
    if version != __version__:
        return required, f"the ranges are those of {DISTRIBUTION} {version}, which is installed; this is {__version__}"
    return required, ""


def check_packages(required: Iterable[Requirement], installed: Mapping[str, str | None]) -> list[Package]:
    """A row for each package and range: what is installed against the range. ``installed``: name -> version."""
    needed_by: dict[tuple[str, str], list[str]] = {}
    ranges: dict[tuple[str, str], Requirement] = {}
    for each in required:
        if each.applies_here:
            ranges.setdefault((each.name, each.specifier), each)
            needed_by.setdefault((each.name, each.specifier), []).append(each.extra or RUNTIME)
    return [
        _or_gpu_build(_check(each, installed.get(each.name), needed_by[key]), each, installed.get(gpu_build(each.name)))
        for key, each in ranges.items()
    ]


def _check(requirement: Requirement, version: str | None, needed_by: Sequence[str]) -> Package:
    name, extra = requirement.name, requirement.extra
    remark = ""
    if version is None:
        remark = "not installed" + (f": pip install '{DISTRIBUTION}[{extra}]'" if extra is not None else "")
    elif not requirement.admits(version):
        remark = f"{name} {version} does not fit {DISTRIBUTION} {__version__}, which needs {requirement.specifier}"
    return Package(
        name=name,
        range=requirement.specifier,
        version=version,
        needed_by=tuple(needed_by),
        fits=not remark,
        remark=remark,
    )


def _or_gpu_build(row: Package, requirement: Requirement, gpu_version: str | None) -> Package:
    """A package and its GPU build install the same files: one of them is needed, and only one may be installed."""
    gpu = gpu_build(row.name)
    if gpu_version is None:
        return row
    if row.version is not None:
        remark = f"{row.name} and {gpu} overwrite each other: uninstall both, then install one"
        return replace(row, fits=False, remark=remark)
    fits = requirement.admits(gpu_version)
    range_ = f"does not fit {DISTRIBUTION} {__version__}, which needs {requirement.specifier}"
    return replace(row, fits=fits, remark=f"{gpu} {gpu_version} {'instead' if fits else range_}")


def backend_states(libraries: Mapping[str, LibraryState], providers: Sequence[str]) -> list[BackendState]:
    """Of every installed backend that can tell."""
    from edgecompress.backends import backends
    from edgecompress.runtime.accelerators import has_module

    asked = [backend for backend in backends().values() if backend.plug_in.has("host")]
    return [backend.host.state(libraries, providers, has_module) for backend in asked]


def _package_lines(packages: Sequence[Package], remark: str) -> str:
    """A table of what is installed or needed by the runtime."""
    shown = [p for p in packages if p.version is not None or p.of_runtime]
    rows = [[p.name, p.version or "—", p.range, ", ".join(p.needed_by), p.remark or "ok"] for p in shown]
    lines = [table(["package", "version", "range", "needed by", "state"], rows)] if rows else []
    return "\n".join([*lines, *([remark] if remark else [])])


def _extra_lines(packages: Sequence[Package], *, everything: bool) -> list[str]:
    """What is missing for more than running bundles: for an export in a line, and for the rest the extras' names."""
    lacks = _missing_by_extra(packages)
    lines = []
    if EXPORT_EXTRA in lacks:
        lines.append(f"to export here: pip install '{DISTRIBUTION}[{EXPORT_EXTRA}]'")
        if TORCH in lacks[EXPORT_EXTRA] and (first := cpu_torch_command()) is not None:
            lines.append(f"  first, or pip downloads 2.8 GB of CUDA: {first}")
            lines.append("  PyTorch's install page shows the index of its CPU builds")
    others = [extra for extra in lacks if extra != EXPORT_EXTRA and extra not in DEVELOPMENT_EXTRAS]
    if everything:
        lines += [
            f"{extra} lacks {', '.join(names)}: pip install '{DISTRIBUTION}[{extra}]'" for extra, names in lacks.items()
        ]
    elif others:
        lines.append(f"other extras: {', '.join(others)} (`edgecompress doctor --extras` shows what they lack)")
    return lines


def _missing_by_extra(packages: Sequence[Package]) -> dict[str, list[str]]:
    lacks: dict[str, list[str]] = {}
    for p in packages:
        for extra in p.needed_by if p.version is None and not p.of_runtime else ():
            lacks.setdefault(extra, []).append(p.name)
    return lacks


def _backend_table(states: Sequence[BackendState]) -> str:
    cells = [
        [
            state.name,
            "yes" if state.builds else "no",
            "yes" if state.runs else "no",
            ", ".join(state.lacks) or "—",
            state.remark,
        ]
        for state in states
    ]
    return table(["backend", "builds", "runs here", "lacks", "remark"], cells)


def _summary(packages: Sequence[Package]) -> str:
    """Packages of extras that are not installed are no misfits: nobody asked for them."""
    misfits = [p for p in packages if not p.fits and (p.version is not None or p.of_runtime)]
    lines = [f"does not fit: {p.name}: {p.remark}" for p in misfits]
    if not packages:
        return "the versions that edgecompress needs are not known, so the installed ones were not checked"
    return "\n".join(lines) or "all installed packages fit"


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())
