"""Arrays that a kernel reads through Hopper's copy engine: what reaches the driver for them, and what is refused."""

from __future__ import annotations

import ctypes
import dataclasses
from pathlib import Path
from typing import Any

import pytest
from edgecompress_kernels.gpu.chips import chip, hopper_sizes
from edgecompress_kernels.gpu.launch import Launcher, LaunchError, TensorMap, Tokens
from edgecompress_kernels.gpu.record import write_kernel
from edgecompress_kernels.gpu.variants import hopper_variant

from tests.gpu.test_launch import CUBIN, FakeDriver, record_of

HOPPER = hopper_variant(chip((9, 0)), "float16", 128, causal=True)
Q = Tokens(address=4096, heads=32, tokens=1000, width=128, head_stride=128, token_stride=4096)
VALUES: dict[str, Any] = {
    **{"q": Q, "k": dataclasses.replace(Q, address=8192, heads=8), "v": dataclasses.replace(Q, address=16384)},
    **{"out": 32768, "q_starts": 65536, "k_starts": 131072, "out_token": 4096, "out_head": 128, "heads": 32},
    **{"texts": 1, "blocks": 8, "group": 4, "section": 16, "scale": 0.125, "programs": 132},
}


@pytest.fixture
def launcher(tmp_path: Path) -> tuple[Launcher, FakeDriver]:
    write_kernel(record_of(HOPPER), CUBIN, tmp_path)
    driver = FakeDriver(capability=(9, 0), most_shared_bytes=232448)
    return Launcher(tmp_path, driver), driver


def test_a_map_goes_with_its_shape_and_its_strides(launcher: tuple[Launcher, FakeDriver]) -> None:
    launcher[0].launch(HOPPER.name, VALUES)
    _, grid, _, _, arguments, _ = launcher[1].calls[-1]
    assert grid == (132, 1, 1)
    maps = [arguments[7 * i] for i in range(3)]
    assert maps[0] == TensorMap(4096, (32, 1000, 128), (256, 8192), (1, 64, 64), 3, 2)
    assert [of.address for of in maps] == [4096, 8192, 16384]
    assert [of.box for of in maps] == [(1, 64, 64), (1, 128, 64), (1, 128, 64)]
    assert [(type(a), a.value) for a in arguments[8:14]] == [
        *((ctypes.c_int32, n) for n in (8, 1000, 128)),
        *((ctypes.c_int64, n) for n in (128, 4096, 1)),
    ]
    assert [a.value for a in arguments[21:24]] == [32768, 65536, 131072]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": 4096}, "q of .* is read through the copy engine: pass it as Tokens"),
        ({"k": dataclasses.replace(Q, address=4104)}, "k of .* its address 0x1008 is not a multiple of 16"),
        ({"v": dataclasses.replace(Q, token_stride=4100)}, r"v of .* its strides \(256, 8200\) in bytes must be"),
        ({"v": dataclasses.replace(Q, head_stride=0)}, "must be multiples of 16 above 0"),
        ({"k": dataclasses.replace(Q, tokens=0)}, r"k of .* has the shape \(32, 0, 128\)"),
    ],
)
def test_what_the_copy_engine_cannot_read_is_refused(
    change: dict[str, Any], message: str, launcher: tuple[Launcher, FakeDriver]
) -> None:
    with pytest.raises(LaunchError, match=message):
        launcher[0].launch(HOPPER.name, VALUES | change)
    assert "launch" not in [call[0] for call in launcher[1].calls]


@pytest.mark.parametrize(
    ("heads", "keys", "section"),
    [
        (256, 2048, 60),  # 15 key and value heads of a mebibyte each
        (32, 2**21, 4),  # never less than one head's group
        (32, 1, 32),  # never more than there are
        (32, 0, 32),  # texts without a key
    ],
)
def test_heads_are_taken_together_while_they_fit_in_a_quarter_of_the_cache(heads: int, keys: int, section: int) -> None:
    device = {"processors": 132, "cache_bytes": 60 * 2**20}
    sizes = hopper_sizes(longest=130, heads=heads, kv_heads=heads // 4, texts=1, keys=keys, head=128, **device)
    assert sizes["section"] == section
    assert (sizes["heads"], sizes["texts"], sizes["blocks"], sizes["group"]) == (heads, 1, 2, 4)
    assert sizes["programs"] == min(132, 2 * heads)
