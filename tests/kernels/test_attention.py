"""CachedAttention against float64: grouped heads, windows, rotation, splits, a poisoned cache, rows of any length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
from edgecompress_kernels.reference import attention as expected_attention
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.ops import ATTENTIONS, attention, place_feeds, turned


def feeds_of(
    rng: np.random.Generator,
    batch: int,
    tokens: int,
    past: list[int],
    heads: int,
    kv_heads: int,
    size: int,
    rotary: int,
) -> dict[str, Any]:
    capacity = max(past) + tokens + 5
    feeds = {
        "q": rng.standard_normal((batch, tokens, (heads + 2 * kv_heads) * size)).astype(np.float32),
        "past_k": rng.standard_normal((batch, kv_heads, capacity, size)).astype(np.float32),
        "past_v": rng.standard_normal((batch, kv_heads, capacity, size)).astype(np.float32),
    } | place_feeds(tokens, past, capacity, rotary)
    for row, p in enumerate(past):  # nothing beyond the past may ever be read
        feeds["past_k"][row, :, p:] = np.nan
        feeds["past_v"][row, :, p:] = np.nan
    return feeds


def expected_of(feeds: dict[str, Any], past: list[int], heads: int, kv_heads: int, size: int, window: int) -> Any:
    """(y [B, T, H * D], keys and values with the new ones behind the past), float64."""
    batch, tokens, _ = feeds["q"].shape
    q, k, v = turned(feeds, heads, kv_heads, size)
    keys, values, y = feeds["past_k"].copy(), feeds["past_v"].copy(), np.zeros((batch, tokens, heads * size))
    for row, p in enumerate(past):
        keys[row, :, p : p + tokens], values[row, :, p : p + tokens] = k[row], v[row]
        found = expected_attention(q[row], keys[row], values[row], p, size**-0.5, window)
        y[row] = found.transpose(1, 0, 2).reshape(tokens, -1)
    return y, keys, values


def check(
    library: Path,
    rng: np.random.Generator,
    *,
    tokens: int,
    past: list[int],
    heads: int,
    kv_heads: int,
    size: int,
    rotary: int = 0,
    window: int = -1,
) -> None:
    feeds = feeds_of(rng, len(past), tokens, past, heads, kv_heads, size, rotary)
    session = attention(library, heads=heads, kv_heads=kv_heads, size=size, rotary=rotary, window=window)
    y, keys, values = expected_of(feeds, past, heads, kv_heads, size, window)
    found = session.run(None, feeds)
    np.testing.assert_allclose(found[0], y, rtol=0, atol=3e-6)
    for row, p in enumerate(past):
        np.testing.assert_allclose(found[1][row, :, : p + tokens], keys[row, :, : p + tokens], rtol=0, atol=1e-6)
        np.testing.assert_array_equal(found[2][row, :, : p + tokens], values[row, :, : p + tokens])


@pytest.mark.parametrize("size", ATTENTIONS)
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 37), (1, 1100), (5, 600), (40, 0), (70, 530)])
def test_every_head_size(library: Path, size: int, tokens: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=tokens, past=[past], heads=6, kv_heads=2, size=size, rotary=size // 32 * 32)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (5, 1), (7, 1), (16, 1), (12, 2)])
@pytest.mark.parametrize("past", [3, 700])
def test_every_group(library: Path, heads: int, kv_heads: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=1, past=[past], heads=heads, kv_heads=kv_heads, size=64)


@pytest.mark.parametrize("window", [1, 9, 512, 5000])
@pytest.mark.parametrize(("tokens", "past"), [(1, 1500), (3, 20), (33, 990)])
def test_windows(library: Path, window: int, tokens: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=tokens, past=[past], heads=4, kv_heads=2, size=64, rotary=64, window=window)


def test_rows_of_a_batch_have_lengths_of_their_own(library: Path, rng: np.random.Generator) -> None:
    check(library, rng, tokens=1, past=[3, 640, 0, 63], heads=4, kv_heads=2, size=64, rotary=64)


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 20), past=st.integers(0, 1200), kv_heads=st.integers(1, 3), group=st.integers(1, 9),
    window=st.sampled_from([-1, 1, 40, 600]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_any_shape(library: Path, tokens: int, past: int, kv_heads: int, group: int, window: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    check(library, rng, tokens=tokens, past=[past], heads=kv_heads * group, kv_heads=kv_heads, size=64, window=window)


@pytest.mark.parametrize("past", [10, 509, 1030])
def test_tokens_together_are_bit_for_bit_the_tokens_one_by_one(
    library: Path, past: int, rng: np.random.Generator
) -> None:
    session = attention(library, heads=6, kv_heads=2, size=64, rotary=64)
    feeds = feeds_of(rng, 1, 5, [past], 6, 2, 64, 64)
    together = session.run(None, feeds)
    keys, values = feeds["past_k"], feeds["past_v"]
    for t in range(5):
        one = feeds | {"q": feeds["q"][:, t : t + 1], "positions": feeds["positions"][:, t : t + 1]}
        one |= {"last": np.array([past + t], dtype=np.int32), "total": np.array(past + t + 1, dtype=np.int32)}
        y, keys, values = session.run(None, one | {"past_k": keys, "past_v": values})
        assert np.array_equal(y[0, 0], together[0][0, t])


@pytest.mark.parametrize("threads", [1, 2])
def test_the_cache_is_written_in_place(library: Path, threads: int, rng: np.random.Generator) -> None:
    session = attention(library, heads=4, kv_heads=2, size=64, threads=threads)
    feeds = feeds_of(rng, 1, 1, [600], 4, 2, 64, 0)
    expected = session.run(None, feeds)[0]
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    binding.bind_ortvalue_output("k_out", values["past_k"])
    binding.bind_ortvalue_output("v_out", values["past_v"])
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected)
    assert not np.isnan(feeds["past_k"][0, :, 600]).any()
    assert np.isnan(feeds["past_k"][0, :, 601:]).all()


def test_keys_and_values_apart(library: Path, rng: np.random.Generator) -> None:
    feeds = feeds_of(rng, 1, 3, [7], 4, 2, 64, 0)
    expected = attention(library, heads=4, kv_heads=2, size=64).run(None, feeds)[0]
    q, k, v = (np.ascontiguousarray(x) for x in np.split(feeds["q"], [256, 384], axis=-1))
    apart = attention(library, heads=4, kv_heads=2, size=64, packed=False)
    assert np.array_equal(apart.run(None, feeds | {"q": q, "k": k, "v": v})[0], expected)


def test_bad_input_comes_back_as_a_message(library: Path, rng: np.random.Generator) -> None:
    session = attention(library, heads=4, kv_heads=2, size=64, rotary=64)
    feeds = feeds_of(rng, 1, 2, [7], 4, 2, 64, 64)
    for change, message in (
        ({"q": feeds["q"][..., :-1]}, "width of its heads"),
        ({"past_k": feeds["past_k"][..., :32]}, "the past must be"),
        ({"positions": feeds["positions"] + 1000}, "beyond the rotary table"),
        ({"last": np.array([100], dtype=np.int32)}, "does not fit total_sequence_length"),
        ({"cos": feeds["cos"][:, :16]}, "do not fit each other"),
    ):
        with pytest.raises(Exception, match=message):
            session.run(None, feeds | change)
    other, narrow = feeds_of(rng, 1, 1, [7], 4, 2, 32, 0), attention(library, heads=4, kv_heads=2, size=32)
    with pytest.raises(Exception, match="no kernel for this head_size"):
        narrow.run(None, other)
    with pytest.raises(Exception, match="multiple of kv_num_heads"):
        attention(library, heads=5, kv_heads=2, size=64)
