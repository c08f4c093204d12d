"""The library itself: what it asks for, that it is the same every time, and the kernels stepped in Python."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from edgecompress_kernels.cpu import blockwise
from edgecompress_kernels.cpu.build import Attention, Matmul, build
from edgecompress_kernels.cpu.compile import to_assembly
from edgecompress_kernels.cpu.ir import KernelError, cache_dir, forget, kernel_of, to_ir
from edgecompress_kernels.cpu.isa import CORTEX_A72, ISAS, X86_64_V3, X86_64_V4_VNNI, Isa
from numba import njit

from edgecompress.formats.cpu import host_arch, host_features
from edgecompress.targets import find_target, known_targets

pytestmark = pytest.mark.slow

STEPPED = """
import numpy as np
from edgecompress_kernels.cpu import attention, attention_int8, blockwise, encoder_attention, encoder_layer
from edgecompress_kernels.cpu import rows as row_kernels
from edgecompress_kernels.cpu.encoder_packing import pack_columns, pack_panels
from edgecompress_kernels.cpu.packing import pack_lanes, pack_weights
from edgecompress_kernels import reference

rng = np.random.default_rng(0)

def parameters(slots, values, kept=[]):
    found = np.zeros(len(slots), dtype=np.int64)
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            kept.append(value)
            value = value.ctypes.data
        found[slots.index(name)] = value
    return found

plain = lambda function: function
for bits, block, zero_points, signed in ((4, 32, True, False), (8, 64, False, False), (8, 64, True, True)):
    rows, n, k = 3, 20, 2 * block
    w = rng.integers(0, 256, (n, 2, block * bits // 8), dtype=np.uint8)
    s = rng.random((n, 2), dtype=np.float32)
    z = rng.integers(0, 1 << bits, (n, 2), dtype=np.uint8) if zero_points else None
    x, y = rng.standard_normal((rows, k)).astype(np.float32), np.zeros((rows, n), dtype=np.float32)
    given = {"x": x, "q": np.zeros((rows, k), np.int8), "x_scales": np.zeros((rows, 2), np.float32),
             "x_sums": np.zeros((rows, 2), np.int32), "weights": pack_weights(w, bits), "scales": pack_lanes(s),
             "y": y, "rows": rows, "outputs": n, "inputs": k, "tiles_per_part": 1, "columns": block}
    if z is not None:
        given["zeros"] = pack_lanes(z)
    p = parameters(blockwise.SLOTS, given)
    for part in range(2 * rows):
        blockwise.quantize_rows(block)(p.ctypes.data, part)
    for part in range(2):
        blockwise.multiply(bits, block, False, zero_points, signed, 8, plain)(p.ctypes.data, part)
    expected = reference.quantized_rows(x, block) @ reference.block_weights(w, s, z, bits).T
    assert np.abs(y - expected).max() < 1e-4 * np.abs(expected).max()

size, group, past, capacity = 64, 3, 530, 540
q, k, v = (rng.standard_normal((1, heads * size)).astype(np.float32) for heads in (group, 1, 1))
keys, values = (rng.standard_normal((capacity, size)).astype(np.float32) for _ in range(2))
y = np.zeros((group, size), dtype=np.float32)
p = parameters(attention.SLOTS, {
    "q_in": q, "k_in": k, "v_in": v, "past": np.array([past]), "positions": np.array([0]),
    "q": np.zeros((group, size), np.float32), "keys": keys, "values": values,
    "partials": np.zeros((group, 2, size + 16), np.float32), "y": y, "batch": 1, "tokens": 1, "kv_heads": 1,
    "group": group, "capacity": capacity, "window": -1,
    "scale": int(np.array([0.125, 0], np.float32).view(np.int64)[0]),
    "rows_per_part": group, "row_parts": 1, "splits": 2, "split_parts": 2})
attention.append(size, plain)(p.ctypes.data, 0)
for part in range(2):
    attention.attend(size, 8, plain)(p.ctypes.data, part)
attention.combine(size, plain)(p.ctypes.data, 0)
expected = reference.attention(q.reshape(group, 1, size), keys[None], values[None], past, 0.125)
assert np.abs(y - expected[:, 0]).max() < 1e-5

size = 80  # a panel of 64 channels and one of 16
q, k, v = (rng.standard_normal((1, heads * size)).astype(np.float32) for heads in (group, 1, 1))
k_scales, v_scales = (rng.random((1, size), dtype=np.float32) / 50 + 0.01 for _ in range(2))
keys, values = (rng.integers(-128, 128, (1, capacity, size), dtype=np.int8) for _ in range(2))
y, row = np.zeros((group, size), dtype=np.float32), attention_int8.query_bytes(size)
p = parameters(attention.SLOTS, {
    "q_in": q, "k_in": k, "v_in": v, "past": np.array([past]), "positions": np.array([0]),
    "q": np.zeros((group, row), np.int8), "keys": keys, "values": values,
    "partials": np.zeros((group, 2, size + 16), np.float32), "y": y, "batch": 1, "tokens": 1, "kv_heads": 1,
    "group": group, "capacity": capacity, "window": -1,
    "scale": int(np.array([0.125, 0], np.float32).view(np.int64)[0]),
    "rows_per_part": group, "row_parts": 1, "splits": 2, "split_parts": 2, "k_scales": k_scales, "v_scales": v_scales})
attention_int8.append(size, plain)(p.ctypes.data, 0)
for part in range(2):
    attention_int8.attend(size, plain)(p.ctypes.data, part)
attention_int8.combine(size, plain)(p.ctypes.data, 0)
assert np.array_equal(keys[:, past], reference.rounded_cache(k[:, None], k_scales)[:, 0])
assert np.array_equal(values[:, past], reference.rounded_cache(v[:, None], v_scales)[:, 0])
expected = reference.attention(q.reshape(group, 1, size), keys * k_scales, values * v_scales, past, 0.125)[:, 0]
assert np.abs(y - expected).max() < 2e-3 * np.abs(values * v_scales).max()  # its 64 weights a block in 15 bits
y *= 0  # and all splits by one part, joined as they come
p[[attention.SLOTS.index(name) for name in ("rows_per_part", "split_parts")]] = attention_int8.INT8_ROWS, 1
attention_int8.attend(size, plain)(p.ctypes.data, 0)
assert np.abs(y - expected).max() < 2e-3 * np.abs(values * v_scales).max()

x, other, gamma = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 48), (2, 48), 48))
y = np.zeros((2, 48), np.float32)
for kernel, wanted, given in (
    (row_kernels.add_rows, x + other, {"x": x, "other": other, "columns": 32}),
    (row_kernels.normalize_rows, reference.rms_norm(x, gamma, 0.5), {"x": x, "other": gamma, "columns": 48}),
    (row_kernels.gate_rows, reference.gated(np.hstack([x, other]), 1.5), {"x": np.hstack([x, other]), "columns": 32}),
):
    p = parameters(row_kernels.SLOTS, given | {"y": y, "width": 48})
    constant = {"normalize_rows": 0.5, "gate_rows": 1.5}.get(kernel.__name__, 0)
    p.view(np.float32)[2 * row_kernels.SLOTS.index("constant")] = constant
    for part in range(2 * -(-48 // given["columns"])):
        kernel()(p.ctypes.data, part)
    assert np.abs(y - wanted).max() < 1e-6 * np.abs(wanted).max(), kernel.__name__

kind = encoder_layer.Encoder(hidden=32, heads=1, feed_forward=48)
x, starts, layer, arrays = rng.standard_normal((18, 32)).astype(np.float32), np.array([0, 3, 3, 18]), {}, {}
for part, inputs, outputs in (("qkv", 32, 96), ("out", 32, 32), ("up", 32, 48), ("down", 48, 32)):
    w = rng.integers(-127, 128, (inputs, outputs), dtype=np.int8)
    s, b = rng.random(outputs).astype(np.float32) / 300, rng.standard_normal(outputs).astype(np.float32)
    layer[part] = {"weights": w, "scales": s, "bias": b, "smooth": 1 + rng.random(inputs).astype(np.float32)}
    arrays |= {f"{part}_weights": pack_panels(w), f"{part}_columns": pack_columns(w, s, b)}
    arrays[f"{part}_smooth"] = layer[part]["smooth"]
for norm in ("norm1", "norm2"):
    layer[norm] = rng.random(32).astype(np.float32), rng.standard_normal(32).astype(np.float32)
    arrays |= {f"{norm}_gamma": layer[norm][0], f"{norm}_beta": layer[norm][1]}
block = 2 * encoder_attention.block_bytes(32)
read = {"q": np.zeros((26, 32), np.int8), "q_scales": np.zeros(26, np.float32), "q_sums": np.zeros(26, np.int32),
        "keys": np.zeros(block, np.uint8), "values": np.zeros(block, np.uint8)}
scale, epsilon = (int(np.array([n, 0], np.float32).view(np.int64)[0]) for n in (32**-0.5, 1e-5))
shared = {"tokens": 18, "rows_per_part": 16, "scale": scale, "epsilon1": epsilon, "epsilon2": epsilon}
first = parameters(encoder_layer.SLOTS, shared | arrays | {"x": x} | {f"next_{n}": a for n, a in read.items()})
del arrays["qkv_weights"]
exact, near = (reference.encoder_layer(x, layer, 1, starts, 32**-0.5, 1e-5, r) for r in (False, True))
found = []
for vectors, matrices in ((8, False), (32, False), (32, True)):
    y = np.full((18, 32), np.nan, np.float32)
    p = parameters(encoder_layer.SLOTS, shared | arrays | read | {"x": x, "y": y, "starts": starts})
    kernels = (make(kind, vectors, matrices, plain) for make in (encoder_layer.project_first, encoder_layer.layer))
    for kernel, given in zip(kernels, (first, p)):
        for part in range(2):
            kernel(given.ctypes.data, part)
    found.append(y)
assert all(np.array_equal(found[0], y) for y in found)
assert np.abs(found[0] - near).max() < 0.5 * np.abs(near - exact).max()
print("as expected")
"""


def test_kernels_can_be_stepped_in_python() -> None:
    done = subprocess.run(
        [sys.executable, "-c", STEPPED], env={**os.environ, "NUMBA_DISABLE_JIT": "1"}, capture_output=True, text=True
    )
    assert done.stdout.strip() == "as expected", done.stderr[-2000:]


SMALL = (
    [Matmul(bits=4, block=32), Matmul(bits=8, block=32)],
    [Attention(head_size=16), Attention(head_size=80, int8=True)],
)


@pytest.fixture(scope="session", params=ISAS.values(), ids=ISAS)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Isa, Path]:
    """An instruction set and a small library for it."""
    path = tmp_path_factory.mktemp("built") / "kernels.so"
    path.write_bytes(build(*SMALL, request.param))
    return request.param, path


def test_nothing_is_asked_for_from_outside_but_memory_functions(built: tuple[Isa, Path]) -> None:
    done = subprocess.run(["nm", "-D", str(built[1])], capture_output=True, text=True, check=True)
    symbols = [line.split() for line in done.stdout.splitlines()]
    assert {s[-1] for s in symbols if s[-2] == "U"} <= {"memset", "memcpy", "memmove"}
    assert [s[-1] for s in symbols if s[-2] == "T"] == ["RegisterCustomOps"]


def test_the_same_input_gives_the_same_bytes(
    built: tuple[Isa, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    isa, path = built
    if isa not in (CORTEX_A72, X86_64_V3):
        pytest.skip("two are enough to tell: what numba makes is the same for all")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("NUMBA_OPT", "3")  # and this process has its own use of numba
    assert njit(lambda x: x + 1)(1) == 2
    forget()
    assert build(*SMALL, isa) == path.read_bytes()
    (kept,) = cache_dir().glob("*.so.z")
    assert len(list(cache_dir().glob("*.ll.z"))) > 8
    written = {each: each.stat().st_mtime_ns for each in cache_dir().iterdir()}
    assert build(*SMALL, isa) == path.read_bytes()
    kept.write_bytes(kept.read_bytes()[:-9])
    forget()  # the library is damaged, so it is built again, of the IR that was kept
    assert build(*SMALL, isa) == path.read_bytes()
    changed = {each for each in cache_dir().iterdir() if written.get(each) != each.stat().st_mtime_ns}
    assert changed == {kept}


class Register:
    """Calls a library's entry as ONNX Runtime does, with a table of functions of our own."""

    def __init__(self, path: Path, oldest_only: bool) -> None:
        self.said = ""
        create = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p)(self.create)
        table = (ctypes.c_void_p * 300)()
        table[0] = ctypes.cast(create, ctypes.c_void_p).value
        address = ctypes.addressof(table)
        get = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_uint32)(lambda v: None if oldest_only and v > 1 else address)
        base = (ctypes.c_void_p * 2)(ctypes.cast(get, ctypes.c_void_p).value, None)
        entry = ctypes.CDLL(str(path)).RegisterCustomOps
        entry.restype, entry.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_void_p]
        self.status = entry(None, ctypes.addressof(base))

    def create(self, _code: int, message: bytes) -> int:
        self.said = message.decode()
        return 1


def test_an_old_onnxruntime_is_told_so(library: Path) -> None:
    found = Register(library, oldest_only=True)
    assert found.status == 1
    assert "need ONNX Runtime 1.18 or later" in found.said


def test_a_cpu_that_lacks_a_feature_is_told_so(tmp_path: Path) -> None:
    if host_arch() != "x86_64" or not set(X86_64_V3.needs) <= host_features():
        pytest.skip("the library that lacks one is built for x86-64")
    path = tmp_path / "kernels.so"
    path.write_bytes(build([], [Attention(head_size=16)], replace(X86_64_V3, needs=(*X86_64_V3.needs, "amx_fp16"))))
    assert Register(path, oldest_only=False).said == (
        "edgecompress: these kernels are for x86-64-v3, and this CPU lacks amx_fp16"
    )


@pytest.mark.parametrize("isa", ISAS.values(), ids=ISAS)
def test_a_target_that_names_an_instruction_set_has_it(isa: Isa) -> None:
    naming = [t for t in map(find_target, known_targets()) if t.kernel_isa == isa.name]
    assert naming
    for target in naming:
        assert target.arch == isa.arch
        assert set(isa.needs) <= set(target.isa)


def with_exceptions() -> Callable[[int, int], None]:
    def kernel(p: int, part: int) -> None:
        if p > part:
            raise ValueError("no device has exceptions")

    return kernel


def with_objects(size: int) -> Callable[[int, int], None]:
    def kernel(p: int, part: int) -> None:
        os.remove(str(p))

    return kernel


def test_a_kernel_that_needs_python_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(KernelError, match="which devices do not have"):
        to_assembly({"kernel": kernel_of(with_exceptions)}, X86_64_V4_VNNI)
    with pytest.raises(KernelError, match=r"numba cannot compile with_objects\(3,\): .*"):
        to_ir(kernel_of(with_objects, 3))
    assert len(list(cache_dir().iterdir())) == 1, "what was not compiled is not kept"


def test_kernels_are_compiled_together_and_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    forget()
    sizes = (32, 64, 128)
    kernels = [kernel_of(blockwise.quantize_rows, size) for size in sizes]
    together = to_assembly({f"quantize_{n}": kernel for n, kernel in zip(sizes, kernels, strict=True)}, X86_64_V3)
    assert len(list(cache_dir().iterdir())) == 3
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another"))
    forget()
    for kernel in reversed(kernels):
        to_ir(kernel)
    assert together == to_assembly(
        {f"quantize_{n}": kernel for n, kernel in zip(sizes, kernels, strict=True)}, X86_64_V3
    )


def test_a_broken_cache_costs_time_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    kernel = kernel_of(blockwise.quantize_rows, 32)
    forget()
    text = to_ir(kernel)[0][1]
    (kept,) = cache_dir().iterdir()
    assert kept.suffixes == [".ll", ".z"]
    whole = kept.read_bytes()
    for broken in (b"", whole[:-20], b"no such thing"):
        kept.write_bytes(broken)
        forget()
        assert to_ir(kernel)[0][1].count("define") == text.count("define")  # numba numbers its names anew
        assert zlib.decompress(kept.read_bytes()).decode().startswith(to_ir(kernel)[0][0])
    cache_dir().rename(tmp_path / "gone")
    cache_dir().write_text("not a folder")
    forget()
    assert to_ir(kernel)[0][1].count("define") == text.count("define")
