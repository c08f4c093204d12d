"""Kernels compiled ahead of time without a GPU: what is written, what is refused, and whose figures are told."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from edgecompress_kernels.gpu.chips import CHIPS, HEAD_SIZES, Chip, chip, nearest, splits_for, width_of
from edgecompress_kernels.gpu.cubin import CubinError, cubin_facts
from edgecompress_kernels.gpu.record import read_kernel
from edgecompress_kernels.gpu.variants import (
    KERNELS,
    Kernel,
    Variant,
    decode_variant,
    hopper_variant,
    norm_variant,
    prefill_variant,
    variants,
)

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
NO_TRITON = importlib.util.find_spec("triton") is None
needs_triton = pytest.mark.skipif(NO_TRITON, reason="triton is not installed: pip install 'edgecompress[triton]'")


@pytest.fixture(autouse=True)
def fresh_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that was compiled before is taken from Triton's cache."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))


def test_variants_are_named_apart_and_have_fp8_only_where_there_is() -> None:
    for of in CHIPS.values():
        names = [variant.name for variant in variants(of)]
        assert len(set(names)) == len(names)
        assert any("fp8" in name for name in names) == of.fp8
        assert of.fp8 == (of.capability >= (8, 9))
        assert {width_of(head) for head in HEAD_SIZES} <= set(of.prefill) & set(of.decode)


def test_fp8_is_refused_below_8_9() -> None:
    with pytest.raises(ValueError, match=r"capability 8\.6 has no fp8 .* int8"):
        decode_variant(chip((8, 6)), "float16", 64, cache="fp8")


def test_an_unknown_chip_is_refused_and_has_a_nearest() -> None:
    with pytest.raises(ValueError, match=r"no kernel for compute capability 7\.5; there are kernels for 8\.0, 8\.6"):
        chip((7, 5))
    assert nearest((12, 1)).capability == (12, 0)
    assert nearest((8, 9)).capability == (8, 9)
    with pytest.raises(ValueError, match=r"7\.5 is older than 8\.0"):
        nearest((7, 5))


@pytest.mark.parametrize("longest", [0, 1, 255, 256, 4097, 131072])
@pytest.mark.parametrize("programs", [1, 30, 500])
def test_splits_cover_every_key_and_none_is_empty(longest: int, programs: int) -> None:
    splits, keys = splits_for(longest, programs, 84, 64)
    assert keys % 64 == 0
    assert splits * keys >= longest
    assert (splits - 1) * keys < max(1, longest)
    assert splits == 1 or keys >= 256


def test_splits_fill_the_device_in_whole_rounds() -> None:
    assert splits_for(8192, 64, 132, 64) == (2, 4096)  # 128 programs on 132 slots; 192 would take two rounds
    assert splits_for(32768, 8, 132, 64)[0] == 16
    assert splits_for(8192, 8, 132, 64)[0] == 8  # 16 would fill it, and take longer to join
    assert splits_for(8192, 1024, 132, 128)[0] == 1  # enough without any


@needs_triton
@pytest.mark.parametrize("kernel", KERNELS.values(), ids=lambda kernel: kernel.name)
def test_the_tables_tell_the_functions_parameters(kernel: Kernel) -> None:
    names = getattr(importlib.import_module(kernel.module), kernel.function).arg_names
    assert names[: len(kernel.parameters)] == list(kernel.parameters)
    made = {v.kernel.name: v for of in ((8, 9), (9, 0)) for v in variants(chip(of))}[kernel.name]
    assert names[len(kernel.parameters) :] == list(made.constants)


@needs_triton
@pytest.mark.parametrize(
    ("capability", "make"),
    [
        ((8, 7), lambda of: decode_variant(of, "bfloat16", 80, cache="int8")),
        ((8, 9), lambda of: decode_variant(of, "float16", 64, cache="fp8")),
        ((9, 0), lambda of: prefill_variant(of, "bfloat16", 64, causal=True, window=True)),
        ((9, 0), lambda of: hopper_variant(of, "bfloat16", 80, causal=True)),
        ((10, 0), lambda of: decode_variant(of, "float16", 128, cache="int8")),
        ((12, 0), lambda of: norm_variant(of, "bfloat16", 2048, layer=True)),
    ],
    ids=["8.7", "8.9", "9.0", "9.0-hopper", "10.0", "12.0"],
)
def test_compiles_without_a_gpu_and_passes_the_lint(
    capability: tuple[int, int], make: Callable[[Chip], Variant]
) -> None:
    from edgecompress_kernels.gpu.aot import compile_variant, lint

    of = chip(capability)
    record, cubin = compile_variant(make(of))
    assert lint(record, of) == []
    assert record.symbol == KERNELS[record.kernel].function
    assert record.capability == of.name
    assert 16 < record.registers <= 255
    assert b"/" + b"edgecompress" not in cubin  # no path of the machine that compiled it
    assert str(ROOT).encode() not in cubin


@needs_triton
def test_a_spill_is_read_as_the_compiler_tells_it_and_refused(tmp_path: Path) -> None:
    from edgecompress_kernels.gpu.aot import compile_variant, lint
    from triton.backends.nvidia.compiler import get_ptxas

    of = chip((8, 9))
    too_few_warps = dataclasses.replace(norm_variant(of, "float16", 8192, layer=True), num_warps=1)
    record, _ = compile_variant(too_few_warps)
    (ptx,) = (tmp_path / "triton").rglob("add_norm_kernel.ptx")
    command = [
        get_ptxas(89).path,
        "-v",
        "--regAllocOptLevel=2",
        "--gpu-name=sm_89",
        str(ptx),
        "-o",
        str(tmp_path / "o"),
    ]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    (stack,), (registers,) = re.findall(r"(\d+) bytes stack frame", said), re.findall(r"Used (\d+) registers", said)
    assert (record.stack_bytes, record.registers) == (int(stack), int(registers))
    assert record.stack_bytes > 0
    assert any("spills" in wrong for wrong in lint(record, of))


@needs_triton
def test_the_lint_names_what_does_not_fit() -> None:
    from edgecompress_kernels.gpu.aot import compile_variant, lint

    of = chip((8, 6))
    record, _ = compile_variant(norm_variant(of, "float16", 512, layer=False))
    assert lint(record, of) == []
    wrong = lint(dataclasses.replace(record, shared_bytes=of.shared_bytes + 1), of)
    assert wrong == ["needs 101377 bytes of shared memory, but a block has at most 101376"]
    wrong = lint(dataclasses.replace(record, registers=255, num_warps=16), of)
    assert wrong == ["needs 255 registers in 512 threads, more than a block has"]


@needs_triton
def test_the_command_writes_the_same_bytes_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgecompress_kernels.gpu.aot import main

    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        monkeypatch.setenv("TRITON_CACHE_DIR", str(folder / "cache"))
        assert main([str(folder), "--capability", "8.9", "--only", "add-rms-norm-float16-h512"]) == 0
        said = capsys.readouterr().out
        assert "1 kernels" in said
        assert "not yet run on a GPU" in said
    name = "sm_89/add-rms-norm-float16-h512"
    for suffix in (".cubin", ".json"):
        first, second = ((folder / (name + suffix)).read_bytes() for folder in folders)
        assert first == second
    record, cubin = read_kernel(folders[0] / f"{name}.json")
    facts = cubin_facts(cubin)
    assert (facts.kernel, facts.registers, facts.stack_bytes) == (record.symbol, record.registers, 0)


@needs_triton
def test_the_command_says_what_it_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from edgecompress_kernels.gpu.aot import main

    for text, message in (("7.5", "there are kernels for 8.0"), ("new", "write it as 8.9")):
        assert main([str(tmp_path), "--capability", text]) == 2
        assert message in capsys.readouterr().err
    assert main([str(tmp_path), "--capability", "8.9", "--only", "nothing"]) == 3
    assert "no variant's name contains 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "bytes_", [b"", b"\x7fELF\x02" + bytes(80), b"\x7fELF\x02" + bytes(13) + b"\xbe\x00" + bytes(60)]
)
def test_what_is_no_cubin_is_refused(bytes_: bytes) -> None:
    with pytest.raises(CubinError):
        cubin_facts(bytes_)
