"""What is listed needs neither Triton nor torch."""

from __future__ import annotations

import subprocess
import sys


def test_listing_imports_neither_triton_nor_torch() -> None:
    source = (
        "import sys\n"
        "from edgecompress.cli import main\n"
        "assert main(['kernels']) == 0\n"
        "print(sorted({'triton', 'torch', 'cuda'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, check=True)
    assert "gpu-prefill" in done.stdout
    assert "interpreter, not yet run on a GPU" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"
