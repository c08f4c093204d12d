"""Calls of every kernel through the launcher, by a record and not by Triton's own call.

Run as ``TRITON_INTERPRET=1 python -m tests.gpu.launches OUT.json`` a double of the device takes the packed parameters
apart again and gives them to Triton's interpreter: order, alignment, grid and constants then compute the result.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from edgecompress_kernels import reference
from edgecompress_kernels.gpu.chips import HOPPER_ROWS, Chip, chip
from edgecompress_kernels.gpu.launch import Launcher, Tokens
from edgecompress_kernels.gpu.record import KernelRecord, write_kernel
from edgecompress_kernels.gpu.variants import (
    KERNELS,
    Variant,
    decode_variant,
    hopper_variant,
    norm_variant,
    prefill_variant,
)


def variants_of(of: Chip) -> dict[str, Variant]:
    return {
        "norm": norm_variant(of, "float16", 512, layer=False),
        "prefill": prefill_variant(of, "float16", 64, causal=True),
        "decode": decode_variant(of, "float16", 64, cache="float16"),
        "decode-int8": decode_variant(of, "float16", 64, cache="int8"),
        **({"prefill-hopper": hopper_variant(of, "float16", 64, causal=True)} if of.hopper else {}),
    }


def strides(name: str, tensor: torch.Tensor, *axes: str) -> dict[str, int]:
    return {f"{name}_{axis}": stride for axis, stride in zip(axes, tensor.stride(), strict=False)}


def errors(launcher: Launcher, variants: dict[str, Variant], device: str) -> dict[str, float]:
    """Largest errors against float64 over the largest values, outputs and scratch filled with NaN before."""
    torch.manual_seed(0)
    found = {
        "norm": _norm(launcher, variants["norm"].name, device),
        "prefill": _prefill(launcher, variants["prefill"].name, device),
        "decode": _decode(launcher, variants["decode"].name, device),
    }
    if device == "cuda":  # PTX in the one, and Hopper's own units in the other: no interpreter has either
        found["decode-int8"] = _decode(launcher, variants["decode-int8"].name, device, int8=True)
        if "prefill-hopper" in variants:
            found["prefill-hopper"] = _prefill_hopper(launcher, variants["prefill-hopper"].name)
    return found


def _largest(out: torch.Tensor, expected: Any) -> float:
    """The largest error over the largest value; infinite where a NaN was left."""
    expected = torch.as_tensor(expected)
    difference = (out.double().cpu() - expected).abs().nan_to_num(float("inf"))
    return float(difference.max() / expected.abs().max())


def _norm(launcher: Launcher, name: str, device: str) -> float:
    x, residual = torch.randn(2, 9, 384).half().to(device)
    gamma = torch.randn(384).half().to(device)
    summed, out = torch.full_like(x, torch.nan), torch.full_like(x, torch.nan)
    tensors = {"x": x, "residual": residual, "gamma": gamma, "beta": gamma, "summed": summed, "out": out}
    launcher.launch(name, tensors | {"x_row": 384, "residual_row": 384, "rows": 9, "columns": 384, "epsilon": 1e-6})
    exact = (x + residual).double().cpu().numpy()
    expected = reference.rms_norm(exact, gamma.double().cpu().numpy(), 1e-6)
    return max(_largest(out, expected), 0.0 if torch.equal(summed, x + residual) else float("inf"))


def _prefill(launcher: Launcher, name: str, device: str) -> float:
    q = torch.randn(150, 4, 64).half().to(device)
    k, v = torch.randn(2, 150, 2, 64).half().to(device)
    out = torch.full_like(q, torch.nan)
    starts = torch.tensor([0, 150], dtype=torch.int32, device=device)
    values: dict[str, Any] = {"q": q, "k": k, "v": v, "out": out, "q_starts": starts, "k_starts": starts}
    for tensor in ("q", "k", "v", "out"):
        values |= strides(tensor, values[tensor], "token", "head")
    values |= {"group": 2, "window": 0, "scale": 0.125, "soft_cap": 0.0, "longest": 150, "heads": 4, "texts": 1}
    launcher.launch(name, values)
    arrays = (x.transpose(0, 1).double().cpu().numpy() for x in (q, k, v))
    return _largest(out.transpose(0, 1), reference.seen_attention(*arrays, 0.125, causal=True))


def _prefill_hopper(launcher: Launcher, name: str) -> float:
    q = torch.randn(150, 4, 64).half().cuda()
    k, v = torch.randn(2, 150, 2, 64).half().cuda()
    out = torch.full_like(q, torch.nan)
    starts = torch.tensor([0, 150], dtype=torch.int32, device="cuda")
    values: dict[str, Any] = {"out": out, "q_starts": starts, "k_starts": starts}
    for tensor, x in (("q", q), ("k", k), ("v", v)):
        values[tensor] = Tokens(
            address=x, heads=x.shape[1], tokens=150, width=64, head_stride=x.stride(1), token_stride=x.stride(0)
        )
    values |= strides("out", out, "token", "head")
    values |= {"heads": 4, "texts": 1, "blocks": -(-150 // (2 * HOPPER_ROWS)), "group": 2, "section": 4, "scale": 0.125}
    launcher.launch(name, values | {"programs": 3})  # fewer than there are tiles
    arrays = (x.transpose(0, 1).double().cpu().numpy() for x in (q, k, v))
    return _largest(out.transpose(0, 1), reference.seen_attention(*arrays, 0.125, causal=True))


def _decode(launcher: Launcher, name: str, device: str, *, int8: bool = False) -> float:
    """Twice: the first call must leave its counters as it found them."""
    q = torch.randn(1, 1, 4, 64).half().to(device)
    keys, cached = torch.randn(2, 1, 2, 300, 64).half().to(device)
    scale = torch.ones(2, 64, device=device)  # not read if the cache is of halves
    if int8:
        scale /= 32
        keys, cached = ((x * 32).round().clamp(-127, 127).to(torch.int8) for x in (keys, cached))
    out = torch.empty_like(q)
    partials, states = (torch.full((1, 2, 3, 4, 2, size), torch.nan, device=device) for size in (64, 2))
    values: dict[str, Any] = {"q": q, "keys": keys, "values": cached, "key_scales": scale, "value_scales": scale}
    values |= {"partials": partials, "states": states, "out": out}
    values |= {"lengths": torch.tensor([300], dtype=torch.int32, device=device)}
    values |= {"counters": torch.zeros(2, dtype=torch.int32, device=device)}
    values |= strides("q", q, "text", "token", "head") | strides("out", out, "text", "token", "head")
    values |= strides("k", keys, "text", "head", "token") | strides("v", cached, "text", "head", "token")
    values |= {"tokens": 1, "group": 2, "splits": 3, "split_keys": 128, "kv_heads": 2, "texts": 1}
    values |= {"window": 0, "scale": 0.125, "soft_cap": 0.0}
    read = [x.double() / 32 if int8 else x.double() for x in (keys, cached)]
    arrays = (x[0].cpu().numpy() for x in (q.double().transpose(1, 2), *read))
    expected = reference.seen_attention(*arrays, 0.125, causal=True)
    found = []
    for _ in range(2):
        out.fill_(torch.nan)
        launcher.launch(name, values)
        found.append(_largest(out[0].transpose(0, 1), expected))
    return max(found)


class InterpretingDriver:
    """A device double: kernels are Triton's interpreted functions, addresses those of CPU tensors."""

    capability, most_shared_bytes = (8, 9), 101376
    _types = {"*fp16": torch.float16, "*fp32": torch.float32, "*i32": torch.int32}  # noqa: RUF012 -- never written

    def __init__(self, records: dict[str, KernelRecord]) -> None:
        self._records = records

    def load(self, cubin: bytes, name: str, symbol: str) -> KernelRecord:
        return self._records[name]

    def allow_shared(self, kernel: KernelRecord, shared_bytes: int) -> None:
        raise AssertionError("none of these asks for more")

    def launch(
        self,
        kernel: KernelRecord,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Any, ...],
        stream: Any,
    ) -> None:
        function = getattr(importlib.import_module(KERNELS[kernel.kernel].module), kernel.symbol)
        values = [
            at(argument.value, self._types[kind]) if kind.startswith("*") else argument.value
            for kind, argument in zip(kernel.signature.values(), arguments, strict=False)
        ]
        function[grid](*values, **kernel.constants)

    def synchronize(self) -> None:
        pass


def at(address: int, dtype: torch.dtype) -> torch.Tensor:
    """A tensor that begins there: Triton takes its address and its type, and nothing of its size."""
    return torch.frombuffer((ctypes.c_char * 16).from_address(address), dtype=dtype)


def main() -> None:
    from tests.gpu.test_launch import CUBIN, record_of

    variants = variants_of(chip((8, 9)))
    records = {variant.name: record_of(variant) for variant in variants.values()}
    with tempfile.TemporaryDirectory() as folder:
        for record in records.values():
            write_kernel(record, CUBIN, Path(folder))
        with Launcher(Path(folder), InterpretingDriver(records)) as launcher:
            found = errors(launcher, variants, "cpu")
    Path(sys.argv[1]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
