"""``edgecompress kernels``."""

from __future__ import annotations

import argparse

from edgecompress_kernels.cpu.abi import OPERATORS

from edgecompress.terminal import add_json_flag, emit_json, table

ROWS = tuple(
    {"kernel": each.kernel, "op": each.name, "in_place_of": each.in_place_of, "takes": each.takes}
    for each in OPERATORS
    if each.kernel
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
    print("\nEvery kernel exists for every instruction set and gives identical bits on all. aarch64 was not timed.\n")
    print(table(["kernel", "computes", "takes"], [list(row.values()) for row in GPU_ROWS]))
    print(f"\nFor compute capability {', '.join(capabilities())}: {verified()}. No bundle contains them yet.")
    return 0
