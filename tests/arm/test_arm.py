"""The kernels for aarch64, really run: inside onnxruntime of an emulated machine (``make test-arm`` sets it up).

The emulator's CPU has no more than the kernels were compiled for, so an instruction too many would end the process.
Outputs are held against float64, and against what this machine's kernels give: they are the same, bit for bit.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_kernels.cpu.isa import CORTEX_A72, CORTEX_A76, CORTEX_A78, Isa

from edgecompress.formats.cpu import host_features
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load
from tests.arm import machine
from tests.kernels.cases import Expected, check, library_for
from tests.kernels.ops import best_isa

pytestmark = pytest.mark.skipif(not machine.ready(), reason="no aarch64 machine: `make test-arm` sets one up")
CPUS = {CORTEX_A72: "cortex-a72", CORTEX_A76: "cortex-a76", CORTEX_A78: "neoverse-n1"}  # qemu 7.2 has no cortex-a78
DRIVER = Path(__file__).with_name("driver.py")


@pytest.mark.parametrize("isa", CPUS, ids=lambda isa: isa.name)
def test_outputs_are_those_of_float64_and_of_this_machine(
    isa: Isa, cases: tuple[Path, Expected], best_outputs: dict[str, Any], tmp_path: Path
) -> None:
    folder, expected = cases
    done = machine.run(CPUS[isa], [DRIVER, library_for(isa, tmp_path), folder, tmp_path])
    assert done.returncode == 0, done.stderr[-2000:]
    found = {}
    for name in expected:
        with np.load(tmp_path / f"{name}.npz") as outputs:
            found[name] = outputs["y"]
    check(found, expected, best_outputs)
    if isa is CORTEX_A76:
        lacking = machine.run("cortex-a72", [DRIVER, tmp_path / f"{isa.name}.so", folder, tmp_path])
        assert "these kernels are for cortex-a76, and this CPU lacks asimddp" in lacking.stderr


@pytest.mark.skipif(best_isa(host_features()) is None, reason="no kernel for this machine's CPU")
def test_a_bundle_for_a_raspberry_pi_gives_its_text_there(kernel_bundle: Path, pi_bundle: Path) -> None:
    prompt, options = "The import statement", ["--max-new-tokens", "12", "--temperature", "0", "--raw", "--json"]
    done = machine.run("cortex-a76", ["-m", "edgecompress", "run", pi_bundle, prompt, *options])
    assert done.returncode == 0, done.stderr[-2000:]
    with load(kernel_bundle) as generator:
        assert isinstance(generator, Generator)
        expected = generator.generate(prompt, max_new_tokens=12, temperature=0.0)
    assert json.loads(done.stdout)["results"][0]["token_ids"] == list(expected.token_ids)
    other = machine.run("cortex-a72", ["-m", "edgecompress", "run", pi_bundle, prompt, *options])
    assert other.returncode == 3
    assert "this CPU lacks asimddp, asimdhp" in other.stderr
