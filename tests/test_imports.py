"""Imports flow one way, and modules stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
STAGES = ("capture", "quantize", "lower", "compile", "verify", "bundle", "bundle_card", "lineage")
LAYER = {
    "types": 0,
    "errors": 0,
    "formats": 1,
    "targets": 1,
    "runtime": 2,
    **dict.fromkeys(STAGES, 3),
    "profile": 4,
    "serve": 3,
    "devices": 5,
    "distill": 8,
    "gpu_plan": 4,
    "candidates": 4,
    "assembly": 5,
    "gpu_stage": 5,
    "stages": 6,
    "decoder_stages": 6,
    "pipeline": 7,
    "cli": 9,
    "__main__": 10,
}
MODULES = sorted((ROOT / "edgecompress").rglob("*.py"))
MAX_LINES = 400


def room(module: str) -> str:
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else ""


def imports(path: Path) -> set[str]:
    """Modules of ours that a file imports when it runs; what is under TYPE_CHECKING does not run."""
    tree = ast.parse(path.read_text())
    skipped = {
        child
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if node in skipped:
            continue
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name} has a relative import"
            found.add(node.module or "")
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


@pytest.mark.parametrize("path", [p for p in MODULES if p.parent != ROOT / "edgecompress" or p.stem != "__init__"])
def test_no_import_points_up(path: Path) -> None:
    here = path.relative_to(ROOT / "edgecompress").parts[0].removesuffix(".py")
    for module in imports(path):
        there = room(module)
        if module.split(".")[0] == "edgecompress" and there and there != here:
            assert there in LAYER, f"{there} has no place in the house"
            stages_among_themselves = here in STAGES and there in STAGES
            assert LAYER[there] < LAYER[here] or stages_among_themselves or {here, there} == {"targets", "formats"}, (
                f"{path.name} ({here}) imports {module}"
            )


def test_the_runtime_stays_light() -> None:
    allowed = {"types", "errors", "formats", "runtime"}
    heavy = {"torch", "transformers", "onnx", "onnx_ir", "onnxscript", "huggingface_hub", "rich"}
    for path in (ROOT / "edgecompress" / "runtime").glob("*.py"):
        for module in imports(path):
            assert module.split(".")[0] not in heavy
            if module.startswith("edgecompress."):
                assert room(module) in allowed


def test_kernels_and_targets_import_nothing_of_ours() -> None:
    for path in [*(ROOT / "kernels").rglob("*.py"), *(ROOT / "targets").rglob("*.py")]:
        assert not any(module.split(".")[0] == "edgecompress" for module in imports(path))
    assert not (ROOT / "kernels" / "__init__.py").exists()
    assert not (ROOT / "targets" / "__init__.py").exists()


@pytest.mark.parametrize("path", [*MODULES, *(ROOT / "benchmarks").glob("*.py")])
def test_modules_stay_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MAX_LINES


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
