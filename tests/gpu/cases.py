"""What the GPU kernels are tested on, in Triton's interpreter and, where there is one, on a GPU.

Run as ``TRITON_INTERPRET=1 python -m tests.gpu.cases OUT.json`` it computes every case on the CPU: when a kernel is
imported Triton decides whether it is interpreted, so the interpreter needs a process of its own.
"""

from __future__ import annotations

import itertools
import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from edgecompress_kernels import reference

Texts = tuple[tuple[int, int], ...]
TEXTS: Texts = ((5, 5), (0, 3), (33, 20), (1, 40), (3, 0))
"""Queries and keys of each text: as many, none, more queries than keys (the first see none if causal), one, no keys."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One call of a kernel; ``kernel``: prefill, decode, rms or layer."""

    kernel: str
    dtype: str = "float16"
    head: int = 64
    heads: int = 4
    kv_heads: int = 2
    texts: Texts = TEXTS
    causal: bool = True
    window: int = 0
    soft_cap: float = 0.0
    tokens: int = 1
    lengths: tuple[int, ...] = (1, 70, 33)
    splits: int = 1
    cache: str = ""
    rows: int = 5
    columns: int = 100
    general: bool = False  # the kernel for every chip, also where one has its own
    poisoned: bool = False  # the last text's values are NaN: none may reach another's

    @property
    def name(self) -> str:
        parts = [self.kernel, self.dtype]
        if self.kernel in ("rms", "layer"):
            return "-".join([*parts, f"{self.rows}x{self.columns}"])
        parts += [f"d{self.head}", f"{self.heads}over{self.kv_heads}"]
        parts += [f"window{self.window}"] * bool(self.window) + [f"cap{self.soft_cap:g}"] * bool(self.soft_cap)
        if self.kernel == "prefill":
            parts += ["causal" if self.causal else "full"] + ["odd"] * (self.texts != TEXTS)
            parts += ["general"] * self.general + ["poisoned"] * self.poisoned
        else:
            parts += [f"t{self.tokens}", f"s{self.splits}", "l" + "_".join(map(str, self.lengths))]
        return "-".join([*parts, self.cache]).rstrip("-")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Root mean squares over the reference's own: of the kernel's error and of the plain computation's in its type."""

    error: float
    plain_error: float
    unwritten: int  # NaNs
    nonzero_unseen: int  # values that are not 0 in rows that see no key


CASES = [
    Case(kernel="prefill"),
    Case(kernel="prefill", dtype="float32", heads=2, kv_heads=1),
    *(Case(kernel="prefill", dtype=t, heads=2, kv_heads=1, causal=False) for t in ("float32", "float16")),
    *(Case(kernel="prefill", head=head, heads=2, kv_heads=1, texts=((17, 17), (3, 19))) for head in (80, 96, 128, 256)),
    Case(kernel="prefill", dtype="float32", head=80, heads=2, kv_heads=1, causal=False, window=7),
    Case(kernel="prefill", heads=2, kv_heads=2, window=7),
    *(
        Case(kernel="prefill", heads=2, kv_heads=1, causal=c, texts=((20, 20), (5, 30), (7, 7)), poisoned=True)
        for c in (True, False)
    ),
    Case(kernel="prefill", heads=3, kv_heads=1, soft_cap=5.0),
    Case(kernel="prefill", causal=False, window=20, soft_cap=2.0, heads=2, kv_heads=2),
    *(Case(kernel="decode", dtype=t, splits=s) for t in ("float32", "float16") for s in (1, 3)),
    *(Case(kernel="decode", head=head, heads=3, kv_heads=1, splits=2) for head in (80, 96, 128, 256)),
    # 20 rows are two blocks, and the first text has one key for five queries
    Case(kernel="decode", tokens=5, heads=8, kv_heads=2, splits=2, lengths=(1, 34)),
    Case(kernel="decode", dtype="float32", tokens=2, lengths=(0, 1, 2), splits=1),  # no key at all
    Case(kernel="decode", window=9, splits=3),
    Case(kernel="decode", tokens=3, window=20, soft_cap=3.0, splits=2),
    *(Case(kernel="decode", cache=cache, splits=s, head=h) for cache in ("int8", "fp8") for s, h in ((1, 64), (2, 80))),
    Case(kernel="decode", dtype="float32", cache="int8", tokens=2, window=9, soft_cap=3.0, splits=2),
    *(Case(kernel=k, dtype=t) for k in ("rms", "layer") for t in ("float32", "float16")),
    *(Case(kernel=k, rows=3, columns=2050) for k in ("rms", "layer")),
    *(Case(kernel=k, rows=r, columns=c) for k in ("rms", "layer") for r, c in ((0, 64), (1, 1))),
]
ONLY_ON_A_GPU = [  # the interpreter truncates to bfloat16, and its tl.dot of bfloat16 is wrong; and it is slow
    *(Case(kernel=k, dtype="bfloat16") for k in ("rms", "layer")),
    *(Case(kernel="prefill", dtype="bfloat16", head=head) for head in (64, 128)),
    *(Case(kernel="decode", dtype="bfloat16", splits=3, cache=cache) for cache in ("", "int8", "fp8")),
    *(
        Case(kernel="prefill", head=h, texts=((200, 200), (129, 500), (1, 63)), causal=c)
        for h in (64, 128)
        for c in (True, False)
    ),
    *(
        Case(kernel="prefill", head=h, texts=((200, 200), (129, 500), (1, 63)), causal=c, general=True)
        for h in (64, 128)
        for c in (True, False)
    ),
    *(
        Case(kernel="prefill", dtype=t, head=h, texts=((300, 400), (129, 140)), causal=c, poisoned=True)
        for t, h in (("float16", 128), ("bfloat16", 64), ("float16", 80))
        for c in (True, False)
    ),
    Case(kernel="prefill", heads=6, kv_heads=3, texts=((1, 700), (257, 257), (0, 5), (4, 0), (513, 640))),
    *(Case(kernel="decode", head=h, lengths=(1, 4097, 800), splits=9) for h in (64, 128, 256)),
    *(
        Case(kernel="decode", head=h, heads=8, lengths=(5000, 4097, 1), splits=s, cache=c, tokens=t)
        for h, c, s, t in ((128, "int8", 4, 1), (64, "int8", 3, 3), (128, "fp8", 2, 2), (96, "int8", 1, 1))
    ),
]


def run(case: Case, device: str) -> Outcome:
    """Compute a case, its outputs and scratch filled with NaN before, against float64."""
    torch.use_deterministic_algorithms(True)  # torch.empty is then filled with NaN
    try:
        torch.manual_seed(0)
        return {"prefill": _prefill, "decode": _decode, "rms": _norm, "layer": _norm}[case.kernel](case, device)
    finally:
        torch.use_deterministic_algorithms(False)


def _outcome(out: torch.Tensor, plain: torch.Tensor, expected: torch.Tensor) -> Outcome:
    out, plain = out.double().cpu(), plain.double().cpu()
    size = max(float(expected.square().sum()) ** 0.5, 1e-30)
    unseen = (expected == 0).all(-1)
    return Outcome(
        error=float((out - expected).square().sum()) ** 0.5 / size,
        plain_error=float((plain - expected).square().sum()) ** 0.5 / size,
        unwritten=int(out.isnan().sum()),
        nonzero_unseen=int((out[unseen] != 0).sum()),
    )


def _expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case, causal: bool) -> torch.Tensor:
    """q [Hq, T, D] and k, v [Hk, S, D] -> [Hq, T, D] in float64."""
    arrays = (x.double().cpu().numpy() for x in (q, k, v))
    scale = case.head**-0.5
    return torch.from_numpy(
        reference.seen_attention(*arrays, scale, causal=causal, window=case.window, soft_cap=case.soft_cap)
    )


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, case: Case, causal: bool) -> torch.Tensor:
    """The same in the inputs' type, softmax in float32, as a model's eager attention has it."""
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    scores = q @ k.transpose(1, 2) * case.head**-0.5
    if case.soft_cap:
        scores = torch.tanh(scores / case.soft_cap) * case.soft_cap
    distance = (torch.arange(q.shape[1]) + k.shape[1] - q.shape[1])[:, None] - torch.arange(k.shape[1])
    seen = torch.ones(distance.shape, dtype=torch.bool)
    if causal:
        seen &= distance >= 0
    if case.window:
        seen &= distance.abs() < case.window
    seen = seen.to(q.device)
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1, dtype=torch.float32).nan_to_num(0).to(q.dtype)
    return weights @ v


def _starts(counts: list[int], device: str) -> torch.Tensor:
    return torch.tensor([0, *itertools.accumulate(counts)], dtype=torch.int32, device=device)


def _prefill(case: Case, device: str) -> Outcome:
    from edgecompress_kernels.gpu.attention import prefill
    from edgecompress_kernels.gpu.chips import nearest, width_of

    dtype = getattr(torch, case.dtype)
    queries, keys = [t for t, _ in case.texts], [s for _, s in case.texts]
    # keys and values are views of one tensor, as a fused projection gives them
    q = torch.randn(sum(queries), case.heads, case.head).to(device, dtype)
    kv = torch.randn(sum(keys), 2 * case.kv_heads, case.head).to(device, dtype)
    k, v = kv[:, : case.kv_heads], kv[:, case.kv_heads :]
    if case.poisoned:
        kv[sum(keys[:-1]) :] = torch.nan
    tile = None
    if case.general:
        tile = nearest(torch.cuda.get_device_capability()).prefill[max(64, width_of(case.head))]
    out = prefill(
        *(q, k, v, _starts(queries, device), _starts(keys, device)),
        longest=max(queries),
        scale=case.head**-0.5,
        causal=case.causal,
        window=case.window,
        soft_cap=case.soft_cap,
        tile=tile,
    )
    parts = [
        tuple(x.transpose(0, 1) for x in part)
        for part in zip(q.split(queries), k.split(keys), v.split(keys), strict=True)
    ]
    if case.poisoned:
        parts, out = parts[:-1], out[: sum(queries[:-1])]
    expected = torch.cat([_expected(*part, case, case.causal).transpose(0, 1) for part in parts])
    plain = torch.cat([_plain(*part, case, case.causal).transpose(0, 1) for part in parts])
    return _outcome(out, plain, expected)


def _decode(case: Case, device: str) -> Outcome:
    from edgecompress_kernels.gpu.attention import decode

    dtype, batch = getattr(torch, case.dtype), len(case.lengths)
    capacity = max(case.lengths) + 3
    q = torch.randn(batch, case.tokens, case.heads, case.head).to(device, dtype)
    shape = (batch, case.kv_heads, capacity, case.head)
    floats = [torch.randn(shape), torch.randn(shape)]
    scales: dict[str, torch.Tensor] = {}
    caches, read = [], []
    for name, x in zip(("key_scales", "value_scales"), floats, strict=True):
        if not case.cache:
            cache = x.to(dtype)
            for b, length in enumerate(case.lengths):
                cache[b, :, length:] = float("nan")  # what lies behind a text must not be multiplied, not even by 0
            read.append(cache)
        else:
            # the keys' scale a channel, the values' a head, as a row of equal ones
            step = x.abs().amax((0, 2) if name == "key_scales" else (0, 2, 3), keepdim=True)[0, :, 0]
            step = (step / (127 if case.cache == "int8" else 448)).expand(case.kv_heads, case.head).contiguous()
            cache = x / step[None, :, None]
            cache = cache.round().to(torch.int8) if case.cache == "int8" else cache.to(torch.float8_e4m3fn)
            scales[name] = step.to(device)
            read.append(cache.float() * step[None, :, None])
        caches.append(cache.to(device))
    out = decode(
        *(q, *caches, torch.tensor(case.lengths, dtype=torch.int32, device=device)),
        longest=max(case.lengths),
        scale=case.head**-0.5,
        window=case.window,
        soft_cap=case.soft_cap,
        splits=case.splits,
        **scales,
    )
    texts = [(q[b].transpose(0, 1), *(x[b, :, :n] for x in read)) for b, n in enumerate(case.lengths)]
    expected = torch.stack([_expected(*text, case, True).transpose(0, 1) for text in texts])
    plain = torch.stack(
        [_plain(t, k.to(device, dtype), v.to(device, dtype), case, True).transpose(0, 1) for t, k, v in texts]
    )
    return _outcome(out, plain, expected)


def _norm(case: Case, device: str) -> Outcome:
    from edgecompress_kernels.gpu.norms import add_layer_norm, add_rms_norm

    dtype = getattr(torch, case.dtype)
    # rows far from zero: a LayerNorm that took the mean of squares less the square of the mean would fail
    x, residual = (torch.randn(case.rows, case.columns) * 2 + 30 for _ in range(2))
    gamma, beta = torch.randn(case.columns), torch.randn(case.columns)
    x, residual, gamma, beta = (t.to(device, dtype) for t in (x, residual, gamma, beta))
    plain_sum = x + residual
    wide = plain_sum.float()
    exact = plain_sum.double().cpu().numpy()
    if case.kernel == "rms":
        summed, out = add_rms_norm(x, residual, gamma, 1e-6)
        expected = reference.rms_norm(exact, gamma.double().cpu().numpy(), 1e-6)
        plain = gamma * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)).to(dtype)
    else:
        summed, out = add_layer_norm(x, residual, gamma, beta, 1e-5)
        expected = reference.layer_norm(exact, gamma.double().cpu().numpy(), beta.double().cpu().numpy(), 1e-5)
        plain = torch.nn.functional.layer_norm(plain_sum, (case.columns,), gamma, beta, 1e-5)
    if not torch.equal(summed, plain_sum):
        raise AssertionError("the sum is not x + residual, rounded once")
    return _outcome(out, plain, torch.from_numpy(np.asarray(expected)))


def main() -> None:
    outcomes: dict[str, Any] = {case.name: asdict(run(case, "cpu")) for case in CASES}
    Path(sys.argv[1]).write_text(json.dumps(outcomes))


if __name__ == "__main__":
    main()
