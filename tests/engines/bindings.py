"""The Python bindings of TensorRT proper, imported without TensorRT.

Their wheels hold one extension module, which wants three libraries of some 4 GB that no test machine has. It takes ten
C functions from them, and none when it is imported: a library of the same name that has these functions and does
nothing is enough to ask the bindings for their classes, enums and signatures. ``make test`` unpacks the wheels into
``build/tensorrt-bindings``, away from what Python imports by itself.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "build" / "tensorrt-bindings"
MAJORS = (10, 11)

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_FUNCTIONS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL", "createNvOnnxParser_INTERNAL", "getBuilderPluginRegistry",
    "getNvOnnxParserVersion", "getPluginRegistry", "getInferLibVersion", "initLibNvInferPlugins",
)  # fmt: skip
_ASK = """
import importlib, json, sys
module = importlib.import_module(sys.argv[1])
answers = {}
for chain in json.load(sys.stdin):
    value = module
    for name in chain.split("."):
        value = getattr(value, name, None)
    if isinstance(value, str):
        answers[chain] = value
        continue
    answers[chain] = None if value is None else (getattr(value, "__doc__", None) or type(value).__name__)
print(json.dumps(answers))
"""


def ask(module: str, chains: Iterable[str], work: Path, major: int | None = None) -> dict[str, str | None]:
    """What stands behind each dotted name of the module: its text or docstring, or None if there is nothing.

    ``major``: of TensorRT proper, whose wheel is in FOLDER; None for a package that is installed.
    """
    environment = dict(os.environ)
    if major is not None:
        _make_stubs(work, major)
        environment["LD_LIBRARY_PATH"] = str(work)
        environment["PYTHONPATH"] = str(FOLDER / str(major))
    done = subprocess.run(
        [sys.executable, "-c", _ASK, module],
        input=json.dumps(sorted(chains)),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answers: dict[str, str | None] = json.loads(done.stdout.splitlines()[-1])
    return answers


def _make_stubs(work: Path, major: int) -> None:
    source = work / "stub.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in _FUNCTIONS))
    for library in _LIBRARIES:
        name = f"lib{library}.so.{major}"
        if not (work / name).exists():
            command = [sys.executable, "-m", "ziglang", "cc", "-shared", "-fPIC", str(source), f"-Wl,-soname,{name}"]
            subprocess.run([*command, "-o", str(work / name)], check=True, capture_output=True)
