"""The variants of each kernel: parameters in order with their constraints, constants and grid.

Does not need Triton: the launcher, the command line and the compiler use the same tables.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from edgecompress_kernels.gpu.chips import (
    FLOATS,
    HEAD_SIZES,
    HIDDEN_SIZES,
    HOPPER_BLOCK_N,
    HOPPER_REGISTERS,
    HOPPER_ROWS,
    HOPPER_STAGES,
    Chip,
    Tile,
    norm_rows,
    width_of,
)

HALVES = ("float16", "bfloat16")
MOST_WINDOW = 2**30  # positions are added to it in 32 bits
CACHES = {"int8": "i8", "fp8": "fp8e4nv"}
"""Cache types besides the queries' type: our name -> Triton's."""
JOINED_ROWS, JOINED_VALUES = 4, 4096  # decode: rows joined at a time, and values of partial sums
Constant = int | bool
Factor = dict[str, int | list[str]]
"""{"of": names, "per": n}: the product of the named sizes over n, rounded up."""


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """One function that Triton compiles: its module, its parameters in order, and its grid."""

    name: str
    module: str
    function: str
    floats: tuple[str, ...]  # pointers with the queries' type
    parameters: dict[str, str]  # Triton's types; "*" is a pointer with the variant's type, and
    # "map" an array [heads, tokens, D] that the copy engine reads in boxes
    divisible: tuple[str, ...]  # integers that must be multiples of 16, like every pointer
    grid: tuple[tuple[tuple[tuple[str, ...], str | int], ...], ...]  # axis, factor, (names, constant or number)
    sizes: tuple[str, ...]  # sizes for the grid that are not parameters
    test: str  # the reference of its tests


def _strides(*names: str) -> dict[str, str]:
    return dict.fromkeys(names, "i32")


_PREFILL_STRIDES = ("q_token", "q_head", "k_token", "k_head", "v_token", "v_head", "out_token", "out_head")
_DECODE_STRIDES = (
    *("q_text", "q_token", "q_head", "k_text", "k_head", "k_token"),
    *("v_text", "v_head", "v_token", "out_text", "out_token", "out_head"),
)
PREFILL = Kernel(
    name="prefill",
    module="edgecompress_kernels.gpu.jit.prefill",
    function="prefill_kernel",
    floats=("q", "k", "v", "out"),
    parameters={
        **dict.fromkeys(("q", "k", "v", "out"), "*"),
        **dict.fromkeys(("q_starts", "k_starts"), "*i32"),
        **_strides(*_PREFILL_STRIDES, "group", "window"),
        **dict.fromkeys(("scale", "soft_cap"), "fp32"),
    },
    divisible=_PREFILL_STRIDES,
    grid=(((("longest",), "BLOCK_M"),), ((("heads",), 1),), ((("texts",), 1),)),
    sizes=("longest", "heads", "texts"),
    test="attention in float64",
)
PREFILL_HOPPER = Kernel(
    name="prefill_hopper",
    module="edgecompress_kernels.gpu.jit.prefill_hopper",
    function="prefill_hopper_kernel",
    floats=("out",),
    parameters={
        **dict.fromkeys(("q", "k", "v"), "map"),
        "out": "*",
        **dict.fromkeys(("q_starts", "k_starts"), "*i32"),
        **_strides("out_token", "out_head", "heads", "texts", "blocks", "group", "section"),
        "scale": "fp32",
    },
    divisible=("out_token", "out_head"),
    grid=(((("programs",), 1),),),
    sizes=("programs",),
    test="attention in float64",
)
DECODE = Kernel(
    name="decode",
    module="edgecompress_kernels.gpu.jit.decode",
    function="decode_kernel",
    floats=("q", "out"),
    parameters={
        **dict.fromkeys(("q", "keys", "values"), "*"),
        **dict.fromkeys(("key_scales", "value_scales"), "*fp32"),
        "lengths": "*i32",
        "out": "*",
        **dict.fromkeys(("partials", "states"), "*fp32"),
        "counters": "*i32",
        **_strides(*_DECODE_STRIDES, "tokens", "group", "splits", "split_keys", "window"),
        **dict.fromkeys(("scale", "soft_cap"), "fp32"),
    },
    divisible=(*_DECODE_STRIDES, "split_keys"),
    grid=(((("splits",), 1), (("tokens", "group"), "BLOCK_M")), ((("kv_heads",), 1),), ((("texts",), 1),)),
    sizes=("kv_heads", "texts"),
    test="attention in float64",
)
ADD_NORM = Kernel(
    name="add_norm",
    module="edgecompress_kernels.gpu.jit.norms",
    function="add_norm_kernel",
    floats=("x", "residual", "gamma", "beta", "summed", "out"),
    parameters={
        **dict.fromkeys(("x", "residual", "gamma", "beta", "summed", "out"), "*"),
        **_strides("x_row", "residual_row", "rows", "columns"),
        "epsilon": "fp32",
    },
    divisible=("x_row", "residual_row", "columns"),
    grid=(((("rows",), "ROWS"),),),
    sizes=(),
    test="RMSNorm and LayerNorm in float64",
)
KERNELS = {kernel.name: kernel for kernel in (PREFILL, PREFILL_HOPPER, DECODE, ADD_NORM)}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One cubin: a kernel with types and constants, for one chip."""

    name: str
    kernel: Kernel
    chip: Chip
    pointers: dict[str, str]  # the variant's types, by parameter
    constants: dict[str, Constant]
    num_warps: int
    num_stages: int
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)  # [min, max] of a value
    boxes: dict[str, tuple[int, int]] = field(default_factory=dict)  # per map: rows and columns of one head
    registers: int | None = None  # per thread, for kernels that redistribute them

    @property
    def signature(self) -> dict[str, str]:
        return {name: self.pointers.get(name, kind) for name, kind in self.kernel.parameters.items()}

    @property
    def aligned(self) -> tuple[str, ...]:
        """Parameters that must be multiples of 16: all addresses, and some integers, such as strides in elements."""
        pointers = (name for name, kind in self.signature.items() if kind.startswith("*"))
        return (*pointers, *self.kernel.divisible)

    @property
    def grid(self) -> list[list[Factor]]:
        """Per axis, a list of factors."""
        return [
            [{"of": list(names), "per": self.constants[per] if isinstance(per, str) else per} for names, per in axis]
            for axis in self.kernel.grid
        ]


def variants(chip: Chip, *, soft_cap: bool = False) -> Iterator[Variant]:
    """Yield all variants for a chip, or all attention variants with soft caps; float8 caches if the chip has fp8."""
    for dtype in HALVES:
        for head in HEAD_SIZES:
            for causal in (True, False):
                yield prefill_variant(chip, dtype, head, causal=causal, soft_cap=soft_cap)
                yield prefill_variant(chip, dtype, head, causal=causal, window=True, soft_cap=soft_cap)
                if chip.hopper and width_of(head) in HOPPER_STAGES and not soft_cap:
                    yield hopper_variant(chip, dtype, head, causal=causal)
            for cache in (dtype, *CACHES):
                if cache != "fp8" or chip.fp8:
                    yield decode_variant(chip, dtype, head, cache=cache, soft_cap=soft_cap)
        for columns in HIDDEN_SIZES:
            for layer in (False, True):
                yield norm_variant(chip, dtype, columns, layer=layer)


def _pointers(kernel: Kernel, dtype: str) -> dict[str, str]:
    return dict.fromkeys(kernel.floats, "*" + FLOATS[dtype])


def _cap(soft_cap: bool) -> tuple[float, float]:
    return (1e-3, 1e6) if soft_cap else (0, 0)


def _named(*parts: str | bool) -> str:
    return "-".join(part for part in parts if isinstance(part, str) and part)


def prefill_variant(
    chip: Chip, dtype: str, head: int, *, causal: bool, window: bool = False, soft_cap: bool = False
) -> Variant:
    width = width_of(head)
    tile: Tile = chip.prefill[width]
    return Variant(
        name=_named("prefill", dtype, f"d{head}", causal and "causal", window and "window", soft_cap and "cap"),
        kernel=PREFILL,
        chip=chip,
        pointers=_pointers(PREFILL, dtype),
        constants={
            "HEAD": head,
            "WIDTH": width,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "CAUSAL": causal,
            "WINDOW": window,
            "SOFT_CAP": soft_cap,
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        ranges={"window": (1, MOST_WINDOW) if window else (0, 0), "soft_cap": _cap(soft_cap)},
    )


def hopper_variant(chip: Chip, dtype: str, head: int, *, causal: bool) -> Variant:
    """Prefill on Hopper's asynchronous units, without windows and soft caps."""
    width = width_of(head)
    keys = (HOPPER_BLOCK_N, width)
    return Variant(
        name=_named("prefill", "hopper", dtype, f"d{head}", causal and "causal"),
        kernel=PREFILL_HOPPER,
        chip=chip,
        pointers=_pointers(PREFILL_HOPPER, dtype),
        constants={
            "HEAD": head,
            "WIDTH": width,
            "BLOCK_N": HOPPER_BLOCK_N,
            "STAGES": HOPPER_STAGES[width],
            "CAUSAL": causal,
        },
        num_warps=4,
        num_stages=1,
        boxes={"q": (HOPPER_ROWS, width), "k": keys, "v": keys},
        registers=HOPPER_REGISTERS,
    )


def decode_variant(chip: Chip, dtype: str, head: int, *, cache: str, soft_cap: bool = False) -> Variant:
    """``cache``: ``dtype``, "int8" or "fp8".

    Raises ValueError for fp8 on a chip without it.
    """
    if cache == "fp8" and not chip.fp8:
        raise ValueError(f"capability {chip.name} has no fp8 (8.9 and later do): use an int8 cache")
    width = width_of(head)
    tile = chip.decode[width]
    rounded = cache in CACHES
    kind = "*" + (CACHES[cache] if rounded else FLOATS[dtype])
    return Variant(
        name=_named("decode", dtype, f"d{head}", rounded and cache, soft_cap and "cap"),
        kernel=DECODE,
        chip=chip,
        pointers=_pointers(DECODE, dtype) | {"keys": kind, "values": kind},
        constants={
            "HEAD": head,
            "WIDTH": width,
            "BLOCK_M": tile.block_m,
            "BLOCK_N": tile.block_n,
            "GROUPS": tile.groups,
            "SCALED": rounded,
            "SOFT_CAP": soft_cap,
            "PACKED": cache == "int8",
            "INTEGER": cache == "int8",
            "JOINED_ROWS": JOINED_ROWS,
            "JOINED": JOINED_VALUES // (JOINED_ROWS * width),
        },
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
        ranges={"soft_cap": _cap(soft_cap)},
    )


def norm_variant(chip: Chip, dtype: str, columns: int, *, layer: bool) -> Variant:
    """The norm for rows of up to ``columns``, a power of two."""
    rows, warps = norm_rows(columns)
    return Variant(
        name=_named("add", "layer" if layer else "rms", "norm", dtype, f"h{columns}"),
        kernel=ADD_NORM,
        chip=chip,
        pointers=_pointers(ADD_NORM, dtype),
        constants={"ROWS": rows, "BLOCK": columns, "LAYER": layer},
        num_warps=warps,
        num_stages=1,
        ranges={"columns": (16, columns)},
    )
