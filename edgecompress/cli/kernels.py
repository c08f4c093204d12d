"""``edgecompress kernels``."""

from __future__ import annotations

import argparse

from edgecompress.terminal import add_json_flag, emit_json, table
from edgecompress.types.recipe import ATTENTION, ENCODER, LAYER, MATMUL

ROWS = (
    {
        "kernel": MATMUL,
        "op": "MatMulBlocks",
        "in_place_of": "MatMulNBits at accuracy level 4",
        "takes": "int4 and int8 in blocks of 32 to 256, with or without zero points",
    },
    {
        "kernel": ATTENTION,
        "op": "CachedAttention",
        "in_place_of": "GroupQueryAttention",
        "takes": "heads of 16 to 256 in sixteens, any group, windows, rotation by halves, a float32 cache",
    },
    {
        "kernel": ATTENTION,
        "op": "CachedAttentionInt8",
        "in_place_of": "GroupQueryAttention with --kv-cache int8",
        "takes": "the same over a cache of int8, one scale a channel, written as GroupQueryAttention writes it",
    },
    {
        "kernel": LAYER,
        "op": "DecoderLayer",
        "in_place_of": "the two above, and the RMS norms, residuals and SiLU gate between them",
        "takes": "whole layers, handed to threads once; what they consist of is read off the graph",
    },
    {
        "kernel": ENCODER,
        "op": "EncoderLayer",
        "in_place_of": "an int8-dynamic layer: attention, LayerNormalization, GELU",
        "takes": "layers in BERT's order, heads of 16 to 256 in sixteens; texts of any lengths, packed",
    },
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_json_flag(parser)


def run(options: argparse.Namespace) -> int:
    from edgecompress_kernels.cpu.isa import ISAS
    from edgecompress_kernels.gpu.catalogue import ROWS as GPU_ROWS
    from edgecompress_kernels.gpu.catalogue import capabilities, verified

    if options.json:
        sets = [
            {"isa": isa.name, "needs": list(isa.needs), "verified_on": list(isa.verified_on)} for isa in ISAS.values()
        ]
        rows = [{**row, "instruction_sets": sets} for row in ROWS]
        gpu_rows = [
            {**row, "compute_capabilities": capabilities(row["kernel"]), "verified": verified()} for row in GPU_ROWS
        ]
        emit_json([*rows, *gpu_rows])
        return 0
    print(table(["kernel", "op", "in place of", "takes"], [list(row.values()) for row in ROWS]))
    print()
    cells = [[isa.name, ", ".join(isa.needs), ", ".join(isa.verified_on)] for isa in ISAS.values()]
    print(table(["instruction set", "needs", "verified on"], cells))
    print(
        "\nEvery kernel is made for every instruction set and gives the same bits on all; none for aarch64 was timed.\n"
    )
    print(table(["kernel", "computes", "takes"], [list(row.values()) for row in GPU_ROWS]))
    print(f"\nFor compute capability {', '.join(capabilities())}: {verified()}. No bundle holds them yet.")
    return 0
