"""Detects this machine's GPUs through the C interfaces of NVIDIA's libraries, without any package."""

from __future__ import annotations

import ctypes

from edgecompress.types.gpu import Gpu


def detect_gpus() -> list[Gpu]:
    """NVIDIA GPUs from NVML, or from the driver where NVML is missing (Jetson); empty if both are missing."""
    try:
        nvml = ctypes.CDLL("libnvidia-ml.so.1")
    except OSError:
        return _gpus_of_driver()
    if nvml.nvmlInit_v2() != 0:
        return _gpus_of_driver()
    try:
        count = ctypes.c_uint()
        nvml.nvmlDeviceGetCount_v2(ctypes.byref(count))
        return [_gpu(nvml, index) for index in range(count.value)]
    finally:
        nvml.nvmlShutdown()


def _gpus_of_driver() -> list[Gpu]:
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return []
    count = ctypes.c_int()
    if cuda.cuInit(0) != 0 or cuda.cuDeviceGetCount(ctypes.byref(count)) != 0:
        return []
    found = []
    for index in range(count.value):
        device, memory, name = ctypes.c_int(), ctypes.c_size_t(), ctypes.create_string_buffer(96)
        major, minor = ctypes.c_int(), ctypes.c_int()
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, len(name), device)
        cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
        cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device)  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR
        cuda.cuDeviceGetAttribute(ctypes.byref(minor), 76, device)  # …_MINOR
        found.append(
            Gpu(
                name=name.value.decode(errors="replace"),
                memory_bytes=memory.value,
                compute_capability=(major.value, minor.value),
            )
        )
    return found


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _gpu(nvml: ctypes.CDLL, index: int) -> Gpu:
    handle, memory = ctypes.c_void_p(), _Memory()
    name = ctypes.create_string_buffer(96)
    major, minor = ctypes.c_int(), ctypes.c_int()
    nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle))
    nvml.nvmlDeviceGetName(handle, name, len(name))
    nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory))
    nvml.nvmlDeviceGetCudaComputeCapability(handle, ctypes.byref(major), ctypes.byref(minor))
    return Gpu(
        name=name.value.decode(errors="replace"),
        memory_bytes=int(memory.total),
        compute_capability=(major.value, minor.value),
    )
