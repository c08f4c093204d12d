"""Every instruction set of this machine gives the same bits."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgecompress_kernels.cpu.isa import ISAS, X86_64_V4_VNNI, Isa

from edgecompress.formats.cpu import host_arch, host_features
from tests.kernels.cases import Expected, check, library_for, run_cases

pytestmark = pytest.mark.slow

LESSER = [isa for isa in ISAS.values() if isa.arch == X86_64_V4_VNNI.arch and isa is not X86_64_V4_VNNI]


@pytest.mark.parametrize("isa", LESSER, ids=[isa.name for isa in LESSER])
def test_outputs_are_those_of_float64_and_of_the_best_instruction_set(
    isa: Isa, cases: tuple[Path, Expected], best_outputs: dict[str, object], tmp_path: Path
) -> None:
    if isa.arch != host_arch() or not set(isa.needs) <= host_features():
        pytest.skip(f"this machine has no {isa.name}")
    check(run_cases(cases[0], library_for(isa, tmp_path)), cases[1], best_outputs)
