"""Imports flow one way, without a cycle; names of kinds, tasks, precisions and backends stay in their homes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from edgecompress.backends import BACKENDS
from edgecompress.kinds import KINDS, find_kind
from edgecompress.types.precision import PRECISIONS

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "edgecompress"
MODULES = sorted(PACKAGE.rglob("*.py"))
FOLDERS = [path for room in ("kinds", "backends") for path in (PACKAGE / room).rglob("*.py")]
MAX_LINES = 400

RANK = {
    "types": 0, "errors": 0, "version": 0,
    "registry": 1, "formats": 1,
    "runtime": 2,
    "graph": 3, "endpoints": 3, "lineage": 3, "terminal": 2,
    "capture": 4, "quantize": 4, "lower": 4,
    "kinds": 5, "backends": 5,
    "loading": 6, "targets": 6,
    "export": 7,
    "profile": 8, "serve": 8,
    "devices": 9,
    "distill": 10,
    "cli": 11,
    "": 12, "__main__": 12,
}  # fmt: skip
"""Room -> height. A room imports what is below it; rooms of one height do not know each other."""

HEAVY = ("torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "optimum", "safetensors")
ON_DEVICE = ("runtime.py", "settings.py", "check.py", "metric.py", "load.py")
"""Modules of kinds and backends that a device imports, with everything in edgecompress/runtime."""


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def known() -> dict[str, Path]:
    return {name_of(path): path for path in MODULES}


def room_of(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def folder_of(module: str) -> str:
    """The kind or backend that a module belongs to; "" for what they share."""
    parts = module.split(".")
    is_folder = len(parts) > 2 and (PACKAGE / parts[1] / parts[2]).is_dir()
    return parts[2] if is_folder and parts[1] in ("kinds", "backends") else ""


def imported(path: Path, *, types_too: bool = True) -> Iterator[str]:
    """Modules that a file names in its imports, wherever they stand."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for_types = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    for node in ast.walk(tree):
        if not types_too and node in for_types:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                yield module if module in known() else node.module or ""
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


@cache
def edges() -> dict[str, frozenset[str]]:
    return {name: frozenset(set(imported(path)) & set(known())) for name, path in known().items()}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_no_import_points_up(path: Path) -> None:
    here = name_of(path)
    for there in edges()[here]:
        if room_of(there) != room_of(here):
            assert RANK[room_of(there)] < RANK[room_of(here)], f"{here} imports {there}"


@pytest.mark.parametrize(
    "path", [*(PACKAGE / "kinds").rglob("*.py"), *(PACKAGE / "backends").rglob("*.py")], ids=name_of
)
def test_a_kind_knows_no_other_and_a_backend_neither(path: Path) -> None:
    here = name_of(path)
    for there in edges()[here]:
        if room_of(there) == room_of(here) and folder_of(there):
            assert folder_of(there) == folder_of(here), f"{here} imports {there}"


def test_there_is_no_cycle_of_modules() -> None:
    """Imports for types and imports inside functions count."""
    found: list[list[str]] = []
    state: dict[str, int] = {}
    stack: list[str] = []

    def visit(module: str) -> None:
        state[module] = 1
        stack.append(module)
        for there in sorted(edges()[module]):
            if state.get(there) == 1:
                found.append([*stack[stack.index(there) :], there])
            elif there not in state:
                visit(there)
        stack.pop()
        state[module] = 2

    for module in known():
        if module not in state:
            visit(module)
    assert not found, "\n".join(" -> ".join(cycle) for cycle in found)


def on_device() -> list[str]:
    names = [name for name in known() if room_of(name) in ("runtime", "loading")]
    return names + [
        name_of(p) for room in ("kinds", "backends") for p in (PACKAGE / room).rglob("*.py") if p.name in ON_DEVICE
    ]


@pytest.mark.parametrize("module", on_device())
def test_what_a_device_imports_stays_light(module: str) -> None:
    """Directly or through others of ours."""
    reached, waiting = set(), [module]
    while waiting:
        here = waiting.pop()
        if here in reached:
            continue
        reached.add(here)
        for there in imported(known()[here], types_too=False):
            assert there.split(".")[0] not in HEAVY, f"{module} reaches {there} through {here}"
            assert there != "edgecompress.targets", f"{module} reaches {there} through {here}"
            if there in known():
                waiting.append(there)


@cache
def names_and_homes() -> dict[str, tuple[str, ...]]:
    """A name of a kind, task, precision or backend -> folders, below edgecompress, in which it may stand."""
    homes: dict[str, set[str]] = {}
    for kind in KINDS:
        homes.setdefault(kind, set()).update({f"kinds/{kind}", "kinds/__init__.py"})
        for task in find_kind(kind).tasks:
            homes.setdefault(task, set()).add(f"kinds/{kind}")
    for precision in PRECISIONS:
        homes.setdefault(precision, set())
    for backend, package in BACKENDS.items():
        folder = package.removeprefix("edgecompress.").replace(".", "/")
        for name in (backend, backend.removesuffix("-cpu").removesuffix("-cuda")):
            homes.setdefault(name, set()).update({folder, "backends/__init__.py"})
    return {name: tuple(sorted({*folders, "types"})) for name, folders in homes.items()}


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_names_stay_at_home(path: Path) -> None:
    """No literal outside its own folder and ``types``: others ask the kind, the backend or the table."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    where = path.relative_to(PACKAGE).as_posix()
    names = names_and_homes()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
            homes = names[node.value]
            assert any(where.startswith(home) for home in homes), (
                f"line {node.lineno}: '{node.value}' belongs to {homes}"
            )


def test_kernels_and_targets_import_nothing_of_ours() -> None:
    for path in [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "targets").rglob("*.py")]:
        assert not any(module.split(".")[0] == "edgecompress" for module in imported(path))
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "targets" / "__init__.py").exists()


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "benchmarks").glob("*.py")], ids=lambda path: path.name)
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


def test_a_vector_needs_no_torch(minilm_bundle: Path) -> None:
    """In a fresh process: load a bundle, embed, and look at what was imported."""
    script = (
        "import sys\n"
        "from edgecompress.runtime import load\n"
        f"with load({str(minilm_bundle)!r}) as encoder:\n"
        "    assert encoder.encode(['a sentence']).shape == (1, 384)\n"
        "heavy = {'torch', 'transformers', 'onnx', 'onnx_ir', 'onnxscript', 'huggingface_hub', 'scipy'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_package_itself_imports_nothing_heavy() -> None:
    script = "import sys, edgecompress; print(sorted({'numpy', 'onnxruntime', 'torch'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
