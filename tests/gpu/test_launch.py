"""A launch without Triton: what reaches the driver, in which order, for how long, and what is refused before."""

from __future__ import annotations

import ctypes
import dataclasses
import gc
import hashlib
import importlib.util
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from edgecompress_kernels.gpu import record
from edgecompress_kernels.gpu.chips import chip
from edgecompress_kernels.gpu.launch import LIBRARY, CudaDriver, Launcher, LaunchError, require_driver
from edgecompress_kernels.gpu.record import KernelRecord, RecordError, read_kernel, write_kernel
from edgecompress_kernels.gpu.variants import Variant, decode_variant, norm_variant, prefill_variant

CHIP = chip((8, 9))
PREFILL = prefill_variant(CHIP, "float16", 64, causal=True)
DECODE = decode_variant(CHIP, "float16", 64, cache="int8")
NORM = norm_variant(CHIP, "float16", 512, layer=False)
CUBIN = b"not really a cubin"


class FakeKernel:
    """An object that a weak reference can watch."""


class FakeDriver:
    """A device that writes down what it is told."""

    def __init__(self, capability: tuple[int, int] = (8, 9), most_shared_bytes: int = 101376) -> None:
        self.capability, self.most_shared_bytes = capability, most_shared_bytes
        self.calls: list[tuple[Any, ...]] = []
        self.alive: list[weakref.ref[FakeKernel]] = []
        self.alive_at_synchronize: list[bool] = []
        self.fails = False

    def load(self, cubin: bytes, name: str, symbol: str) -> FakeKernel:
        self.calls.append(("load", cubin, name, symbol))
        kernel = FakeKernel()
        self.alive.append(weakref.ref(kernel))
        return kernel

    def allow_shared(self, kernel: FakeKernel, shared_bytes: int) -> None:
        self.calls.append(("allow", shared_bytes))

    def launch(
        self,
        kernel: FakeKernel,
        grid: tuple[int, int, int],
        threads: int,
        shared_bytes: int,
        arguments: tuple[Any, ...],
        stream: Any,
    ) -> None:
        assert kernel is self.alive[-1]() or any(kernel is k() for k in self.alive)
        self.calls.append(("launch", grid, threads, shared_bytes, arguments, stream))

    def synchronize(self) -> None:
        self.calls.append(("synchronize",))
        self.alive_at_synchronize = [kernel() is not None for kernel in self.alive]
        if self.fails:
            raise RuntimeError("the device is gone")


def record_of(variant: Variant, shared_bytes: int = 1024, **changes: Any) -> KernelRecord:
    """As ``aot`` writes it, but for what only a compiler knows."""
    made = record.record_of(
        variant,
        symbol=variant.kernel.function,
        num_warps=variant.num_warps,
        shared_bytes=shared_bytes,
        registers=100,
        stack_bytes=0,
        scratch_pointers=2,
        triton_version="3.9.0",
        maps={
            name: {"box": [1, rows, 64], "swizzle": 3, "element_bytes": 2} for name, (rows, _) in variant.boxes.items()
        },
        sha256=hashlib.sha256(CUBIN).hexdigest(),
        verified="",
    )
    return dataclasses.replace(made, **changes)


def values_of(variant: Variant, **changes: Any) -> dict[str, Any]:
    """A different value for every parameter, so that none can stand in another's place."""
    values: dict[str, Any] = {}
    for i, (name, kind) in enumerate(variant.signature.items()):
        values[name] = 4096 * (i + 1) + (2**33 if kind.startswith("*") else 0)
        if kind == "fp32":
            values[name] = i + 0.5
        elif name not in variant.aligned:
            values[name] = i + 1
    values |= {name: least for name, (least, _) in variant.ranges.items()}
    values |= {name: 3 for name in variant.kernel.sizes}
    return values | changes


@pytest.fixture
def launcher(tmp_path: Path) -> tuple[Launcher, FakeDriver]:
    for variant in (PREFILL, DECODE, NORM):
        write_kernel(record_of(variant), CUBIN, tmp_path)
    driver = FakeDriver()
    return Launcher(tmp_path, driver), driver


@pytest.mark.parametrize("variant", [PREFILL, DECODE, NORM], ids=lambda variant: variant.kernel.name)
def test_arguments_are_in_the_kernels_order_and_types(variant: Variant, launcher: tuple[Launcher, FakeDriver]) -> None:
    values = values_of(variant)
    shuffled = dict(reversed(values.items()))
    launcher[0].launch(variant.name, shuffled, stream="a stream")
    _, _, threads, shared_bytes, arguments, stream = launcher[1].calls[-1]
    assert (threads, shared_bytes, stream) == (32 * variant.num_warps, 1024, "a stream")
    types = {"i32": ctypes.c_int32, "fp32": ctypes.c_float}
    own = arguments[: len(variant.signature)]
    for (name, kind), argument in zip(variant.signature.items(), own, strict=True):
        assert type(argument) is types.get(kind, ctypes.c_uint64), name
        assert argument.value == values[name], name
    hidden = arguments[len(variant.signature) :]
    assert [(type(argument), argument.value) for argument in hidden] == [(ctypes.c_uint64, 0)] * 2


@pytest.mark.parametrize(
    ("variant", "sizes", "grid"),
    [
        (PREFILL, {"longest": 257, "heads": 12, "texts": 5}, (3, 12, 5)),
        (PREFILL, {"longest": 256, "heads": 1, "texts": 1}, (2, 1, 1)),
        (DECODE, {"splits": 7, "tokens": 3, "group": 6, "kv_heads": 2, "texts": 4}, (14, 2, 4)),
        (NORM, {"rows": 9}, (3, 1, 1)),
    ],
)
def test_the_grid_follows_the_sizes(
    variant: Variant, sizes: dict[str, int], grid: tuple[int, ...], launcher: tuple[Launcher, FakeDriver]
) -> None:
    assert PREFILL.constants["BLOCK_M"] == 128
    assert (DECODE.constants["BLOCK_M"], NORM.constants["ROWS"]) == (16, 4)
    launcher[0].launch(variant.name, values_of(variant, **sizes))
    assert launcher[1].calls[-1][1] == grid


def test_no_blocks_are_no_launch(launcher: tuple[Launcher, FakeDriver]) -> None:
    launcher[0].launch(PREFILL.name, values_of(PREFILL, longest=0))
    assert [call[0] for call in launcher[1].calls] == ["load"]


@pytest.mark.parametrize(("shared_bytes", "asked"), [(49152, False), (49153, True), (101376, True)])
def test_more_shared_memory_is_asked_for_once_and_before(tmp_path: Path, shared_bytes: int, asked: bool) -> None:
    write_kernel(record_of(PREFILL, shared_bytes), CUBIN, tmp_path)
    driver = FakeDriver()
    with Launcher(tmp_path, driver) as launcher:
        launcher.launch(PREFILL.name, values_of(PREFILL))
        launcher.launch(PREFILL.name, values_of(PREFILL))
    expected = ["load", *["allow"] * asked, "launch", "launch", "synchronize"]
    assert [call[0] for call in driver.calls] == expected
    assert driver.calls[0] == ("load", CUBIN, PREFILL.name, "prefill_kernel")
    assert ("allow", shared_bytes) in driver.calls or not asked


def test_kernels_live_until_the_device_has_finished(launcher: tuple[Launcher, FakeDriver]) -> None:
    own, driver = launcher
    own.launch(PREFILL.name, values_of(PREFILL))
    own.launch(NORM.name, values_of(NORM))
    gc.collect()
    assert all(kernel() is not None for kernel in driver.alive)
    own.close()
    gc.collect()
    assert driver.alive_at_synchronize == [True, True]
    assert [kernel() for kernel in driver.alive] == [None, None]
    own.close()
    assert [call[0] for call in driver.calls].count("synchronize") == 1
    with pytest.raises(LaunchError, match="its launcher was closed"):
        own.launch(PREFILL.name, values_of(PREFILL))


def test_kernels_are_let_go_even_if_the_device_fails(launcher: tuple[Launcher, FakeDriver]) -> None:
    own, driver = launcher
    own.launch(PREFILL.name, values_of(PREFILL))
    driver.fails = True
    with pytest.raises(RuntimeError, match="the device is gone"):
        own.close()
    gc.collect()
    assert driver.alive[0]() is None


class OnDevice:
    def __init__(self, address: int) -> None:
        self.__cuda_array_interface__ = {"data": (address, False)}


class LikeTorch:
    def data_ptr(self) -> int:
        return 8192


def test_arrays_tell_their_own_address(launcher: tuple[Launcher, FakeDriver]) -> None:
    launcher[0].launch(NORM.name, values_of(NORM, x=OnDevice(4096), residual=LikeTorch()))
    assert [argument.value for argument in launcher[1].calls[-1][4][:2]] == [4096, 8192]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": 8}, "x of 'add-rms-norm-float16-h512': its address 8 is not a multiple of 16"),
        ({"x": 0}, "x of .* is not an address"),
        ({"x": b"bytes"}, "a bytes has no device address"),
        ({"x_row": 100}, "x_row of .* its value 100 is not a multiple of 16"),
        ({"rows": -1}, "rows of .* is -1; it must be an integer from 0"),
        ({"rows": 2**31}, "must be an integer from 0 to"),
        ({"rows": 1.0}, "must be an integer from 0 to"),
        ({"columns": 528}, "columns of .* is 528; this kernel is for 16 to 512"),
        ({"epsilon": float("nan")}, "epsilon of .* is nan; it must be finite"),
        ({"width": 1}, "has unknown width"),
    ],
)
def test_a_wrong_value_is_refused_before_a_launch(
    change: dict[str, Any], message: str, launcher: tuple[Launcher, FakeDriver]
) -> None:
    with pytest.raises(LaunchError, match=message):
        launcher[0].launch(NORM.name, values_of(NORM, **change))
    assert "launch" not in [call[0] for call in launcher[1].calls]


def test_a_missing_value_is_named(launcher: tuple[Launcher, FakeDriver]) -> None:
    values = values_of(PREFILL)
    del values["scale"], values["texts"]
    with pytest.raises(LaunchError, match=r"lacks scale, texts$"):
        launcher[0].launch(PREFILL.name, values)


def test_a_window_goes_only_to_a_kernel_that_has_one(launcher: tuple[Launcher, FakeDriver]) -> None:
    with pytest.raises(LaunchError, match=r"window of .* is 5; this kernel is for 0 to 0"):
        launcher[0].launch(PREFILL.name, values_of(PREFILL, window=5))


def test_more_blocks_than_cuda_takes_are_refused(launcher: tuple[Launcher, FakeDriver]) -> None:
    with pytest.raises(LaunchError, match="would be 65536 blocks along z"):
        launcher[0].launch(PREFILL.name, values_of(PREFILL, texts=65536))


@pytest.mark.parametrize(
    ("made_for", "here", "runs"),
    [
        ((8, 6), (8, 6), True),
        ((8, 6), (8, 9), True),
        ((8, 9), (8, 6), False),
        ((9, 0), (9, 0), True),
        ((10, 0), (10, 3), False),
        ((8, 9), (9, 0), False),
    ],
)
def test_a_cubin_runs_where_its_capability_lets_it(
    made_for: tuple[int, int], here: tuple[int, int], runs: bool, tmp_path: Path
) -> None:
    variant = prefill_variant(chip(made_for), "float16", 64, causal=True)
    write_kernel(record_of(variant), CUBIN, tmp_path)
    driver = FakeDriver(capability=here)
    if runs:
        Launcher(tmp_path, driver).launch(variant.name, values_of(variant))
        assert driver.calls[-1][0] == "launch"
    else:
        with pytest.raises(LaunchError, match=rf"--capability {here[0]}\.{here[1]}"):
            Launcher(tmp_path, driver).launch(variant.name, values_of(variant))
        assert driver.calls == []


def test_a_kernel_that_needs_more_shared_memory_than_there_is_is_refused(tmp_path: Path) -> None:
    write_kernel(record_of(PREFILL, 70000), CUBIN, tmp_path)
    with pytest.raises(
        LaunchError, match="needs 70000 bytes of shared memory, but this device's limit is 65536 per block"
    ):
        Launcher(tmp_path, FakeDriver(most_shared_bytes=65536)).launch(PREFILL.name, values_of(PREFILL))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.with_suffix(".cubin").write_bytes(b"another"), "its sha256 differs"),
        (lambda path: path.with_suffix(".cubin").unlink(), "cubin does not exist: compile it"),
        (lambda path: path.unlink(), "json does not exist: compile it"),
        (lambda path: path.write_text("{"), "is not valid JSON"),
        (lambda path: path.write_text("{}"), "does not have schema 2"),
        (lambda path: path.write_text('{"schema": 2}'), "has missing or unknown fields: aligned"),
    ],
)
def test_files_that_do_not_belong_together_are_refused(
    spoil: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    write_kernel(record_of(PREFILL), CUBIN, tmp_path)
    path = tmp_path / f"{PREFILL.name}.json"
    assert read_kernel(path) == (record_of(PREFILL), CUBIN)
    spoil(path)
    with pytest.raises(RecordError, match=message):
        read_kernel(path)


def test_a_missing_driver_is_named() -> None:
    def load(name: str) -> object:
        raise OSError(f"{name}: cannot open shared object file")

    with pytest.raises(LaunchError, match=r"^libcuda\.so\.1 cannot be loaded.*NVIDIA's driver"):
        require_driver(load)
    asked = []
    require_driver(asked.append)
    assert asked == [LIBRARY]


def test_a_device_is_refused_where_there_is_no_driver() -> None:
    """In a process of its own, and in bounded time: without the probe some calls hang."""
    try:
        ctypes.CDLL(LIBRARY)
    except OSError:
        pass
    else:
        pytest.skip("there is a CUDA driver here")
    with pytest.raises(LaunchError, match=r"libcuda\.so\.1"):
        CudaDriver()


def test_a_launcher_imports_neither_triton_nor_torch() -> None:
    source = (
        "import sys, edgecompress_kernels.gpu.launch\n"
        "print(sorted({'triton', 'torch', 'numpy', 'cuda'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-core is not installed")
def test_cuda_core_passes_our_arguments_as_they_are() -> None:
    """Its own packing, which needs no driver: the bytes behind each pointer that a launch is given."""
    from cuda.core import LaunchConfig
    from cuda.core._kernel_arg_handler import ParamHolder

    arguments = (ctypes.c_uint64(2**40 + 16), ctypes.c_int32(-7), ctypes.c_float(1.5), ctypes.c_uint64(0))
    holder = ParamHolder(arguments)
    pointers = ctypes.cast(holder.ptr, ctypes.POINTER(ctypes.c_void_p))
    for i, argument in enumerate(arguments):
        assert ctypes.string_at(pointers[i], ctypes.sizeof(argument)) == bytes(argument)
    config = LaunchConfig(grid=(3, 2, 1), block=(128, 1, 1), shmem_size=1024)
    assert (config.grid, config.block, config.shmem_size) == ((3, 2, 1), (128, 1, 1), 1024)
