"""``edgecompress doctor``."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
from dataclasses import dataclass

from edgecompress import __version__
from edgecompress.errors import HostError
from edgecompress.terminal import add_json_flag, emit_json, table

# package -> (lowest version that works, first that does not, what needs it)
_RANGES = {
    "numpy": ("2.0", "3", "runtime"),
    "onnxruntime": ("1.24", "2", "runtime"),
    "tokenizers": ("0.21", "1", "runtime"),
    "jinja2": ("3.1.6", "4", "runtime"),
    "rich": ("13", "16", "runtime"),
    "torch": ("2.13", "2.14", "export"),
    "transformers": ("5.23", "6", "export"),
    "onnx": ("1.20", "2", "export"),
    "onnx-ir": ("1.1", "2", "export"),
    "onnxscript": ("0.7", "0.8", "export"),
    "optimum": ("2.3", "3", "export"),
    "safetensors": ("0.6", "1", "export"),
    "huggingface_hub": ("1.0", "3", "export"),
}


@dataclass(frozen=True, kw_only=True)
class Package:
    name: str
    version: str | None
    needed_by: str
    fits: bool
    remark: str


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress.runtime.accelerators import backends, find_libraries
    from edgecompress.targets import detect, find_target, known_targets, matches_host

    packages = check_packages({name: _installed(name) for name in (*_RANGES, "onnxruntime-gpu")})
    providers = _providers()
    local = detect()
    stands_for = [name for name in known_targets() if not matches_host(find_target(name))]
    libraries = find_libraries()
    usable = backends(libraries, providers)
    broken = [p for p in packages if not p.fits and p.needed_by == "runtime"]
    if options.json:
        emit_json(
            {
                "edgecompress": __version__,
                "python": platform.python_version(),
                "packages": packages,
                "providers": providers,
                "libraries": libraries,
                "backends": usable,
                "host": local,
                "stands_for": stands_for,
                "fit": not broken,
            }
        )
    else:
        print(f"edgecompress {__version__}, Python {platform.python_version()}, {platform.system()} {local.arch}")
        rows = [[p.name, p.version or "—", p.needed_by, "ok" if p.fits else p.remark] for p in packages]
        print(table(["package", "version", "for", "state"], rows))
        print(f"\nproviders  {', '.join(providers) or 'none'}")
        print(f"cpu        {local.title}, {local.cores} cores: {', '.join(local.isa)}")
        print(f"gpu        {local.notes.removeprefix('GPU: ')}")
        here = ", ".join(f"{found.title} {found.version}" for found in libraries.values() if found.version)
        print(f"nvidia     {here or 'none of its libraries'}")
        print(f"stands for {', '.join(stands_for) or 'none of the known targets'}")
        cells = [
            [b.name, "yes" if b.builds else "no", "yes" if b.runs else "no", ", ".join(b.lacks) or "—", b.remark]
            for b in usable
        ]
        print("\n" + table(["backend", "builds", "runs here", "lacks", "remark"], cells))
        misfits = [p for p in packages if not p.fits]
        print("\nall fits" if not misfits else "\n" + "\n".join(f"does not fit: {p.name}: {p.remark}" for p in misfits))
    return HostError.exit_code if broken else 0


def check_packages(installed: dict[str, str | None]) -> list[Package]:
    """Hold versions against the ranges that this version was made for."""
    gpu = installed.get("onnxruntime-gpu")
    packages = []
    for name, (low, high, needed_by) in _RANGES.items():
        version = installed.get(name)
        remark = ""
        if name == "onnxruntime" and gpu is not None:
            if version is not None:
                remark = "onnxruntime and onnxruntime-gpu overwrite each other: uninstall both, then install one"
            else:
                name, version = "onnxruntime-gpu", gpu
        if version is None:
            remark = "not installed" + ("" if needed_by == "runtime" else ": pip install 'edgecompress[export]'")
        elif not remark and not _numbers(low) <= _numbers(version) < _numbers(high):
            remark = f"{name} {version} does not fit edgecompress {__version__}, which needs >={low},<{high}"
        packages.append(Package(name=name, version=version, needed_by=needed_by, fits=not remark, remark=remark))
    return packages


def _numbers(version: str) -> tuple[int, ...]:
    numbers = []
    for part in version.partition("+")[0].split("."):
        digits = "".join(c for c in part if c.isdigit())
        if not digits:
            break
        numbers.append(int(digits))
    return tuple(numbers)


def _installed(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _providers() -> list[str]:
    try:
        import onnxruntime
    except ImportError:
        return []
    return list(onnxruntime.get_available_providers())
