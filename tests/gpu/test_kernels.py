"""The GPU kernels against float64: in Triton's interpreter here, and on a GPU where there is one."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.gpu.cases import CASES, ONLY_ON_A_GPU, Case, Outcome, run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
NO_TRITON = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(NO_TRITON, reason="triton is not installed: pip install 'edgecompress[triton]'")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")


def check(case: Case, outcome: Outcome) -> None:
    """At most twice the error of the plain computation in the same type (the rule of Dao-AILab/flash-attention).

    Both round the same inputs in the same type; the kernel keeps scores and sums in float32 where the plain one rounds
    them, but sums in another order and rounds weights before they are divided by their sum. In float32 the plain error
    itself is a few roundings, by luck smaller than the next: hence one rounding of the type (eps) is always allowed.
    """
    assert outcome.unwritten == 0
    assert outcome.nonzero_unseen == 0
    assert outcome.error <= 2 * outcome.plain_error + torch.finfo(getattr(torch, case.dtype)).eps


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Outcome]:
    """Every case, computed in one process of its own."""
    out = tmp_path_factory.mktemp("interpreted") / "outcomes.json"
    command = [sys.executable, "-m", "tests.gpu.cases", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"TRITON_INTERPRET": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return {name: Outcome(**outcome) for name, outcome in json.loads(out.read_text()).items()}


def test_case_names_tell_cases_apart() -> None:
    assert len({case.name for case in [*CASES, *ONLY_ON_A_GPU]}) == len(CASES) + len(ONLY_ON_A_GPU)


@needs_triton
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_matches_the_reference_in_the_interpreter(case: Case, interpreted: dict[str, Outcome]) -> None:
    check(case, interpreted[case.name])


@pytest.mark.gpu
@needs_triton
@needs_gpu
@pytest.mark.parametrize("case", [*CASES, *ONLY_ON_A_GPU], ids=lambda case: case.name)
def test_matches_the_reference_on_a_gpu(case: Case) -> None:
    if case.cache == "fp8" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("this GPU has no fp8")
    check(case, run(case, "cuda"))


REFUSED = """
import torch
from edgecompress_kernels.gpu.attention import KernelInputError, decode, prefill
from edgecompress_kernels.gpu.norms import add_rms_norm

def said(call):
    try:
        call()
    except KernelInputError as error:
        print(error)
    else:
        print("taken")

q, starts = torch.zeros(4, 2, 64), torch.tensor([0, 4], dtype=torch.int32)
lengths = torch.tensor([4], dtype=torch.int32)
cache = torch.zeros(1, 2, 8, 64)
settings = {"longest": 4, "scale": 1.0}
said(lambda: prefill(q, q.half(), q.half(), starts, starts, causal=True, **settings))
said(lambda: prefill(q[..., :50], q[..., :50], q[..., :50], starts, starts, causal=True, **settings))
said(lambda: prefill(q, q, q, starts.long(), starts, causal=True, **settings))
said(lambda: prefill(q[:, [0, 1, 0]], q, q, starts, starts, causal=True, **settings))
said(lambda: prefill(q, q, q, starts, starts, causal=True, longest=4, scale=0.0))
said(lambda: decode(q[None, :1], cache, cache, lengths, key_scales=torch.ones(2, 64), **settings))
said(lambda: decode(q[None, :1], cache.to(torch.int8), cache.to(torch.int8), lengths, **settings))
said(lambda: decode(q[None, :1], cache, cache, lengths, longest=9, scale=1.0))
said(lambda: add_rms_norm(torch.zeros(2, 9000), torch.zeros(2, 9000), torch.zeros(9000), 1e-6))
said(lambda: prefill(q, q, q, starts, starts, causal=True, **settings))
"""


@needs_triton
def test_what_a_kernel_cannot_take_is_said() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (
        "they must have the same type",
        "the head size is 50; it must be 16 to 256, in steps of 16",
        "q_starts must be int32 [B + 1]",
        "3 query heads are not a multiple of 2 key heads",
        "scale is 0.0; it must be above 0",
        "an int8 or float8 cache needs key_scales and value_scales",
        "an int8 or float8 cache needs key_scales and value_scales",
        "the longest text has 9 keys, but the cache has room for 8",
        "rows have 9000 columns; the kernel supports 1 to 8192",
        "move them to a CUDA device, or set TRITON_INTERPRET=1",
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(expected)
    for line, message in zip(lines, expected, strict=True):
        assert message in line
