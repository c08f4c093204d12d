"""Half an install: a package is missing, and the error names the command that brings it. Each in its own process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from edgecompress.formats import packages
from tests.wording.world import BERT, QWEN, WHOLE, checkpoint

ROOT = Path(__file__).parent.parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]

RUN = """
import importlib.machinery, sys
HIDDEN = set(sys.argv[1].split(","))
find = importlib.machinery.PathFinder.find_spec
def find_spec(name, path=None, target=None):
    return None if HIDDEN & {name, name.partition(".")[0]} else find(name, path, target)
importlib.machinery.PathFinder.find_spec = find_spec
from edgecompress.cli import main
raise SystemExit(main(sys.argv[2:]))
"""

CASES = [
    # hidden module, command, what is to be installed
    ("torch", "export student -o out", "edgecompress[export]"),
    ("transformers", "export student -o out", "edgecompress[export]"),
    ("onnx", "export student -o out", "edgecompress[export]"),
    ("onnx_ir", "export student -o out", "edgecompress[export]"),
    ("onnxscript", "export decoder -o out --precision fp32", "edgecompress[export]"),
    ("safetensors", "export student -o out", "edgecompress[export]"),
    ("huggingface_hub", "export owner/name -o out", "edgecompress[export]"),
    ("huggingface_hub", "push encoder.bundle owner/name", "edgecompress[export]"),
    ("torch", "distill --teacher student --student one.toml --data texts.txt -o out", "edgecompress[export,distill]"),
    (
        "accelerate",
        "distill --teacher student --student one.toml --data texts.txt -o out",
        "edgecompress[export,distill]",
    ),
    (
        "openai",
        "label --teacher openai:http://localhost:9/v1#m --data prompts.jsonl -o out.jsonl",
        "edgecompress[distill]",
    ),
    ("fastapi", "serve encoder.bundle", "edgecompress[serve]"),
    ("uvicorn", "serve encoder.bundle", "edgecompress[serve]"),
    ("model_signing", "sign encoder.bundle --key private.pem", "edgecompress[sign]"),
    ("model_signing", "verify encoder.bundle --key public.pem", "edgecompress[sign]"),
    ("asyncssh", "profile encoder.bundle --on ssh://localhost:9", "edgecompress[devices]"),
    ("distributed", "profile encoder.bundle --fleet tcp://localhost:9", "edgecompress[devices]"),
    ("openvino", "compare encoder.bundle openvino:prompts.jsonl --shapes 1x16", "edgecompress[openvino]"),
    ("onnxruntime", "run encoder.bundle hello", "pip install edgecompress"),
    ("tokenizers", "run encoder.bundle hello", "pip install edgecompress"),
    ("numpy", "run encoder.bundle hello", "pip install edgecompress"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from tests.lineage.folders import keys

    found = tmp_path_factory.mktemp("half")
    checkpoint(found / "student", BERT)
    checkpoint(found / "decoder", QWEN)
    for kind in ("encoder", "decoder"):
        (found / f"{kind}.bundle").symlink_to(WHOLE / kind)
    (found / "one.toml").write_text("[student]\nlayers = 1\n")
    (found / "texts.txt").write_text("A cat sits.\nA dog barks.\n")
    (found / "prompts.jsonl").write_text('{"prompt": "Say hello"}\n')
    private, public = keys(found)
    private.rename(found / "private.pem")
    public.rename(found / "public.pem")
    return found


def run(folder: Path, hidden: str, line: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", RUN, hidden, *line.split()],
        cwd=folder,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )


@pytest.mark.slow
@pytest.mark.parametrize(("hidden", "line", "install"), CASES, ids=[f"{a}-{b.split()[0]}" for a, b, _ in CASES])
def test_the_command_to_run_is_named(folder: Path, hidden: str, line: str, install: str) -> None:
    done = run(folder, hidden, line)
    aside = ("edgecompress: provenance", "ModuleNotFoundError: ")  # the latter from onnxruntime's extension
    message, *hint = [text for text in done.stderr.splitlines() if not text.startswith(aside)]
    assert done.returncode == 3, done.stderr
    assert packages.distribution_of(hidden) in message.replace("_", "-"), done.stderr
    assert install in hint[0], done.stderr
    assert ("pip install 'torch" in "\n".join(hint)) == (hidden == "torch" and packages.cpu_torch_command() is not None)


def test_every_extra_of_a_hint_has_the_package() -> None:
    for hidden, _, install in CASES:
        if "[" in install:
            named = install.partition("[")[2].rstrip("]").split(",")
            have = {each.name for extra in named for each in packages.parse_requirements(EXTRAS[extra])}
            assert packages.distribution_of(hidden) in have, hidden


@pytest.mark.slow
def test_a_base_install_does_what_a_device_does(folder: Path) -> None:
    """With every package of every extra hidden."""
    names = {each.name for texts in EXTRAS.values() for each in packages.parse_requirements(texts)}
    base = {"onnxruntime-gpu"}
    modules = {"pillow": "PIL", "pyyaml": "yaml", "pyopenssl": "OpenSSL", "cyclonedx-python-lib": "cyclonedx"}
    hidden = ",".join(sorted(modules.get(name, name.replace("-", "_")) for name in names - base))
    for line in (
        "",
        "--help",
        *("inspect encoder.bundle", "verify encoder.bundle", "run encoder.bundle hello", "run decoder.bundle hello"),
        *("targets", "targets detect", "architectures", "completion bash", "lineage encoder.bundle"),
        "estimate encoder.bundle --target raspberry-pi-5 --help",
        "profile encoder.bundle --duration 0.05 --no-cold-start --shapes 1x16",
        "doctor",
    ):
        done = run(folder, hidden, line)
        assert done.returncode == (0 if line else 2), (line, done.stderr)


def test_a_missing_export_is_one_line_of_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    from edgecompress.cli import doctor

    required = packages.requirements()
    base = {each.name: "99" for each in required if each.extra is None}
    rows = doctor.check_packages(required, base)
    lines = doctor._extra_lines(rows, everything=False)
    assert lines[0] == "to export here: pip install 'edgecompress[export]'"
    if (first := packages.cpu_torch_command()) is not None:
        assert lines[1].endswith(first)
    assert len(lines) <= 4
    assert lines[-1].startswith("other extras: ")
    assert "test" not in lines[-1]
    everything = doctor._extra_lines(rows, everything=True)
    assert any(line.startswith("serve lacks fastapi, uvicorn: pip install") for line in everything)


def test_json_of_a_missing_package(folder: Path) -> None:
    done = run(folder, "fastapi", "serve encoder.bundle --json")
    assert json.loads(done.stdout)["error"]["hint"] == "pip install 'edgecompress[serve]'"
