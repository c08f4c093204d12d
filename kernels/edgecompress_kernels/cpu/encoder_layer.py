"""One layer of a post-LayerNorm encoder over packed rows, and the next layer's query, key and value projections.

A part is a tile of rows that stays in a core's cache through attention, output projection, residual and LayerNorm,
feed-forward network with GELU, residual and LayerNorm, and the projections for the next layer's attention. Threads
synchronize once between layers, because attention reads other tiles' keys.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from edgecompress_kernels.cpu import vector as v
from edgecompress_kernels.cpu.abi import ENCODER_PARAMETERS, ENCODER_ROWS, SPARE_ROWS
from edgecompress_kernels.cpu.encoder_attention import attend_rows, block_bytes, pack_rows, tile_sizes
from edgecompress_kernels.cpu.encoder_linear import normalize, padded, product, quantize

SLOTS = ENCODER_PARAMETERS.names
_AT = ENCODER_PARAMETERS.offsets


@dataclass(frozen=True, kw_only=True, order=True)
class Encoder:
    """The sizes of an encoder's layers, all multiples of 16, and the bits of its weights."""

    hidden: int
    heads: int
    feed_forward: int
    weight_bits: int = 8  # or 7: all weights are from -63 to 63, which is faster without VNNI

    @property
    def name(self) -> str:
        return f"{self.hidden}_{self.heads}_{self.feed_forward}_{self.weight_bits}"

    @property
    def head_size(self) -> int:
        return self.hidden // self.heads


@cache
def project(kind: Encoder, vectors: int, matrices: bool, jit: Any) -> Any:
    """Project rows float32 at ``x`` to the queries, keys and values of the next attention."""
    hidden, heads, size = kind.hidden, kind.heads, kind.head_size
    wide = padded(3 * hidden)
    round_row, multiply = quantize(hidden, jit), product(hidden, 3 * hidden, kind.weight_bits, vectors, matrices, jit)
    pack = pack_rows(heads, size, 4 * wide, jit)
    smooth_at, weights_at, columns_at = _AT["qkv_smooth"], _AT["qkv_weights"], _AT["qkv_columns"]
    q_at, scales_at, sums_at, keys_at, values_at = (
        _AT[f"next_{name}"] for name in ("q", "q_scales", "q_sums", "keys", "values")
    )
    tokens_at, scale_at = _AT["tokens"], _AT["scale"]

    def run(p: int, x: int, first: int, rows: int, wide_rows: int, bytes_of: int, scales: int, lows: int) -> None:
        smooth = v.read_address(p + smooth_at)
        for r in range(rows):
            round_row(x + 4 * hidden * r, smooth, bytes_of + hidden * r, scales + 4 * r, lows + 4 * r)
        weights, columns = v.read_address(p + weights_at), v.read_address(p + columns_at)
        multiply(rows, bytes_of, scales, lows, weights, columns, wide_rows)
        tokens = v.read_address(p + tokens_at)
        pack(
            wide_rows, first, rows, tokens, (tokens + 15) >> 4, v.read_float(p + scale_at),
            v.read_address(p + q_at), v.read_address(p + scales_at), v.read_address(p + sums_at),
            v.read_address(p + keys_at), v.read_address(p + values_at),
        )  # fmt: skip

    return jit(run)


def attention(kind: Encoder, vectors: int, jit: Any) -> Any:
    """Attention of the tile's rows, by sequence and head, to ``to`` float32 [rows, hidden]."""
    hidden, heads, size = kind.hidden, kind.heads, kind.head_size
    count, per_block = tile_sizes(size, vectors)[0], block_bytes(size)
    attend = attend_rows(heads, size, vectors, jit)
    q_at, scales_at, sums_at, keys_at, values_at, starts_at, tokens_at = (
        _AT[name] for name in ("q", "q_scales", "q_sums", "keys", "values", "starts", "tokens")
    )

    def run(p: int, first: int, rows: int, to: int) -> None:
        starts = v.read_address(p + starts_at)
        blocks = (v.read_address(p + tokens_at) + 15) >> 4
        q, scales, sums = v.read_address(p + q_at), v.read_address(p + scales_at), v.read_address(p + sums_at)
        keys, values = v.read_address(p + keys_at), v.read_address(p + values_at)
        row, last = first, first + rows
        while row < last:
            while v.read_address(starts + 8) <= row:
                starts += 8
            begin, end = v.read_address(starts), v.read_address(starts + 8)
            here = min(end, last)
            for h in range(heads):
                n = row
                while n < here:
                    attend(
                        q + n * hidden + h * size, scales + 4 * (n * heads + h), sums + 4 * (n * heads + h),
                        keys + h * blocks * per_block, values + h * blocks * per_block, begin, end,
                        to + 4 * ((n - first) * hidden + h * size),
                    )  # fmt: skip
                    n += count
            row = here

    return jit(run)


def _space(kind: Encoder) -> tuple[int, int, int, int]:
    """Bytes of a tile's quantized rows, its products, its rows between attention and feed-forward, and its scales."""
    rows = ENCODER_ROWS + SPARE_ROWS
    wide = max(padded(3 * kind.hidden), padded(kind.feed_forward))
    return rows * max(kind.hidden, kind.feed_forward), 4 * rows * wide, 4 * rows * kind.hidden, 4 * rows


def project_first(kind: Encoder, vectors: int, matrices: bool, jit: Any) -> Callable[[int, int], None]:
    """Project part ``part`` of the rows ``x`` to the first layer's queries, keys and values.

    ``vectors``: sixteen-lane vectors that the registers hold. ``matrices``: use AMX tiles. Both change the speed but
    not the result.
    """
    run = project(kind, vectors, matrices, jit)
    rounded, products, _, scales_bytes = _space(kind)
    scratch = v.stack(rounded + products + 2 * scales_bytes)
    hidden = kind.hidden
    x_at, tokens_at, rows_at = _AT["x"], _AT["tokens"], _AT["rows_per_part"]

    def kernel(p: int, part: int) -> None:
        wide = scratch()
        bytes_of = wide + products
        scales = bytes_of + rounded
        each = v.read_address(p + rows_at)
        first = part * each
        rows = min(each, v.read_address(p + tokens_at) - first)
        x = v.read_address(p + x_at) + 4 * hidden * first
        run(p, x, first, rows, wide, bytes_of, scales, scales + scales_bytes)

    return kernel


def layer(kind: Encoder, vectors: int, matrices: bool, jit: Any) -> Callable[[int, int], None]:
    """Part ``part`` of one layer: from rows ``x`` to rows ``y`` and the next layer's projections."""
    hidden, forward = kind.hidden, kind.feed_forward
    attend, following = attention(kind, vectors, jit), project(kind, vectors, matrices, jit)
    round_hidden, round_forward = quantize(hidden, jit), quantize(forward, jit, bent=True)
    norm = normalize(hidden, jit)
    out_product, up_product, down_product = (
        product(inputs, outputs, kind.weight_bits, vectors, matrices, jit)
        for inputs, outputs in ((hidden, hidden), (hidden, forward), (forward, hidden))
    )
    rounded, products, between, scales_bytes = _space(kind)
    scratch = v.stack(rounded + products + between + 2 * scales_bytes)
    narrow_row, forward_row, row_bytes = 4 * padded(hidden), 4 * padded(forward), 4 * hidden
    x_at, y_at, tokens_at, rows_at = _AT["x"], _AT["y"], _AT["tokens"], _AT["rows_per_part"]
    out_smooth, out_weights, out_columns = _AT["out_smooth"], _AT["out_weights"], _AT["out_columns"]
    up_smooth, up_weights, up_columns = _AT["up_smooth"], _AT["up_weights"], _AT["up_columns"]
    down_smooth, down_weights, down_columns = _AT["down_smooth"], _AT["down_weights"], _AT["down_columns"]
    gamma1, beta1, epsilon1 = _AT["norm1_gamma"], _AT["norm1_beta"], _AT["epsilon1"]
    gamma2, beta2, epsilon2 = _AT["norm2_gamma"], _AT["norm2_beta"], _AT["epsilon2"]
    qkv_weights = _AT["qkv_weights"]

    def kernel(p: int, part: int) -> None:
        wide = scratch()
        middle = wide + products
        bytes_of = middle + between
        scales = bytes_of + rounded
        lows = scales + scales_bytes
        each = v.read_address(p + rows_at)
        first = part * each
        rows = min(each, v.read_address(p + tokens_at) - first)
        x, y = v.read_address(p + x_at) + first * row_bytes, v.read_address(p + y_at) + first * row_bytes

        attend(p, first, rows, wide)
        smooth = v.read_address(p + out_smooth)
        for r in range(rows):
            round_hidden(wide + r * row_bytes, smooth, bytes_of + hidden * r, scales + 4 * r, lows + 4 * r)
        weights, columns = v.read_address(p + out_weights), v.read_address(p + out_columns)
        out_product(rows, bytes_of, scales, lows, weights, columns, wide)

        gamma, beta, epsilon = v.read_address(p + gamma1), v.read_address(p + beta1), v.read_float(p + epsilon1)
        smooth = v.read_address(p + up_smooth)
        for r in range(rows):
            place = middle + r * row_bytes
            norm(wide + r * narrow_row, x + r * row_bytes, gamma, beta, epsilon, place)
            round_hidden(place, smooth, bytes_of + hidden * r, scales + 4 * r, lows + 4 * r)
        weights, columns = v.read_address(p + up_weights), v.read_address(p + up_columns)
        up_product(rows, bytes_of, scales, lows, weights, columns, wide)

        smooth = v.read_address(p + down_smooth)
        for r in range(rows):
            round_forward(wide + r * forward_row, smooth, bytes_of + forward * r, scales + 4 * r, lows + 4 * r)
        weights, columns = v.read_address(p + down_weights), v.read_address(p + down_columns)
        down_product(rows, bytes_of, scales, lows, weights, columns, wide)

        gamma, beta, epsilon = v.read_address(p + gamma2), v.read_address(p + beta2), v.read_float(p + epsilon2)
        for r in range(rows):
            norm(wide + r * narrow_row, middle + r * row_bytes, gamma, beta, epsilon, y + r * row_bytes)
        if v.read_address(p + qkv_weights) != 0:
            following(p, y, first, rows, wide, bytes_of, scales, lows)

    return kernel
