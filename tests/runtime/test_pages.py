"""Asking for huge pages changes no byte, whatever the kernel answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from edgecompress.runtime import pages


def test_what_was_allocated_since_keeps_its_bytes() -> None:
    before = pages.anonymous_regions()
    assert before
    array = np.arange(6 << 20, dtype=np.int64)
    collapsed = pages.collapse_new(before)
    assert collapsed % (2 << 20) == 0
    np.testing.assert_array_equal(array, np.arange(6 << 20, dtype=np.int64))


def test_where_the_kernel_says_never_nothing_is_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = tmp_path / "enabled"
    setting.write_text("always madvise [never]\n")
    monkeypatch.setattr(pages, "_ENABLED", setting)
    array = np.ones(4 << 20)
    assert pages.collapse_new({}) == 0
    monkeypatch.setattr(pages, "_ENABLED", tmp_path / "missing")
    assert pages.collapse_new({}) == 0
    monkeypatch.setattr(pages, "_MAPS", tmp_path / "missing")
    assert pages.anonymous_regions() == {}
    assert array.sum() == 4 << 20
