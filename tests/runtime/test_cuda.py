"""The CUDA device over a double of NVIDIA's bindings, and every name that it uses held against the real ones."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from edgecompress.errors import HostError
from edgecompress.runtime.cache import CacheTensor
from edgecompress.runtime.cuda import driver
from edgecompress.runtime.cuda.device import DeviceMemoryError
from edgecompress.runtime.cuda.driver import CudaDevice, list_gpus
from edgecompress.runtime.cuda.memory import DeviceBuffer, PinnedBuffer, Staging
from edgecompress.runtime.device_cache import DeviceCache
from tests.runtime.fake_cuda import CUresult, FakeCuda

RTX = ("NVIDIA GeForce RTX 4090", (8, 9))


def opened(memory: int = 1 << 20) -> tuple[FakeCuda, CudaDevice]:
    cuda = FakeCuda(RTX, ("Another", (12, 0)), memory=memory)
    return cuda, CudaDevice(cuda, 0)


def test_gpus_are_told_apart() -> None:
    first, second = list_gpus(FakeCuda(RTX, ("Another", (12, 0)), memory=7))
    assert (first.name, first.compute_capability, first.memory_bytes) == (*RTX, 7)
    assert (second.name, second.compute_capability) == ("Another", (12, 0))


def test_copies_are_done_when_the_stream_is_waited_for() -> None:
    cuda, device = opened()
    stream, host, own = device.make_stream(), PinnedBuffer(device, 64), DeviceBuffer(device, 64)
    given = host.array((16,), np.dtype(np.int32))
    given[...] = np.arange(16)
    device.upload(own.address, host.address, 64, stream)
    assert cuda.bytes_at(own.address, 4).tolist() == [0xA5] * 4, "not yet"
    device.synchronize(stream)
    given[...] = 0
    device.download(host.address, own.address, 64, stream)
    device.synchronize(stream)
    assert given.tolist() == list(range(16))
    own.close()
    own.close()
    with pytest.raises(AssertionError, match="in no allocation that is alive"):
        device.upload(own.address, host.address, 64, stream)
    device.free_stream(stream)
    del host
    assert cuda.held == {"pinned": 1}, "an array over pinned memory keeps it"
    del given
    assert cuda.held == {}


def test_a_graph_does_again_what_it_was_shown() -> None:
    cuda, device = opened()
    stream, host, own = device.make_stream(), PinnedBuffer(device, 4), DeviceBuffer(device, 4)
    value = host.array((1,), np.dtype(np.int32))
    device.begin_capture(stream)
    device.upload(own.address, host.address, 4, stream)
    graph = device.end_capture(stream)
    device.synchronize(stream)
    assert cuda.bytes_at(own.address, 4).tolist() == [0xA5] * 4, "shown, not done"
    for number in (1, 2):
        value[0] = number
        device.launch(graph, stream)
        device.synchronize(stream)
        assert cuda.bytes_at(own.address, 4).view(np.int32)[0] == number
    device.free_graph(graph)
    assert "graphs" not in cuda.held


def test_errors_have_the_drivers_name() -> None:
    cuda, device = opened(memory=100)
    with pytest.raises(DeviceMemoryError, match="the GPU is out of memory") as caught:
        device.allocate(101)
    assert caught.value.exit_code == 3
    cuda.cuStreamSynchronize = lambda stream: (CUresult.CUDA_ERROR_ILLEGAL_ADDRESS,)  # type: ignore[method-assign]
    with pytest.raises(HostError, match="the CUDA driver failed: CUDA_ERROR_ILLEGAL_ADDRESS"):
        device.synchronize(device.make_stream())


def test_buffers_grow_and_the_old_ones_are_freed() -> None:
    cuda, device = opened()
    staging = Staging(device)
    host, own = staging.require(10)
    assert staging.require(5) == (host, own)
    del host, own
    assert staging.require(11)[1].size == 22
    assert cuda.held == {"device": 1, "pinned": 1}
    cuda.most_pinned = 100
    with pytest.raises(DeviceMemoryError):
        staging.require(60)
    del staging
    assert cuda.held == {}


def tensors() -> list[CacheTensor]:
    half = np.dtype(np.float16)
    names = ("key", "value")
    return [
        CacheTensor(past=f"past_key_values.0.{n}", present=f"present.0.{n}", heads=2, head_size=4, dtype=half)
        for n in names
    ]


def content(cuda: FakeCuda, cache: DeviceCache, index: int) -> npt.NDArray[np.float16]:
    raw = cuda.bytes_at(cache.buffers[index].address, cache.bytes // 2).view(np.float16)
    return raw.reshape(3, 2, cache.capacity_tokens, 4)


def test_a_cache_grows_moves_and_is_freed() -> None:
    cuda, device = opened()
    cache = DeviceCache(device, tensors(), 3, 5, grows=True)
    assert cache.bytes == 3 * 5 * 2 * 2 * 4 * 2

    assert not content(cuda, cache, 0).any(), "what lies behind a row's end must be finite"
    rng = np.random.default_rng(0)
    for index in (0, 1):
        content(cuda, cache, index)[...] = rng.standard_normal((3, 2, 5, 4))
    before = [content(cuda, cache, index).copy() for index in (0, 1)]
    cache.ensure(6, 4, 100)
    assert cache.capacity_tokens == 10
    assert cache.bytes_copied == 2 * 3 * 4 * 2 * 4 * 2
    for index in (0, 1):
        np.testing.assert_array_equal(content(cuda, cache, index)[:, :, :4], before[index][:, :, :4])
        assert not content(cuda, cache, index)[:, :, 4:].any()
    cache.move(2, 0, 3)
    for index in (0, 1):
        np.testing.assert_array_equal(content(cuda, cache, index)[0, :, :3], before[index][2, :, :3])
        np.testing.assert_array_equal(content(cuda, cache, index)[0, :, 3:4], before[index][0, :, 3:4])
        np.testing.assert_array_equal(content(cuda, cache, index)[1, :, :4], before[index][1, :, :4])
    places = cache.places(1, 2)
    assert places["past_key_values.0.key"].shape == (2, 2, 10, 4)
    assert places["past_key_values.0.key"].address == cache.buffers[0].address + 2 * 10 * 4 * 2
    with pytest.raises(DeviceMemoryError, match=r"for 65536 tokens of 3 texts each takes [\d_]+ bytes"):
        cache.ensure(65536, 4, 65536)
    del cache
    assert cuda.held == {}


def test_a_cache_that_is_too_large_takes_nothing() -> None:
    cuda, device = opened(memory=1000)
    with pytest.raises(DeviceMemoryError, match=r"a KV cache for 100 tokens takes 3_200 bytes of memory on GPU 0,"):
        DeviceCache(device, tensors(), 1, 100, grows=False)
    assert cuda.held == {}


def names_used(path: Path) -> set[str]:
    """What the driver is asked for, "cuMemAlloc" or "CUresult.CUDA_SUCCESS"."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Attribute | ast.Name):
            base = node.value
            inner = base.attr if isinstance(base, ast.Attribute) else ""
            if node.attr.startswith("cu") or node.attr in ("CUDA_MEMCPY2D", "CUresult"):
                found.add(node.attr)
            elif inner.startswith("CU"):
                found.add(f"{inner}.{node.attr}")
            elif node.attr.startswith("CU_DEVICE_ATTRIBUTE"):
                found.add(f"CUdevice_attribute.{node.attr}")
    return found - {"cuda"}


def test_every_name_of_the_driver_is_in_nvidias_bindings() -> None:
    bindings = pytest.importorskip(driver.BINDINGS, reason="pip install 'edgecompress[gpu]'")
    names = names_used(Path(driver.__file__))
    assert {"cuMemHostAlloc", "CUDA_MEMCPY2D", "CUresult.CUDA_ERROR_OUT_OF_MEMORY"} <= names
    assert len(names) > 30
    for name in names:
        value = bindings
        for part in name.split("."):
            assert hasattr(value, part), name
            value = getattr(value, part)
        double = getattr(FakeCuda, name, None)
        if name.startswith("cu"):
            assert double is not None, f"the double has no {name}"
            asked = [p for p in inspect.signature(double).parameters if p != "self"]
            real = value.__doc__.strip().splitlines()[0].partition("(")[2].partition(")")[0]
            assert len(asked) == len([part for part in real.split(",") if part.strip()]), f"{name}({real})"
    copy = bindings.CUDA_MEMCPY2D()
    copy.srcMemoryType = copy.dstMemoryType = bindings.CUmemorytype.CU_MEMORYTYPE_DEVICE
    copy.dstDevice, copy.srcDevice = 2**40, 2**41
    copy.dstPitch = copy.srcPitch = copy.WidthInBytes = copy.Height = 7
    assert (int(copy.dstDevice), int(copy.srcDevice), copy.dstPitch, copy.Height) == (2**40, 2**41, 7, 7)
    assert int(bindings.CUstream_flags.CU_STREAM_NON_BLOCKING) == 1
    assert int(bindings.CUstream(5)) == 5
    with pytest.raises(HostError, match=r"the NVIDIA driver's libcuda\.so\.1 is not on this machine"):
        driver.open_driver(_absent)


def _absent(name: str) -> None:
    raise OSError
