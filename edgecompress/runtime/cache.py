"""The KV cache: one buffer per layer for keys and one for values, shared by past and present, so no token is copied.

ONNX Runtime's GroupQueryAttention appends in place when past and present are the same memory. Both are bound once to
one NumPy array. The attention mask's length tells each run how much of it is valid, so dropping tokens (a rejected
draft, the tail of an old conversation) costs nothing. The model decides between float32 and int8; the scales of an
int8 cache are constants of the graph, and this module never reads a key or a value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from edgecompress.errors import BundleError
from edgecompress.runtime.memory import check_available
from edgecompress.runtime.weights import huge_region

CACHE_DTYPES: dict[str, np.dtype[Any]] = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
}
_LINE = 64  # buffers are aligned to cache lines
PAST, PRESENT = "past_key_values.", "present."


@dataclass(frozen=True, kw_only=True)
class CacheTensor:
    """The keys or the values of one layer, [B, Hk, C, D]."""

    past: str
    present: str
    heads: int
    head_size: int
    dtype: np.dtype[Any]

    @property
    def bytes_per_token(self) -> int:
        return self.heads * self.head_size * self.dtype.itemsize


def cache_tensors(session: ort.InferenceSession) -> tuple[CacheTensor, ...]:
    """Read a model's cache tensors from its inputs. Raises BundleError if a past has no matching present."""
    outputs = {output.name for output in session.get_outputs()}
    tensors = []
    for value in session.get_inputs():
        if not value.name.startswith(PAST):
            continue
        present = PRESENT + value.name.removeprefix(PAST)
        heads, size = (value.shape[1], value.shape[3]) if len(value.shape) == 4 else (None, None)
        paired = present in outputs and value.type in CACHE_DTYPES
        if not (paired and isinstance(heads, int) and isinstance(size, int)):
            raise BundleError(
                f"the model's input '{value.name}' ({value.type}) has no matching output '{present}'",
                hint="Export the student again with this version.",
            )
        dtype = CACHE_DTYPES[value.type]
        tensors.append(CacheTensor(past=value.name, present=present, heads=heads, head_size=size, dtype=dtype))
    return tuple(tensors)


def cache_bytes(tensors: Sequence[CacheTensor], rows: int, tokens: int) -> int:
    """Exact size in bytes of a cache of ``rows`` texts of ``tokens`` each."""
    return rows * tokens * sum(t.bytes_per_token for t in tensors)


class Binding:
    """An IO binding that remembers what is bound, so a run with the same shapes as the last one binds nothing again."""

    def __init__(self, session: ort.InferenceSession) -> None:
        self.io = session.io_binding()
        self._inputs: dict[str, npt.NDArray[Any]] = {}
        self._output: npt.NDArray[Any] | None = None

    def feed(self, name: str, array: npt.NDArray[Any]) -> None:
        """Set an input for the next run. If its shape has not changed, the values are copied into the bound array."""
        held = self._inputs.get(name)
        if held is not None and held.shape == array.shape:
            held[...] = array
            return
        own = self._inputs[name] = array.copy()  # onnxruntime reads this memory without holding a reference to it
        self.io.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(own))

    def receive(self, name: str, array: npt.NDArray[Any]) -> None:
        """Set the array for the next run's only output that is not a cache tensor."""
        if array is not self._output:
            self._output = array
            self.io.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(array))


class KVCache:
    """Keys and values of ``rows`` texts, ``capacity_tokens`` each. Raises HostError instead of exhausting memory."""

    def __init__(self, tensors: Sequence[CacheTensor], rows: int, capacity_tokens: int) -> None:
        self.tensors, self.rows, self.capacity_tokens = tuple(tensors), rows, capacity_tokens
        self.bytes_copied = 0
        self._bindings: dict[tuple[int, int, int], Binding] = {}
        self._logits_memory = np.empty(0, dtype=np.float32)
        self._logits = self._logits_memory.reshape(0, 0, 0)
        self._check(cache_bytes(tensors, rows, capacity_tokens), capacity_tokens)
        self.buffers = self._side_by_side()

    @property
    def bytes(self) -> int:
        return cache_bytes(self.tensors, self.rows, self.capacity_tokens)

    def ensure(self, tokens: int, used_tokens: int, limit_tokens: int) -> None:
        """Make room for ``tokens`` per row and keep the first ``used_tokens``.

        The capacity at least doubles, up to ``limit_tokens``. Buffers are grown one at a time, so that at most one
        exists twice.
        """
        if tokens <= self.capacity_tokens:
            return
        capacity = max(tokens, min(2 * self.capacity_tokens, limit_tokens))
        largest = max((t.bytes_per_token for t in self.tensors), default=0) * self.rows * capacity
        self._check(cache_bytes(self.tensors, self.rows, capacity) - self.bytes + largest, capacity)
        self._bindings.clear()
        for index, tensor in enumerate(self.tensors):
            grown = self._empty(tensor, capacity)
            grown[:, :, :used_tokens] = self.buffers[index][:, :, :used_tokens]
            self.buffers[index] = grown
        self.bytes_copied += cache_bytes(self.tensors, self.rows, used_tokens)
        self.capacity_tokens = capacity

    def move(self, source: int, target: int, tokens: int) -> None:
        """Copy the first ``tokens`` of row ``source`` over row ``target``."""
        for buffer in self.buffers:
            buffer[target, :, :tokens] = buffer[source, :, :tokens]
        self.bytes_copied += cache_bytes(self.tensors, 1, tokens)

    def binding(self, session: ort.InferenceSession, first: int, count: int) -> Binding:
        """Return an IO binding with rows ``first`` to ``first + count`` bound as both past and present."""
        key = (id(session), first, count)
        binding = self._bindings.get(key)
        if binding is None:
            binding = Binding(session)
            for tensor, buffer in zip(self.tensors, self.buffers, strict=True):
                value = ort.OrtValue.ortvalue_from_numpy(buffer[first : first + count])
                binding.io.bind_ortvalue_input(tensor.past, value)
                binding.io.bind_ortvalue_output(tensor.present, value)
            self._bindings[key] = binding
        return binding

    def logits(self, batch: int, positions: int, vocab_size: int) -> npt.NDArray[np.float32]:
        """Memory for logits [B, N, V], reused between calls while it is large enough."""
        shape = (batch, positions, vocab_size)
        if self._logits.shape != shape:
            size = batch * positions * vocab_size
            if self._logits_memory.size < size:
                self._logits_memory = np.empty(size, dtype=np.float32)
            self._logits = self._logits_memory[:size].reshape(shape)
        return self._logits

    def _side_by_side(self) -> list[npt.NDArray[Any]]:
        """All buffers in one zeroed region, so that small ones get huge pages too."""
        sizes = [-(-cache_bytes([t], self.rows, self.capacity_tokens) // _LINE) * _LINE for t in self.tensors]
        region, buffers, at = huge_region(max(sum(sizes), 1)), [], 0
        for tensor, size in zip(self.tensors, sizes, strict=True):
            shape = (self.rows, tensor.heads, self.capacity_tokens, tensor.head_size)
            used = region[at : at + cache_bytes([tensor], self.rows, self.capacity_tokens)]
            buffers.append(used.view(tensor.dtype).reshape(shape))
            at += size
        return buffers

    def _empty(self, tensor: CacheTensor, capacity: int) -> npt.NDArray[Any]:
        return np.zeros((self.rows, tensor.heads, capacity, tensor.head_size), dtype=tensor.dtype)

    def _check(self, wanted_bytes: int, capacity: int) -> None:
        texts = "" if self.rows == 1 else f" of {self.rows} texts each"
        check_available(
            wanted_bytes,
            f"a KV cache for {capacity} tokens{texts}",
            "Lower max_new_tokens, shorten the prompt, or pass fewer prompts at once.",
        )
