"""DecoderLayer: what its operators give one by one, whoever computes which part of it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.kernels.layer_ops import HIDDEN, exact_layer, joined, layer_feeds, layer_model
from tests.kernels.ops import session

SEED = 5


def both(library: Path, threads: int, **options: Any) -> tuple[Any, Any]:
    model = layer_model(np.random.default_rng(SEED), **options)
    return tuple(session(m.SerializeToString(), library, threads) for m in (model, joined(model)))


def close(found: Any, expected: Any) -> None:
    """Norms and gates differ in the last digits, and inputs that are rounded to 8 bits may fall to the other side."""
    scale = float(np.sqrt(np.mean(expected.astype(np.float64) ** 2)))
    assert float(np.sqrt(np.mean((found.astype(np.float64) - expected) ** 2))) < 2e-3 * scale
    assert float(np.abs(found.astype(np.float64) - expected).max()) < 0.05 * scale + (
        1 if expected.dtype == np.int8 else 0
    )


@pytest.mark.parametrize("int8", [False, True], ids=["float32", "int8"])
@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (1, 700), (3, 20), (40, 5)])
def test_it_gives_what_its_operators_give(
    library: Path, tokens: int, past: int, int8: bool, rng: np.random.Generator
) -> None:
    apart, together = both(library, 2, int8=int8, layers=2)
    feeds = layer_feeds(rng, tokens, past, int8=int8, layers=2)
    expected = dict(zip([o.name for o in apart.get_outputs()], apart.run(None, feeds), strict=True))
    found = dict(zip([o.name for o in together.get_outputs()], together.run(None, feeds), strict=True))
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        rows = slice(None) if name.startswith("y") else slice(0, past + tokens)
        close(found[name][..., rows, :], array[..., rows, :])


@pytest.mark.parametrize(("tokens", "past"), [(1, 0), (5, 600)])
def test_it_gives_what_float64_gives(library: Path, tokens: int, past: int, rng: np.random.Generator) -> None:
    model, feeds = layer_model(np.random.default_rng(SEED)), layer_feeds(rng, tokens, past)
    found = session(joined(model).SerializeToString(), library, 2).run(["y"], feeds)[0]
    close(found, exact_layer(model, feeds, past))


def test_both_layers_are_one_op_each() -> None:
    model = joined(layer_model(np.random.default_rng(SEED), layers=2))
    assert [node.op_type for node in model.graph.node] == ["DecoderLayer", "DecoderLayer"]
    assert [len(node.input) for node in model.graph.node] == [10 + 1 + 2 + 4 * 2 + 1 + 2] * 2  # two zero points, a bias


@pytest.mark.parametrize("threads", [2, 9])  # nine: more than there are cores, who must let each other run
def test_threads_and_company_change_no_bit(library: Path, threads: int, rng: np.random.Generator) -> None:
    feeds = layer_feeds(rng, 6, 530)
    alone, shared = (both(library, count)[1] for count in (1, threads))
    names = [o.name for o in alone.get_outputs()]
    expected = dict(zip(names, alone.run(None, feeds), strict=True))
    for _ in range(20):
        for name, array in zip(names, shared.run(None, feeds), strict=True):
            assert np.array_equal(array[..., :536, :], expected[name][..., :536, :]), name
    caches = {name: feeds[name] for name in ("past_k0", "past_v0")}
    for t in range(6):
        one = feeds | caches | {"x": feeds["x"][:, t : t + 1], "positions": feeds["positions"][:, t : t + 1]}
        one |= {"last": np.array([530 + t], dtype=np.int32), "total": np.array(531 + t, dtype=np.int32)}
        found = dict(zip(names, shared.run(None, one), strict=True))
        assert np.array_equal(found["y"][0, 0], expected["y"][0, t])
        caches = {"past_k0": found["k0"], "past_v0": found["v0"]}


def test_no_tokens_are_no_work(library: Path, rng: np.random.Generator) -> None:
    feeds = layer_feeds(rng, 1, 9)
    empty = feeds | {"x": feeds["x"][:, :0], "positions": feeds["positions"][:, :0], "last": np.array([8], np.int32)}
    found = both(library, 2)[1].run(["y"], empty | {"total": np.array(9, np.int32)})[0]
    assert found.shape == (1, 0, HIDDEN)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ((0, 0), 0, "too many values"),
        ((0, 1), 65, "too many values"),
        ((1, 0), 9, "a step of another kind"),
        ((1, 1), 0, "makes a value that is not its own"),
        ((1, 2), 40, "reads a value that is not there"),
        ((1, 3), -1, "reads a value that is not there"),
        ((2, 10), 0, "a product of no size"),
        ((3, 0), 4, "reads a value that is not there"),
    ],
)
def test_a_broken_program_comes_back_as_a_message(
    library: Path, place: tuple[int, int], value: int, message: str, rng: np.random.Generator
) -> None:
    model = joined(layer_model(np.random.default_rng(SEED)))
    program = next(tensor for tensor in model.graph.initializer if tensor.name.endswith(".program"))
    array = onnx.numpy_helper.to_array(program).copy()
    array[place] = value
    program.CopyFrom(onnx.numpy_helper.from_array(array, program.name))
    broken = session(model.SerializeToString(), library, 2)
    with pytest.raises(Exception, match=message):
        broken.run(None, layer_feeds(rng, 1, 9))


def test_bad_shapes_come_back_as_messages(library: Path, rng: np.random.Generator) -> None:
    together, feeds = both(library, 2)[1], layer_feeds(rng, 2, 9)
    for change, message in (
        ({"past_k0": feeds["past_k0"][..., :32]}, "the past must be"),
        ({"positions": feeds["positions"] + 1000}, "beyond the rotary table"),
        ({"last": np.array([100], dtype=np.int32)}, "does not fit total_sequence_length"),
    ):
        with pytest.raises(Exception, match=message):
            together.run(None, feeds | change)


def test_sessions_at_once_do_not_share_scratch_memory(library: Path, rng: np.random.Generator) -> None:
    shapes = [layer_feeds(rng, tokens, past) for tokens, past in ((1, 40), (30, 0), (5, 600), (1, 3))]
    sessions = [both(library, 2)[1] for _ in shapes]
    expected = [s.run(["y"], feeds)[0] for s, feeds in zip(sessions, shapes, strict=True)]
    with ThreadPoolExecutor(len(shapes)) as pool:
        for _ in range(20):
            runs = [pool.submit(s.run, ["y"], feeds) for s, feeds in zip(sessions, shapes, strict=True)]
            for run, wanted in zip(runs, expected, strict=True):
                assert np.array_equal(run.result()[0], wanted)
