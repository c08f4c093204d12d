"""Kernels called by their records: through a device double into Triton's interpreter, and on a GPU if there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.launches import errors, variants_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
ABSENT = [name for name in ("triton", "cuda") if importlib.util.find_spec(name) is None]

BOUND = 2**-10
"""Of the largest value: float16 rounds weights and the output once each, by 2^-11 at the most."""


@pytest.mark.skipif("triton" in ABSENT, reason="triton is not installed: pip install 'edgecompress[triton]'")
def test_packed_parameters_compute_the_reference_in_the_interpreter(tmp_path: Path) -> None:
    out = tmp_path / "errors.json"
    command = [sys.executable, "-m", "tests.gpu.launches", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert sorted(found) == ["decode", "norm", "prefill"]
    assert max(found.values()) <= BOUND


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.skipif("cuda" in ABSENT, reason="cuda-core is not installed: pip install 'edgecompress[gpu]'")
def test_cubins_compute_the_reference_on_a_gpu(tmp_path: Path) -> None:
    """Compiled here, or, where the folder is named in EDGECOMPRESS_CUBINS, by a machine that has Triton 3.9."""
    from edgecompress_kernels.gpu.chips import nearest
    from edgecompress_kernels.gpu.launch import CudaDriver, Launcher
    from edgecompress_kernels.gpu.record import write_kernel

    variants = variants_of(nearest(torch.cuda.get_device_capability()))
    folder = Path(os.environ.get("EDGECOMPRESS_CUBINS", tmp_path))
    if folder == tmp_path:
        if "triton" in ABSENT:
            pytest.skip("triton is not installed: pip install 'edgecompress[triton]'")
        from edgecompress_kernels.gpu.aot import compile_variant

        for variant in variants.values():
            record, cubin = compile_variant(variant)
            write_kernel(record, cubin, folder)
    with Launcher(folder, CudaDriver()) as launcher:
        found = errors(launcher, variants, "cuda")
    assert set(found) == set(variants)
    assert max(found.values()) <= BOUND
