"""The GPUs that kernels are compiled for, by compute capability, with their tiles. Does not need Triton.

The limits are from the CUDA C++ Programming Guide 13, "Technical Specifications per Compute Capability". The tiles fit
them: no spilled registers, shared memory below the limit (``aot.py`` checks). Only 9.0's were timed, on an H200.
"""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]
HOPPER = (9, 0)
HEAD_SIZES = (64, 80, 96, 128, 256)
HIDDEN_SIZES = (512, 1024, 2048, 4096, 8192)  # widths of norm kernels, each for rows of up to that width
BLOCK_REGISTERS, MOST_REGISTERS = 65536, 255  # per block and per thread, on every chip
FLOATS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""Types of queries, torch's name -> Triton's. float32 is for tests: it does not use tensor cores."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """A program's tile: rows and keys at a time, warps, and blocks in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    groups: int = 1  # decode: groups of a block's keys, each with separate sums


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One compute capability: limits of a block, and tiles by head width."""

    capability: Capability
    examples: str
    shared_bytes: int  # limit per block
    fp8: bool  # hardware conversion of float8 e4m3
    exact: bool  # cubins run on this capability only, not on later minor versions
    prefill: dict[int, Tile]  # by width: the head size rounded up to a power of two
    decode: dict[int, Tile]

    @property
    def hopper(self) -> bool:
        """Whether it has Hopper's asynchronous matrix units."""
        return self.capability == HOPPER

    @property
    def name(self) -> str:
        return f"{self.capability[0]}.{self.capability[1]}"


def _tile(block_m: int, block_n: int, num_warps: int, num_stages: int, groups: int = 1) -> Tile:
    return Tile(block_m=block_m, block_n=block_n, num_warps=num_warps, num_stages=num_stages, groups=groups)


_DECODE = {64: _tile(16, 64, 4, 3, 4), 128: _tile(16, 64, 4, 3, 4), 256: _tile(16, 32, 8, 3, 2)}
_DECODE_LARGE = {64: _tile(16, 128, 4, 3, 4), 128: _tile(16, 64, 4, 4, 4), 256: _tile(16, 32, 8, 3, 2)}
_DECODE_BLACKWELL = {64: _tile(16, 64, 4, 4, 4), 128: _tile(16, 64, 8, 3, 4), 256: _tile(16, 32, 8, 3, 2)}
_PREFILL = {64: _tile(128, 64, 8, 2), 128: _tile(128, 32, 8, 2), 256: _tile(64, 32, 8, 2)}
_PREFILL_LARGE = {64: _tile(128, 64, 8, 3), 128: _tile(128, 32, 8, 3), 256: _tile(64, 32, 8, 3)}
_PREFILL_WARPGROUP = {64: _tile(128, 128, 8, 2), 128: _tile(128, 64, 8, 2), 256: _tile(64, 64, 8, 2)}

CHIPS = {
    chip.capability: chip
    for chip in (
        Chip(
            capability=(8, 0),
            examples="A100",
            shared_bytes=163 * 1024,
            fp8=False,
            exact=False,
            prefill=_PREFILL_LARGE,
            decode=_DECODE_LARGE,
        ),
        Chip(
            capability=(8, 6),
            examples="A10, RTX 30",
            shared_bytes=99 * 1024,
            fp8=False,
            exact=False,
            prefill=_PREFILL,
            decode=_DECODE,
        ),
        Chip(
            capability=(8, 7),
            examples="Jetson Orin",
            shared_bytes=163 * 1024,
            fp8=False,
            exact=False,
            prefill=_PREFILL_LARGE,
            decode=_DECODE_LARGE,
        ),
        Chip(
            capability=(8, 9),
            examples="L4, RTX 40",
            shared_bytes=99 * 1024,
            fp8=True,
            exact=False,
            prefill=_PREFILL,
            decode=_DECODE,
        ),
        Chip(
            capability=(9, 0),
            examples="H100, H200",
            shared_bytes=227 * 1024,
            fp8=True,
            exact=True,
            prefill=_PREFILL_WARPGROUP,
            decode=_DECODE_LARGE,
        ),
        Chip(
            capability=(10, 0),
            examples="B200",
            shared_bytes=227 * 1024,
            fp8=True,
            exact=True,
            prefill=_PREFILL_WARPGROUP,
            decode=_DECODE_BLACKWELL,
        ),
        Chip(
            capability=(12, 0),
            examples="RTX 50",
            shared_bytes=99 * 1024,
            fp8=True,
            exact=True,
            prefill=_PREFILL,
            decode=_DECODE_BLACKWELL,
        ),
    )
}
HOPPER_ROWS, HOPPER_BLOCK_N, HOPPER_STAGES, HOPPER_REGISTERS = 64, 128, {64: 3, 128: 2}, 168
"""Hopper's prefill kernel: queries per warpgroup (of two), keys per block, blocks in flight by head width, and
registers per thread (of 384), which the kernel redistributes."""
FLOAT32 = _tile(32, 32, 4, 1)
"""For float32, for tests only: not tuned, fits every chip at every head size."""
INTERPRETED = _tile(16, 16, 4, 2, 2)
"""For the interpreter: small, so that small shapes have several blocks."""


class ChipError(ValueError):
    """There is no kernel for a compute capability."""


def chip(capability: Capability) -> Chip:
    """Return the chip of a compute capability.

    Raises ChipError naming the known ones.
    """
    if capability not in CHIPS:
        known = ", ".join(c.name for c in CHIPS.values())
        raise ChipError(
            f"there is no kernel for compute capability {capability[0]}.{capability[1]}; there are kernels for {known}"
        )
    return CHIPS[capability]


def nearest(capability: Capability) -> Chip:
    """Return the chip whose tiles to use: this one, or the latest before it. Only for just-in-time compilation."""
    before = [known for known in CHIPS if known <= capability]
    if not before:
        raise ChipError(
            f"compute capability {capability[0]}.{capability[1]} is older than 8.0, the first supported one"
        )
    return CHIPS[max(before)]


def width_of(head: int) -> int:
    """The head size rounded up to a power of two; a program computes this width and masks the rest."""
    return 1 << (head - 1).bit_length()


def norm_rows(block: int) -> tuple[int, int]:
    """Return (rows per program, warps) for a norm over up to ``block`` columns."""
    return max(1, 2048 // block), (4 if block <= 2048 else 8)


def splits_for(longest: int, programs: int, slots: int, block_n: int) -> tuple[int, int]:
    """Return (splits, keys per split) for the longest text; ``programs``: the number of programs without splits.

    ``slots``: programs that keep the device's memory busy. The cost model, from an H200: the key blocks per slot, plus
    one for each program's start, plus 1.5 for each split's join. A split has at least 256 keys, and splits make at most
    four rounds of programs, since more do not improve utilization.
    """
    blocks = -(-max(1, longest) // block_n)
    least = min(blocks, max(1, 256 // block_n))

    def cost(split_blocks: int) -> float:
        splits = -(-blocks // split_blocks)
        return -(-programs * splits // slots) * (split_blocks + 1) + (1.5 * splits if splits > 1 else 0)

    most = max(1, min(128, blocks // least, 4 * slots // max(1, programs)))
    each = {-(-blocks // splits) for splits in range(1, most + 1)}
    best = min(each, key=lambda n: (cost(n), -n))
    return -(-blocks // best), best * block_n


def hopper_sizes(
    *, longest: int, heads: int, kv_heads: int, texts: int, keys: int, head: int, processors: int, cache_bytes: int
) -> dict[str, int]:
    """Return the sizes for Hopper's prefill, by parameter name, and the number of ``programs``.

    ``keys``: of all texts together. A section has as many heads of texts as fill a quarter of the device's cache with
    their keys and values, because each half of the cache keeps its own copy.
    """
    blocks, pairs, group = -(-longest // (2 * HOPPER_ROWS)), heads * texts, heads // kv_heads
    head_bytes = 2 * 2 * keys * head // texts  # keys and values of a head in a text
    section = min(pairs, group * max(1, cache_bytes // 4 // max(1, head_bytes)))
    sizes = {"heads": heads, "texts": texts, "blocks": blocks, "group": group, "section": section}
    return {**sizes, "programs": min(processors, blocks * pairs)}
