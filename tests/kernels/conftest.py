"""The library that the kernels' tests run: built once a session."""

from __future__ import annotations

from pathlib import Path

import pytest
from edgecompress_kernels.cpu.build import build
from edgecompress_kernels.cpu.isa import ISAS

from edgecompress.formats.cpu import host_features
from tests.kernels.ops import ENCODERS, LIBRARY


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every kernel that the tests name, for the best instruction set of this machine."""
    isa = next((isa for isa in ISAS.values() if set(isa.needs) <= host_features()), None)
    if isa is None:
        pytest.skip("there is no kernel for this machine's CPU")
    path = tmp_path_factory.mktemp("kernels") / "kernels.so"
    path.write_bytes(build(*LIBRARY, isa, ENCODERS))
    return path
