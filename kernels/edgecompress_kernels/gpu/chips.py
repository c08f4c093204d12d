"""The GPUs that kernels are made for, by compute capability, and the tiles that each takes. No Triton is needed here.

The limits are those of the CUDA C++ Programming Guide 13, "Technical Specifications per Compute Capability". The tiles
were chosen so that they fit: no spilled register, shared memory below the limit (``aot.py`` checks). None was timed.
"""

from __future__ import annotations

from dataclasses import dataclass

Capability = tuple[int, int]
HOPPER = (9, 0)
HEAD_SIZES = (64, 80, 96, 128, 256)
HIDDEN_SIZES = (512, 1024, 2048, 4096, 8192)  # a norm's widths, each for all up to it
BLOCK_REGISTERS, MOST_REGISTERS = 65536, 255  # of a block and of a thread, on every chip
FLOATS = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""What queries may be, in torch's words and in Triton's; float32 is for tests, it uses no tensor cores."""


@dataclass(frozen=True, kw_only=True)
class Tile:
    """How one program is cut: rows and keys at a time, warps, and blocks in flight."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    groups: int = 1  # of decode: a block's keys are cut into so many, each with sums of its own


@dataclass(frozen=True, kw_only=True)
class Chip:
    """One compute capability: what a block may use, and the tiles for heads up to a width."""

    capability: Capability
    examples: str
    shared_bytes: int  # that a block may ask for
    fp8: bool  # converts float8 e4m3 in hardware
    exact: bool  # its cubins run on this capability alone; else on later minor versions too
    prefill: dict[int, Tile]  # by width: the head's size, rounded up to a power of two
    decode: dict[int, Tile]

    @property
    def hopper(self) -> bool:
        """Whether it has the asynchronous matrix units that Hopper alone has."""
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
"""Of its own prefill kernel: queries of each of two warpgroups, keys of a block, blocks in flight by the head's width,
and registers of each of 384 threads, which the kernel then divides anew."""
FLOAT32 = _tile(32, 32, 4, 1)
"""For float32, which is twice as wide: no speed is looked for there, and it fits every chip at every head size."""
INTERPRETED = _tile(16, 16, 4, 2, 2)
"""What the interpreter takes, where a tile is only arithmetic: small, so that small shapes have several blocks."""


class ChipError(ValueError):
    """A compute capability that no kernel is made for."""


def chip(capability: Capability) -> Chip:
    """The chip of that compute capability.

    Raises ChipError naming those that there are.
    """
    if capability not in CHIPS:
        known = ", ".join(c.name for c in CHIPS.values())
        raise ChipError(f"no kernel is made for compute capability {capability[0]}.{capability[1]}; there are {known}")
    return CHIPS[capability]


def nearest(capability: Capability) -> Chip:
    """The chip whose tiles serve there: itself, or else the latest before it. Only for compiling on the spot."""
    before = [known for known in CHIPS if known <= capability]
    if not before:
        raise ChipError(f"compute capability {capability[0]}.{capability[1]} is older than 8.0, the first that serves")
    return CHIPS[max(before)]


def width_of(head: int) -> int:
    """A head's size rounded up to a power of two: what a program computes, the rest masked."""
    return 1 << (head - 1).bit_length()


def norm_rows(block: int) -> tuple[int, int]:
    """(rows of a program, warps) for a norm over up to ``block`` columns."""
    return max(1, 2048 // block), (4 if block <= 2048 else 8)


def splits_for(longest: int, programs: int, slots: int, block_n: int) -> tuple[int, int]:
    """(splits, keys of a split) for the longest text, where ``programs`` would run without any split.

    ``slots``: programs that keep the device's memory busy. Time is taken for the blocks of keys that a slot gets to
    work through, one more for each program's start, and one and a half for each split's join, as an H200 took it. A
    split is at least 256 keys, and splits make no more than four rounds of programs: more fill no better.
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
    """The sizes that Hopper's prefill is called with, by the names of its parameters, and how many ``programs``.

    ``keys``: of all texts together. A section is as many heads of texts as fill a quarter of the device's cache with
    their keys and values: the cache's halves each keep what they read.
    """
    blocks, pairs, group = -(-longest // (2 * HOPPER_ROWS)), heads * texts, heads // kv_heads
    head_bytes = 2 * 2 * keys * head // texts  # a head's keys and values, in a text
    section = min(pairs, group * max(1, cache_bytes // 4 // max(1, head_bytes)))
    sizes = {"heads": heads, "texts": texts, "blocks": blocks, "group": group, "section": section}
    return {**sizes, "programs": min(processors, blocks * pairs)}
