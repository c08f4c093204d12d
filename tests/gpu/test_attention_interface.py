"""The kernels as transformers' attention: tiny random models against eager, on CPU tensors in Triton's interpreter."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent.parent
NO_TRITON = importlib.util.find_spec("triton") is None
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(NO_TRITON, reason="triton is not installed: pip install 'edgecompress[triton]'"),
]

TOLERANCE = 2e-6
"""Of the largest hidden value: 16 roundings of float32 (eps 1.2e-7), two layers of sums in another order; measured are
4e-7 and less. A window one key too wide was seen as 1e-3 (modernbert) to 0.6."""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("models") / "report.json"
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.gpu.models", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    "name",
    [
        *(f"qwen2, padding {side}" for side in ("none", "left", "right")),
        "mistral, window of 5, padding left",
        "gemma2, soft cap and window, padding left",
        "bert, padding left",
        "modernbert, window on both sides, padding left",
    ],
)
def test_a_model_gives_what_eager_gives(name: str, report: dict[str, Any]) -> None:
    assert report["errors"][name] <= TOLERANCE


def test_generates_what_eager_generates(report: dict[str, Any]) -> None:
    assert len(report["texts"]) == 2
    for eager, ours in report["texts"].values():
        assert ours == eager
        assert len(ours[0]) == 3


def test_what_the_kernels_do_not_compute_is_refused(report: dict[str, Any]) -> None:
    said = report["refusals"]
    assert "call the model under torch.inference_mode()" in said["gradients"]
    assert "pass the model a 2D attention_mask" in said["4D mask"]
    assert "packed_sequence_mask_function" in said["packed texts"]
    assert "output_attentions" in said["attention weights"]
