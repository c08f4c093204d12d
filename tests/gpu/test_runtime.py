"""Whole students on a real GPU, where there is one and what a backend needs: exported, built, loaded, verified."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch

from benchmarks.gpu_sides import target_for
from edgecompress.backends.onnxruntime_cuda.provider import CUDA_PROVIDER
from edgecompress.cli import main
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.kinds.encoder.runtime import Encoder
from edgecompress.runtime import load

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here"),
]
TEXTS = ["a cat", "the dog in the garden barks at every cat that it sees"]


def built(student: Path, backend: str, path: Path, *flags: str) -> Path:
    """Skips where the backend is not installed."""
    package = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}.get(backend)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    if package is None and CUDA_PROVIDER not in ort.get_available_providers():
        pytest.skip("onnxruntime has no CUDA provider")
    target = target_for(torch.cuda.get_device_capability())
    asked = ["--target", target, "--backend", backend, "--precision", "fp16", *flags]
    code = main(["export", str(student), *asked, "-o", str(path)])
    if code == 2 and backend == "tensorrt-rtx":
        pytest.skip(f"{target} has no backend tensorrt-rtx")
    assert code == 0
    if backend == "tensorrt":
        assert main(["build", str(path), "--device", "0"]) == 0
    return path


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_the_real_student(minilm_dir: Path, tmp_path: Path, backend: str) -> None:
    path = built(minilm_dir, backend, tmp_path / "minilm.bundle")
    assert main(["verify", str(path), "--device", "0"]) == 0
    with load(path, device=0) as model:
        assert isinstance(model, Encoder)
        first = model.encode(TEXTS)
        for _ in range(4):  # step by step, captured, launched
            np.testing.assert_allclose(model.encode(TEXTS), first, atol=2e-3)
            np.testing.assert_allclose(model.encode(TEXTS[1:]), first[1:], atol=2e-3)


@pytest.mark.parametrize("backend", ["onnxruntime", "tensorrt", "tensorrt-rtx"])
def test_a_decoder(small_decoder_dir: Path, tmp_path: Path, backend: str) -> None:
    engine = () if backend == "onnxruntime" else ("--engine-context", "320", "--engine-batch", "1,1,2")
    path = built(small_decoder_dir, backend, tmp_path / "decoder.bundle", *engine)
    assert main(["verify", str(path), "--device", "0"]) == 0
    with load(path, device=0) as model:
        assert isinstance(model, Generator)
        prompts = ["the", "a class is a thing that has members, and members"]
        alone = [model.generate(prompt, max_new_tokens=150, temperature=0.0) for prompt in prompts]
        assert model.statistics.bytes_copied == 0
        assert [model.generate(prompt, max_new_tokens=150, temperature=0.0) for prompt in prompts] == alone
        assert len(model.generate(prompts, max_new_tokens=8, temperature=0.0)) == 2
