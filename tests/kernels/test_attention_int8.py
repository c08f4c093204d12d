"""CachedAttentionInt8 against float64 over the cache's own numbers, and against what its roundings allow.

Two bounds, both element by element and for any input. Near: what the kernel computes is said by ``reference`` with the
same roundings, bit for bit up to the weights, whose exponentials are within 5e-6 of themselves; a weight that lies so
near to the middle of two whole numbers may fall to either side, and no other. Exact: of a block of 64 keys each weight
is half a step of 1 / 32767 away at most, of a sum that is at least 1, and a query's number half a step of its largest.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
from edgecompress_kernels.cpu.attention_int8 import BLOCK, LEVELS
from edgecompress_kernels.reference import attention as exact_attention
from edgecompress_kernels.reference import block_softmax, rounded_cache, rounded_scores
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.kernels.ops import ATTENTIONS, attention, place_feeds, turned

POWER = 5e-6  # of the exponential, itself; what is rounded to 15 bits needs no more
EPSILON = 2.0**-24


def feeds_of(
    rng: np.random.Generator,
    tokens: int,
    past: list[int],
    heads: int,
    kv_heads: int,
    size: int,
    rotary: int = 0,
    spread: float = 1.0,
) -> dict[str, Any]:
    """A cache of numbers of all sizes, garbage beyond the past; scales that differ from channel to channel."""
    batch, capacity = len(past), max(past) + tokens + 5
    channels = np.exp(rng.standard_normal((2, kv_heads, size))).astype(np.float32)
    kept = (batch, kv_heads, capacity, size)
    q = rng.standard_normal((batch, tokens, (heads + 2 * kv_heads) * size))
    q[..., : heads * size] *= spread
    q[..., heads * size :] *= channels.reshape(-1)
    return place_feeds(tokens, past, capacity, rotary) | {
        "q": q.astype(np.float32),
        "past_k": rng.integers(-128, 128, kept, dtype=np.int8),
        "past_v": rng.integers(-128, 128, kept, dtype=np.int8),
        "k_scale": (channels[0] * np.float32(2 / 127))[None, :, None],  # about every twentieth new number is clipped
        "v_scale": (channels[1] * np.float32(2 / 127))[None, :, None],
    }


def scaled(feeds: dict[str, Any], heads: int, kv_heads: int, size: int) -> Any:
    """Queries [B, H, T, D], times the scale, keys and values [B, Hk, T, D] in float32, as the kernel has them."""
    q, k, v = turned(feeds, heads, kv_heads, size)
    return q * np.float32(size**-0.5), k, v


def check_row(found: Any, q: Any, k_scale: Any, v_scale: Any, keys: Any, values: Any, last: int, window: int) -> None:
    """One row [D] over keys and values int8 [S, D]."""
    first = max(0, last - window + 1) if window > 0 else 0
    keys, values = keys[first : last + 1], values[first : last + 1].astype(np.float64)
    scores = rounded_scores(q, k_scale, keys)
    exponentials, unit = block_softmax(scores, first, BLOCK)
    precise = exponentials * LEVELS
    whole = np.rint(precise)
    weights = whole * unit
    near = weights @ values / weights.sum()
    largest = np.abs(values).max(0)
    doubtful = (np.abs(np.abs(precise - whole) - 0.5) <= POWER * precise + 1e-3) * unit
    flips = doubtful @ np.abs(values - near) / (weights.sum() - doubtful.sum())
    # every block is scaled anew, and so is every split: an exponential and two roundings each, of sums of this size
    sums = 16 * (len(keys) // BLOCK + 2) * EPSILON * largest
    np.testing.assert_array_less(np.abs(found / v_scale - near), flips + sums + 1e-6, err_msg="the roundings' result")
    truth = exact_attention(q[None, None], keys[None] * k_scale.astype(np.float64), values[None], len(keys) - 1, 1.0)
    bound = share(q, k_scale, keys) * largest + sums + 1e-6
    np.testing.assert_array_less(np.abs(found / v_scale - truth[0, 0]), bound, err_msg="the exact result")


def share(q: Any, k_scale: Any, keys: Any) -> float:
    """How far a row's result may be from the exact one, of the largest value: all roundings at their worst, at once."""
    scaled = np.abs(q * k_scale).astype(np.float64)
    reach = (scaled.max() / LEVELS / 2 + 5 * EPSILON * scaled) @ np.abs(keys.astype(np.float64)).T  # of a score
    drift = np.expm1(reach.max()) + BLOCK * (0.5 / LEVELS + POWER)  # of the weights, of their sum
    return float(2 * drift / (1 - drift)) if drift < 1 else 2.0


def exact_of(feeds: dict[str, Any], past: int, heads: int, kv_heads: int, size: int, window: int) -> tuple[Any, float]:
    """y [1, T, H * D] of one text in float64 over the cache that is to be written, and how far one may be from it."""
    q, k, v = scaled(feeds, heads, kv_heads, size)
    tokens, scales = q.shape[2], [feeds[name][0, :, 0] for name in ("k_scale", "v_scale")]
    kept = [
        np.concatenate([feeds[name][0, :, :past], rounded_cache(new[0], scale)], axis=1)
        for name, new, scale in (("past_k", k, scales[0]), ("past_v", v, scales[1]))
    ]
    keys, values = (x * scale[:, None].astype(np.float64) for x, scale in zip(kept, scales, strict=True))
    y = exact_attention(q[0], keys, values, past, 1.0, window)
    worst = max(share(q[0, h, t], scales[0][of], kept[0][of]) for h in range(heads) for t in range(tokens)
                for of in [h * kv_heads // heads])  # fmt: skip
    return y.transpose(1, 0, 2).reshape(1, tokens, -1), worst * np.abs(values).max()


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
    spread: float = 1.0,
) -> None:
    feeds = feeds_of(rng, tokens, past, heads, kv_heads, size, rotary, spread)
    session = attention(library, heads=heads, kv_heads=kv_heads, size=size, rotary=rotary, window=window, int8=True)
    y, keys, values = session.run(None, feeds)
    q, k, v = scaled(feeds, heads, kv_heads, size)
    k_scale, v_scale = feeds["k_scale"][0, :, 0], feeds["v_scale"][0, :, 0]
    for row, p in enumerate(past):
        for found, new, scale, before in ((keys, k, k_scale, "past_k"), (values, v, v_scale, "past_v")):
            np.testing.assert_array_equal(found[row, :, p : p + tokens], rounded_cache(new[row], scale))
            np.testing.assert_array_equal(found[row, :, :p], feeds[before][row, :, :p])
            np.testing.assert_array_equal(found[row, :, p + tokens :], feeds[before][row, :, p + tokens :])
        for t in range(tokens):
            for h in range(heads):
                of = h * kv_heads // heads
                mine = y[row, t, h * size : (h + 1) * size]
                check_row(mine, q[row, h, t], k_scale[of], v_scale[of], keys[row, of], values[row, of], p + t, window)


@pytest.mark.parametrize("size", ATTENTIONS)
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 37), (1, 1100), (5, 600), (40, 0)])
def test_every_head_size(library: Path, size: int, tokens: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=tokens, past=[past], heads=6, kv_heads=2, size=size, rotary=size // 32 * 32)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (4, 4), (3, 1), (5, 1), (7, 1), (8, 1), (16, 1), (12, 2)])
@pytest.mark.parametrize("past", [0, 1, 63, 700])
def test_every_group(library: Path, heads: int, kv_heads: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=1, past=[past], heads=heads, kv_heads=kv_heads, size=64)


@pytest.mark.parametrize("window", [1, 9, 512, 5000])
@pytest.mark.parametrize(("tokens", "past"), [(1, 1500), (3, 20), (33, 990)])
def test_windows(library: Path, window: int, tokens: int, past: int, rng: np.random.Generator) -> None:
    check(library, rng, tokens=tokens, past=[past], heads=4, kv_heads=2, size=64, rotary=64, window=window)


def test_rows_of_a_batch_have_lengths_of_their_own(library: Path, rng: np.random.Generator) -> None:
    check(library, rng, tokens=1, past=[3, 640, 0, 63], heads=4, kv_heads=2, size=64, rotary=64)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    tokens=st.integers(1, 9), past=st.integers(0, 700), kv_heads=st.integers(1, 3), group=st.integers(1, 9),
    window=st.sampled_from([-1, 1, 40, 600]), spread=st.sampled_from([0.0, 1e-30, 0.1, 1.0, 20.0]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_any_shape(
    library: Path, tokens: int, past: int, kv_heads: int, group: int, window: int, spread: float, seed: int
) -> None:
    check(
        library, np.random.default_rng(seed), tokens=tokens, past=[past], heads=kv_heads * group, kv_heads=kv_heads,
        size=64, window=window, spread=spread,
    )  # fmt: skip


@pytest.mark.parametrize("size", [128, 256])
def test_the_largest_sums_that_there_are(library: Path, size: int, rng: np.random.Generator) -> None:
    """Every product of one sign and as large as it can be: 32 bits hold them."""
    feeds = feeds_of(rng, 1, [2 * BLOCK - 1], 2, 1, size)
    feeds["q"][:], feeds["k_scale"][:], feeds["v_scale"][:] = -1, 1 / 128, 1 / 128
    feeds["past_k"][:], feeds["past_v"][:] = -128, -128
    y = attention(library, heads=2, kv_heads=1, size=size, int8=True).run(["y"], feeds)[0]
    np.testing.assert_array_equal(y, np.full_like(y, -1))


def test_it_is_as_near_as_the_cache_s_own_rounding_lets_it(library: Path, rng: np.random.Generator) -> None:
    """The kernel's roundings cost less than a fiftieth of what the cache's cost; a hundred and eightieth was found."""
    size, past = 128, 1000
    keys, values = rng.standard_normal((2, 2, past + 6, size))
    feeds = feeds_of(rng, 1, [past], 12, 2, size)
    for name, numbers in (("k", keys), ("v", values)):
        scale = (np.abs(numbers).max(1) / 127).astype(np.float32)
        feeds[f"past_{name}"], feeds[f"{name}_scale"] = rounded_cache(numbers, scale)[None], scale[None, :, None]
    y, k, v = attention(library, heads=12, kv_heads=2, size=size, int8=True).run(None, feeds)
    q, new_k, new_v = scaled(feeds, 12, 2, size)
    keys[:, past], values[:, past] = new_k[0, :, 0], new_v[0, :, 0]
    kept = exact_attention(q[0], k[0] * feeds["k_scale"][0], v[0] * feeds["v_scale"][0], past, 1.0)
    unrounded = exact_attention(q[0], keys, values, past, 1.0)
    cost = np.sqrt(np.square(kept - unrounded).mean())
    assert np.sqrt(np.square(y.reshape(12, size) - kept[:, 0]).mean()) < cost / 50


@pytest.mark.parametrize("past", [10, 509, 1030])
def test_tokens_together_are_bit_for_bit_the_tokens_one_by_one(
    library: Path, past: int, rng: np.random.Generator
) -> None:
    session = attention(library, heads=6, kv_heads=2, size=64, rotary=64, int8=True)
    feeds = feeds_of(rng, 5, [past], 6, 2, 64, 64)
    together = session.run(None, feeds)
    keys, values = feeds["past_k"], feeds["past_v"]
    for t in range(5):
        one = feeds | {"q": feeds["q"][:, t : t + 1], "positions": feeds["positions"][:, t : t + 1]}
        one |= {"last": np.array([past + t], dtype=np.int32), "total": np.array(past + t + 1, dtype=np.int32)}
        y, keys, values = session.run(None, one | {"past_k": keys, "past_v": values})
        assert np.array_equal(y[0, 0], together[0][0, t])


@pytest.mark.parametrize(("tokens", "past"), [(1, 900), (70, 600)])
def test_bits_depend_neither_on_threads_nor_on_what_lies_beyond(
    library: Path, tokens: int, past: int, rng: np.random.Generator
) -> None:
    feeds = feeds_of(rng, tokens, [past], 6, 2, 64, 64)
    other = feeds | {name: feeds[name].copy() for name in ("past_k", "past_v")}
    for name in ("past_k", "past_v"):
        other[name][:, :, past:] = ~other[name][:, :, past:]
    one, two = (
        attention(library, heads=6, kv_heads=2, size=64, rotary=64, threads=n, int8=True).run(["y"], given)[0]
        for n, given in ((1, feeds), (2, other))
    )
    assert np.array_equal(one, two)


@pytest.mark.parametrize("threads", [1, 2])
def test_the_cache_is_written_in_place(library: Path, threads: int, rng: np.random.Generator) -> None:
    session = attention(library, heads=4, kv_heads=2, size=64, threads=threads, int8=True)
    feeds = feeds_of(rng, 1, [600], 4, 2, 64)
    before = feeds["past_k"].copy()
    expected = session.run(None, feeds)
    binding = session.io_binding()
    values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in feeds.items()}
    for name, value in values.items():
        binding.bind_ortvalue_input(name, value)
    binding.bind_output("y")
    binding.bind_ortvalue_output("k_out", values["past_k"])
    binding.bind_ortvalue_output("v_out", values["past_v"])
    session.run_with_iobinding(binding)
    assert np.array_equal(binding.copy_outputs_to_cpu()[0], expected[0])
    np.testing.assert_array_equal(feeds["past_k"], expected[1])
    np.testing.assert_array_equal(np.delete(feeds["past_k"], 600, 2), np.delete(before, 600, 2))


def test_a_query_that_is_not_finite_gives_a_row_that_is_not(library: Path, rng: np.random.Generator) -> None:
    feeds = feeds_of(rng, 3, [600], 4, 2, 64)
    expected = attention(library, heads=4, kv_heads=2, size=64, window=40, int8=True).run(["y"], feeds)[0]
    feeds["q"][0, 1, 70], feeds["q"][0, 2, 130] = np.nan, np.inf  # of the second head, of the third
    found = attention(library, heads=4, kv_heads=2, size=64, window=40, int8=True).run(["y"], feeds)[0]
    assert np.isnan(found[0, 1, 64:128]).all()
    assert np.isnan(found[0, 2, 128:192]).all()
    expected[0, 1, 64:128], expected[0, 2, 128:192] = np.nan, np.nan
    np.testing.assert_array_equal(found, expected)


def test_keys_and_values_apart(library: Path, rng: np.random.Generator) -> None:
    feeds = feeds_of(rng, 3, [7], 4, 2, 64)
    expected = attention(library, heads=4, kv_heads=2, size=64, int8=True).run(None, feeds)[0]
    q, k, v = (np.ascontiguousarray(x) for x in np.split(feeds["q"], [256, 384], axis=-1))
    apart = attention(library, heads=4, kv_heads=2, size=64, packed=False, int8=True)
    assert np.array_equal(apart.run(None, feeds | {"q": q, "k": k, "v": v})[0], expected)


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 300), (9, 120)])
def test_the_cache_is_group_query_attention_s_own(
    library: Path, tokens: int, past: int, rng: np.random.Generator
) -> None:
    """Either op may go on with what the other wrote: the same numbers, and outputs as near as both bounds together."""
    text = """
        <ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[b,t,w] q, int8[b,2,c,64] past_k, int8[b,2,c,64] past_v, int32[b] last, int32 total,
           float[1,2,1,64] k_scale, float[1,2,1,64] v_scale)
        => (float[b,t,512] y, int8[b,2,c,64] k_out, int8[b,2,c,64] v_out)
        { y, k_out, v_out = com.microsoft.GroupQueryAttention <num_heads = 8, kv_num_heads = 2, kv_cache_bit_width = 8,
            k_quant_type = "PER_CHANNEL", v_quant_type = "PER_CHANNEL">
            (q, , , past_k, past_v, last, total, , , , , , k_scale, v_scale) }
    """
    model = ir.to_proto(ir.from_onnx_text(text)).SerializeToString()
    theirs = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    feeds = feeds_of(rng, tokens, [past], 8, 2, 64)
    expected = theirs.run(None, feeds)
    found = attention(library, heads=8, kv_heads=2, size=64, int8=True).run(None, feeds)
    for mine, other in zip(found[1:], expected[1:], strict=True):
        np.testing.assert_array_equal(mine[:, :, : past + tokens], other[:, :, : past + tokens])
    # weights: BLOCK halves of a step each way, and the scores' drift, which is smaller; numbers up to 128 scales
    reach = np.repeat(128 * feeds["v_scale"][0, :, 0], 4, axis=0).reshape(1, 1, -1)
    assert (np.abs(found[0] - expected[0]) < 3 * BLOCK * 0.5 / LEVELS * reach + 1e-5).all()


def test_bad_input_comes_back_as_a_message(library: Path, rng: np.random.Generator) -> None:
    session = attention(library, heads=4, kv_heads=2, size=64, rotary=64, int8=True)
    feeds = feeds_of(rng, 2, [7], 4, 2, 64, 64)
    said = "edgecompress CachedAttentionInt8: .*"
    for change, message in (
        ({"q": feeds["q"][..., :-1]}, "width of its heads"),
        ({"past_k": feeds["past_k"][..., :32]}, "the past must be"),
        ({"past_v": feeds["past_v"][:, :, :-1]}, "the past must be"),
        ({"positions": feeds["positions"] + 1000}, "beyond the rotary table"),
        ({"last": np.array([100], dtype=np.int32)}, "does not fit total_sequence_length"),
        ({"last": np.array([7, 7], dtype=np.int32)}, "must be \\[B\\]"),
        ({"cos": feeds["cos"][:, :16]}, "do not fit each other"),
        ({"k_scale": feeds["k_scale"][..., :1]}, "one number a channel"),
        ({"v_scale": feeds["v_scale"][:, :1]}, "one number a channel"),
    ):
        with pytest.raises(Exception, match=said + message):
            session.run(None, feeds | change)
    apart = attention(library, heads=4, kv_heads=2, size=64, packed=False, int8=True)
    q, k, v = (np.ascontiguousarray(x) for x in np.split(feeds["q"], [256, 384], axis=-1))
    plain = {name: array for name, array in feeds.items() if name not in ("cos", "sin", "positions")}
    with pytest.raises(Exception, match=said + "the size of the query"):
        apart.run(None, plain | {"q": q, "k": k, "v": v[:, :1]})
    other, narrow = feeds_of(rng, 1, [7], 4, 2, 32), attention(library, heads=4, kv_heads=2, size=32, int8=True)
    with pytest.raises(Exception, match=said + "this library has no kernel for this head_size"):
        narrow.run(None, other)
    with pytest.raises(Exception, match=said + "multiple of kv_num_heads"):
        attention(library, heads=5, kv_heads=2, size=64, int8=True)
