"""The KV cache on a GPU: like :mod:`edgecompress.runtime.cache`, but it stays in device memory.

Engines write into it in place; ONNX Runtime's CUDA provider appends in place when past and present are the same memory.
It is allocated as zeros, because an engine reads past the end of a row and multiplies that by zero.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecompress.errors import UsageError
from edgecompress.runtime.cache import Binding, CacheTensor, cache_bytes
from edgecompress.runtime.cuda.device import Device, DeviceMemoryError
from edgecompress.runtime.cuda.memory import DeviceBuffer
from edgecompress.runtime.engine_runner import OnDevice


def beyond(tokens: int, capacity_tokens: int) -> UsageError:
    """The error for a text that does not fit into an engine's cache."""
    return UsageError(
        f"the text has {tokens} tokens, but the engine was built for {capacity_tokens}",
        hint="Lower max_new_tokens, or export with a larger --engine-context.",
    )


class DeviceCache:
    """Keys and values of ``rows`` texts, ``capacity_tokens`` each. Raises DeviceMemoryError if they do not fit."""

    def __init__(
        self, device: Device, tensors: Sequence[CacheTensor], rows: int, capacity_tokens: int, *, grows: bool
    ) -> None:
        """``grows``: whether the capacity can change; an engine's is fixed when it is built."""
        self.device, self.tensors, self.rows = device, tuple(tensors), rows
        self.capacity_tokens, self.grows, self.bytes_copied = capacity_tokens, grows, 0
        self._stream = device.make_stream()
        self._bindings: dict[tuple[int, int, int], Binding] = {}
        self._logits: npt.NDArray[np.float32] = np.empty((0, 0, 0), dtype=np.float32)
        try:
            self._check(self.bytes, capacity_tokens)
            self.buffers = [self._zeroed(tensor, capacity_tokens) for tensor in self.tensors]
            device.synchronize(self._stream)
        except BaseException:
            device.free_stream(self._stream)
            raise
        weakref.finalize(self, device.free_stream, self._stream).atexit = False

    @property
    def bytes(self) -> int:
        return cache_bytes(self.tensors, self.rows, self.capacity_tokens)

    def ensure(self, tokens: int, used_tokens: int, limit_tokens: int) -> None:
        """Make room for ``tokens`` per row and keep the first ``used_tokens``. Raises UsageError, DeviceMemoryError."""
        if tokens <= self.capacity_tokens:
            return
        if not self.grows:
            raise beyond(tokens, self.capacity_tokens)
        capacity = max(tokens, min(2 * self.capacity_tokens, limit_tokens))
        largest = max((t.bytes_per_token for t in self.tensors), default=0) * self.rows * capacity
        self._check(cache_bytes(self.tensors, self.rows, capacity) - self.bytes + largest, capacity)
        self._bindings.clear()
        for index, tensor in enumerate(self.tensors):
            grown = self._zeroed(tensor, capacity)
            token = tensor.head_size * tensor.dtype.itemsize
            self.device.copy_rows(
                grown.address,
                self.buffers[index].address,
                rows=self.rows * tensor.heads,
                size=used_tokens * token,
                pitches=(capacity * token, self.capacity_tokens * token),
                stream=self._stream,
            )
            self.device.synchronize(self._stream)  # the old buffer is freed next
            self.buffers[index] = grown
        self.bytes_copied += cache_bytes(self.tensors, self.rows, used_tokens)
        self.capacity_tokens = capacity

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` of row ``source`` over row ``target``."""
        for tensor, buffer in zip(self.tensors, self.buffers, strict=True):
            token = tensor.head_size * tensor.dtype.itemsize
            row = tensor.heads * self.capacity_tokens * token
            self.device.copy_rows(
                buffer.address + target * row,
                buffer.address + source * row,
                rows=tensor.heads,
                size=tokens * token,
                pitches=(self.capacity_tokens * token, self.capacity_tokens * token),
                stream=self._stream,
            )
        self.device.synchronize(self._stream)
        self.bytes_copied += cache_bytes(self.tensors, 1, tokens)

    def places(self, first: int, count: int) -> dict[str, OnDevice]:
        """Device memory of rows ``first`` to ``first + count``, by input name."""
        found = {}
        for tensor, buffer in zip(self.tensors, self.buffers, strict=True):
            row = tensor.bytes_per_token * self.capacity_tokens
            shape = (count, tensor.heads, self.capacity_tokens, tensor.head_size)
            found[tensor.past] = OnDevice(buffer.address + first * row, shape)
        return found

    def binding(self, session: ort.InferenceSession, first: int, count: int) -> Binding:
        """Like :meth:`edgecompress.runtime.cache.KVCache.binding`, for ONNX Runtime's CUDA provider."""
        key = (id(session), first, count)
        binding = self._bindings.get(key)
        if binding is None:
            binding = Binding(session)
            places = self.places(first, count)
            for tensor in self.tensors:
                place = places[tensor.past]
                at: tuple[Any, ...] = ("cuda", self.device.index, tensor.dtype, list(place.shape), place.address)
                binding.io.bind_input(tensor.past, *at)
                binding.io.bind_output(tensor.present, *at)
            self._bindings[key] = binding
        return binding

    def logits(self, batch: int, positions: int, vocab_size: int) -> npt.NDArray[np.float32]:
        """Host memory for logits [B, N, V], reused while the shape stays the same."""
        if self._logits.shape != (batch, positions, vocab_size):
            self._logits = np.empty((batch, positions, vocab_size), dtype=np.float32)
        return self._logits

    def _zeroed(self, tensor: CacheTensor, capacity: int) -> DeviceBuffer:
        size = self.rows * capacity * tensor.bytes_per_token
        made = DeviceBuffer(self.device, size)
        self.device.zero(made.address, size, self._stream)
        return made

    def _check(self, wanted_bytes: int, capacity: int) -> None:
        free = self.device.free_bytes()
        if wanted_bytes > free:
            texts = "" if self.rows == 1 else f" of {self.rows} texts each"
            raise DeviceMemoryError(
                f"a KV cache for {capacity} tokens{texts} takes {wanted_bytes:_} bytes of memory on GPU "
                f"{self.device.index}, and {free:_} are free",
                hint="Pass fewer prompts at once, lower max_new_tokens, or export with a smaller --engine-context.",
            )
