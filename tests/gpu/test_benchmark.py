"""The GPU benchmark, as far as it goes without a GPU: it refuses, and what it counts is right."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.bench_gpu_attention import (
    HEADS,
    KV_HEADS,
    RESULTS,
    Shape,
    quantized,
    sampled_error,
    summary,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.mark.parametrize(
    "module", [["benchmarks.bench_gpu_attention"], ["benchmarks.bench_gpu_backends", "--work", "w"]]
)
def test_without_a_gpu_it_exits_with_3_and_says_why(module: list[str]) -> None:
    before = RESULTS.exists()
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, "-m", *module], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 3
    assert done.stderr.splitlines() == [
        "edgecompress: there is no CUDA device here, and a time from anything else would mean nothing"
    ]
    assert done.stdout == ""
    assert RESULTS.exists() == before


def test_work_and_bytes_are_counted() -> None:
    decode = Shape(decode=True, head=128, length=1000, batch=2)
    assert decode.flops == 4 * 2 * 32 * 128 * 1000
    assert decode.bytes(2, 1) == 2 * 2 * 32 * 128 * 2 + 2 * 2 * 8 * 1000 * 128
    prefill = Shape(decode=False, head=64, length=512, batch=1)
    assert prefill.flops == 2 * 32 * 64 * 512 * 512
    assert prefill.bytes(2, 2) == 2 * 2 * 64 * 512 * (32 + 8)


@pytest.mark.parametrize("decode", [True, False])
def test_a_wrong_output_is_seen_and_a_right_one_is_not(decode: bool) -> None:
    torch.manual_seed(0)
    shape = Shape(decode=decode, head=64, length=24, batch=2)
    q = torch.randn(2, HEADS, 1 if decode else 24, 64)
    k, v = (torch.randn(2, KV_HEADS, 24, 64) for _ in range(2))
    right = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=not decode, enable_gqa=True)
    assert sampled_error(right, shape, q, k, v) < 1e-6
    wrong = torch.nn.functional.scaled_dot_product_attention(q, k[:, :, :23], v[:, :, :23], enable_gqa=True)
    assert sampled_error(wrong, shape, q, k, v) > 1e-2
    rounded, step = quantized(k)
    assert (rounded.float() * step[None, :, None] - k).abs().max() <= 0.5001 * step.max()


def test_a_summary_is_of_percentiles() -> None:
    assert summary(np.arange(11.0)) == {"median": 5.0, "p10": 1.0, "p90": 9.0}
