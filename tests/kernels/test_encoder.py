"""The encoder's ops against float64: packed sequences of any lengths, head sizes, poisoned buffers, bad input."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from edgecompress_kernels import reference
from edgecompress_kernels.cpu.build import Encoder
from edgecompress_kernels.cpu.encoder_packing import pack_columns, pack_panels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tests.kernels.encoder_ops import EPSILON, encoder_layer, poisoned, projections, random_layer
from tests.kernels.ops import ENCODERS, make_session

NAMES = [f"{kind.hidden}-heads-of-{kind.head_size}" for kind in ENCODERS]


def starts_of(lengths: list[int]) -> Any:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def bytes_of(kind: Encoder, tokens: int) -> int:
    """Of the projections of so many rows, as shim_encoder.c lays them out."""

    def up(size: int) -> int:
        return -(-size // 64) * 64

    rows, blocks = tokens + 8, -(-tokens // 16)
    packed = up(blocks * kind.heads * (16 * kind.head_size + 64))
    return up(rows * kind.hidden) + 2 * up(rows * kind.heads * 4) + 2 * packed


def run(library: Path, kind: Encoder, layers: list[Any], x: Any, starts: Any, *, smooth: bool, threads: int = 2) -> Any:
    """The layers one after the other, every buffer poisoned before."""
    shape = {"p": ((bytes_of(kind, len(x)),), np.uint8)}
    first = projections(library, kind, layers[0], smooth=smooth, threads=threads)
    packed = poisoned(first, {"x": x}, shape)["p"]
    for layer, following in zip(layers, [*layers[1:], None], strict=True):
        session = encoder_layer(library, kind, layer, following, smooth=smooth, threads=threads)
        shapes = {"y": (x.shape, np.float32)} | (shape if following is not None else {})
        found = poisoned(session, {"x": x, "projections": packed, "starts": starts}, shapes)
        x, packed = found["y"], found.get("p")
    return x


def expected(kind: Encoder, layers: list[Any], x: Any, starts: Any, *, rounded: bool) -> Any:
    for layer in layers:
        x = reference.encoder_layer(x, layer, kind.heads, starts, kind.head_size**-0.5, EPSILON, rounded)
    return x


def rms(x: Any) -> float:
    return float(np.sqrt(np.mean(np.asarray(x, dtype=np.float64) ** 2)))


def check(library: Path, kind: Encoder, lengths: list[int], rng: np.random.Generator, *, layers: int = 1) -> None:
    """No further from float64 than 8-bit activations put it, and much nearer to those than they are to float64.

    The second is said of one layer only, and of one chunk of keys: what is rounded otherwise once goes on otherwise.
    Where that is depends on float32's last bit, so this is for data that does not change.
    """
    found, plain, exact = outputs(library, kind, lengths, rng, layers)
    assert rms(found - exact) <= 1.2 * rms(plain - exact)
    if max(lengths) <= 512 and layers == 1:
        assert rms(found - plain) <= 0.5 * rms(plain - exact)
    assert rms(found - exact) <= 0.03 * rms(exact) * layers


def outputs(
    library: Path, kind: Encoder, lengths: list[int], rng: np.random.Generator, layers: int = 1
) -> tuple[Any, Any, Any]:
    """The kernel's rows, those of float64 with activations of 8 bits, and those of float64."""
    smooth = bool(rng.integers(2))
    made = [random_layer(kind, rng, smooth=smooth) for _ in range(layers)]
    starts = starts_of(lengths)
    x = rng.standard_normal((int(starts[-1]), kind.hidden)).astype(np.float32)
    found = run(library, kind, made, x, starts, smooth=smooth)
    assert np.isfinite(found).all()
    return found, *(expected(kind, made, x, starts, rounded=rounded) for rounded in (True, False))


@pytest.mark.parametrize("kind", ENCODERS, ids=NAMES)
@pytest.mark.parametrize(
    "lengths",
    [[1], [7], [16], [33], [1, 1, 1], [5, 0, 19, 0], [0, 12], [40, 3, 16, 90, 1], [600], [13, 1100]],
    ids=str,
)
def test_a_layer_is_that_of_float64(library: Path, kind: Encoder, lengths: list[int], rng: np.random.Generator) -> None:
    check(library, kind, lengths, rng)


def test_layers_hand_on_their_projections(library: Path, rng: np.random.Generator) -> None:
    check(library, ENCODERS[1], [21, 50, 9], rng, layers=3)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 70), min_size=1, max_size=6).filter(any),
    kind=st.sampled_from(ENCODERS),
    seed=st.integers(0, 1000),
)
def test_any_lengths(library: Path, lengths: list[int], kind: Encoder, seed: int) -> None:
    """At most twice as far from float64 as 8-bit activations put it.

    One value of a few thousand lies so near the middle of two steps that float32 rounds it to the other. That moves a
    row's range or a key, and every later rounding in its sequence falls anew: as good, but another sample. Of
    3,000 random cases the worst was 1.22 times as far.
    """
    found, plain, exact = outputs(library, kind, lengths, np.random.default_rng(seed))
    assert rms(found - exact) <= 2 * rms(plain - exact)
    assert rms(found - exact) <= 0.03 * rms(exact)


def test_a_sequence_does_not_hear_its_neighbours(library: Path, rng: np.random.Generator) -> None:
    """The others' rows are changed to something else: this one's stay bit for bit."""
    kind = ENCODERS[1]
    layer = random_layer(kind, rng, smooth=False)
    starts = starts_of([11, 20, 6])
    x = rng.standard_normal((37, kind.hidden)).astype(np.float32)
    before = run(library, kind, [layer], x, starts, smooth=False)
    x[:11] *= -30
    x[31:] += 7
    after = run(library, kind, [layer], x, starts, smooth=False)
    assert np.array_equal(before[11:31], after[11:31])
    assert not np.array_equal(before[:11], after[:11])


def test_threads_do_not_change_a_bit(library: Path, rng: np.random.Generator) -> None:
    kind, starts = ENCODERS[0], starts_of([90, 64, 3])
    layer = random_layer(kind, rng, smooth=True)
    x = rng.standard_normal((157, kind.hidden)).astype(np.float32)
    one, two = (run(library, kind, [layer], x, starts, smooth=True, threads=threads) for threads in (1, 2))
    assert np.array_equal(one, two)


def test_rows_of_one_value_and_of_zeros_stay_finite(library: Path, rng: np.random.Generator) -> None:
    kind = ENCODERS[0]
    layer = random_layer(kind, rng, smooth=False)
    x = np.zeros((5, kind.hidden), dtype=np.float32)
    x[2:] = 3.0
    found = run(library, kind, [layer], x, starts_of([5]), smooth=False)
    exact = expected(kind, [layer], x, starts_of([5]), rounded=False)
    assert rms(found - exact) <= 0.03 * rms(exact)


def test_no_rows_give_no_rows(library: Path, rng: np.random.Generator) -> None:
    kind = ENCODERS[0]
    layer = random_layer(kind, rng, smooth=False)
    x, starts = np.zeros((0, kind.hidden), np.float32), np.zeros(3, np.int64)
    packed = projections(library, kind, layer, smooth=False).run(None, {"x": x})[0]
    session = encoder_layer(library, kind, layer, layer, smooth=False)
    y, following = session.run(None, {"x": x, "projections": packed, "starts": starts})
    assert y.shape == (0, kind.hidden)
    assert following.size == packed.size == 0


def test_gelu_keeps_its_bound() -> None:
    """Of encoder_vector.py's polynomial, in float32, against erf."""
    from edgecompress_kernels.cpu.encoder_vector import GELU_END, GELU_TERMS

    x = np.linspace(-12, 12, 200_001).astype(np.float32)
    near = np.clip(x, np.float32(-GELU_END), np.float32(GELU_END))
    square, series = near * near, np.full_like(x, np.float32(GELU_TERMS[-1]))
    for term in GELU_TERMS[-2::-1]:
        series = series * square + np.float32(term)
    found = np.float32(0.5) * x * (1 + near * series)
    assert (np.abs(found - reference.gelu(x.astype(np.float64))) <= 2e-5 + 1e-5 * np.abs(x)).all()


def test_packing_panels_is_what_the_kernel_reads(rng: np.random.Generator) -> None:
    weights = rng.integers(-127, 128, (8, 50), dtype=np.int8)
    scales, bias = rng.random(50).astype(np.float32), rng.random(50).astype(np.float32)
    panels, columns = pack_panels(weights), pack_columns(weights, scales, bias)
    assert panels.shape == (2, 2, 48, 4)
    assert columns.shape == (2, 3, 48)
    for n in (0, 47, 48, 49):
        assert np.array_equal(panels[n // 48, :, n % 48].reshape(-1), weights[:, n])
        assert columns[n // 48, 2, n % 48] == bias[n]
    assert not panels[1, :, 2:].any()


def ops(library: Path, op: str, inputs: dict[str, int], outputs: int) -> Any:
    names = [f"out{i}" for i in range(outputs)]
    node = helper.make_node(op, list(inputs), names, domain="edgecompress")
    values = [helper.make_tensor_value_info(name, kind, None) for name, kind in inputs.items()]
    kind = TensorProto.INT64 if op == "PackTokens" else TensorProto.FLOAT
    given_out = [helper.make_tensor_value_info(name, kind, None) for name in names]
    return make_session(helper.make_graph([node], "g", values, given_out), library, 1)


MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 1, 1, 1]], dtype=np.int64)


def test_tokens_are_packed_summed_and_unpacked(library: Path, rng: np.random.Generator) -> None:
    rows, starts = ops(library, "PackTokens", {"mask": TensorProto.INT64}, 2).run(None, {"mask": MASK})
    assert rows.tolist() == [0, 1, 3, 8, 9, 10, 11]
    assert starts.tolist() == [0, 3, 3, 7]
    x = rng.standard_normal((7, 5)).astype(np.float32)
    sums = ops(library, "SumTokens", {"x": TensorProto.FLOAT, "starts": TensorProto.INT64}, 1)
    found = sums.run(None, {"x": x, "starts": starts})[0]
    np.testing.assert_allclose(found, [x[:3].sum(0), np.zeros(5), x[3:].sum(0)], rtol=0, atol=1e-6)
    kinds = {"x": TensorProto.FLOAT, "rows": TensorProto.INT64, "mask": TensorProto.INT64}
    whole = ops(library, "UnpackTokens", kinds, 1).run(None, {"x": x, "rows": rows, "mask": MASK})[0]
    assert np.array_equal(whole[MASK == 1], x)
    assert not whole[MASK == 0].any()


def test_bad_input_comes_back_as_a_message(library: Path, rng: np.random.Generator) -> None:
    kind = ENCODERS[0]
    layer = random_layer(kind, rng, smooth=False)
    x, starts = rng.standard_normal((6, kind.hidden)).astype(np.float32), starts_of([4, 2])
    first = projections(library, kind, layer, smooth=False)
    session = encoder_layer(library, kind, layer, smooth=False)
    feeds = {"x": x, "projections": first.run(None, {"x": x})[0], "starts": starts}
    for change, message in (
        ({"x": x[:, :-16]}, r"the rows must be \[N, hidden\]"),
        ({"x": x[:3]}, "not those of these rows"),
        ({"starts": starts_of([4, 3])}, "rise from 0 to the number of rows"),
        ({"starts": np.array([0, 5, 4, 6])}, "rise from 0 to the number of rows"),
        ({"starts": np.array([-1, 6])}, "rise from 0 to the number of rows"),
    ):
        with pytest.raises(Exception, match=message):
            session.run(None, feeds | change)
    other = Encoder(hidden=64, heads=2, feed_forward=64)
    made = projections(library, other, random_layer(other, rng, smooth=False), smooth=False)
    with pytest.raises(Exception, match="no kernel for these sizes"):
        made.run(None, {"x": np.zeros((1, 64), np.float32)})
    narrow = Encoder(hidden=64, heads=8, feed_forward=64)
    with pytest.raises(Exception, match="multiples of 16 wide"):
        projections(library, narrow, random_layer(narrow, rng, smooth=False), smooth=False)
    with pytest.raises(Exception, match="weights do not have the size"):
        projections(library, kind, random_layer(ENCODERS[1], rng, smooth=False), smooth=False).run(None, {"x": x})
    kinds = {"x": TensorProto.FLOAT, "rows": TensorProto.INT64, "mask": TensorProto.INT64}
    unpack = ops(library, "UnpackTokens", kinds, 1)
    with pytest.raises(Exception, match="a place is outside the mask"):
        unpack.run(None, {"x": np.zeros((1, 4), np.float32), "rows": np.array([99]), "mask": MASK})
    sums = ops(library, "SumTokens", {"x": TensorProto.FLOAT, "starts": TensorProto.INT64}, 1)
    with pytest.raises(Exception, match="the starts must rise"):
        sums.run(None, {"x": np.zeros((1, 4), np.float32), "starts": np.array([0, 9])})
