"""Bits by measured sensitivity: the cost of one weight alone, the choice, and the resulting graph."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from edgecompress.errors import CalibrationError
from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_embeddings, find_linears
from edgecompress.lower.microsoft import lower_model
from edgecompress.quantize import parts
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.head_and_tables import quantize_every_weight
from edgecompress.quantize.hessians import StreamedHessians
from edgecompress.quantize.mixed import mix
from edgecompress.quantize.sensitivity import SingleWeightCost, choose_raised
from edgecompress.quantize.stage import Calibration, quantize
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QuantizeRecipe, Recipe
from edgecompress.types.report import ALONE_KEY
from tests.quantize.test_quantize_decoder import F, H, V, arrays_of, by_hand, decoder
from tests.quantize.test_quantize_graph import run

HEAD, UP, DOWN, TABLE = "MatMul_6", "MatMul_1", "MatMul_4", "Gather_0"
RECIPE = QuantizeRecipe(method="rtn", block_size=32, accuracy_level=0)


def batch(rng: np.random.Generator) -> list[dict[str, np.ndarray]]:
    return [{"ids": rng.integers(0, V, (1, 9))} for _ in range(2)]


def bits_of(model: ir.Model) -> dict[str, int]:
    return {n.name.rpartition("/")[0]: n.attributes["bits"].as_int() for n in model.graph if "bits" in n.attributes}  # type: ignore[union-attr]


def test_a_lone_cost_is_the_divergence_of_the_logits(rng: np.random.Generator) -> None:
    model = decoder(rng)
    floats, texts = arrays_of(model), batch(rng)
    cost = SingleWeightCost(model, ["up", "down"], lambda: texts)
    rounded = quantize_blocks(floats["down"], BlockFormat(bits=4, block_size=32)).dequantize()

    def log_p(arrays: dict[str, np.ndarray]) -> np.ndarray:
        x = np.concatenate([by_hand(arrays, text["ids"])[0] for text in texts]).astype(np.float64)
        x -= x.max(1, keepdims=True)
        return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))

    p, q = log_p(floats), log_p(floats | {"down": rounded})
    assert cost.measure({"down": rounded}) == pytest.approx((np.exp(p) * (p - q)).sum(1).mean(), rel=1e-3)
    assert cost.measure({"down": floats["down"]}) == pytest.approx(0.0, abs=1e-9)
    assert [value.name for value in model.graph.inputs] == ["ids"]


def test_weights_in_a_file_can_be_replaced_too(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    model, texts = decoder(rng), batch(rng)
    rounded = quantize_blocks(arrays_of(model)["up"], BlockFormat(bits=4, block_size=32)).dequantize()
    inside = SingleWeightCost(model, ["up"], lambda: texts).measure({"up": rounded})
    monkeypatch.setattr(parts, "_IN_MEMORY_BYTES", 0)
    mapped = SingleWeightCost(model, ["up"], lambda: texts)
    assert isinstance(mapped._float.model.graph.initializers["head"].const_value, ir.ExternalTensor)
    assert mapped.measure({"up": rounded}) == pytest.approx(inside, rel=1e-6)


@pytest.mark.parametrize("part_bytes", [1, 4 * F * H])
def test_parts_give_the_cost_of_the_whole_graph(rng: np.random.Generator, part_bytes: int) -> None:
    """For any number of weights mapped at a time, and for replaced weights in any part, also two at once."""
    model, texts = decoder(rng), batch(rng)
    form = BlockFormat(bits=4, block_size=32)
    rounded = {name: quantize_blocks(arrays_of(model)[name], form).dequantize() for name in ("up", "down", "head")}
    rounded["table"] = quantize_blocks(arrays_of(model)["table"].T, form).dequantize().T
    whole = SingleWeightCost(model, list(rounded), lambda: texts)
    parted = SingleWeightCost(model, list(rounded), lambda: texts, part_bytes=part_bytes)
    assert len(parted._chain) >= 3 > len(whole._chain) == 1
    for names in (("down",), ("head",), ("up",), ("table",), ("table", "head")):
        replaced = {name: rounded[name] for name in names}
        assert parted.measure(replaced) == pytest.approx(whole.measure(replaced), rel=1e-5)


def test_without_text_nothing_is_measured(rng: np.random.Generator) -> None:
    with pytest.raises(CalibrationError, match="no calibration text"):
        SingleWeightCost(decoder(rng), ["up"], lambda: [])


def test_the_choice_is_optimal(rng: np.random.Generator) -> None:
    costs = {f"w{i}": float(x) for i, x in enumerate(rng.uniform(size=10))}
    elements = {name: int(x) for name, x in zip(costs, rng.integers(1, 50, 10), strict=True)}
    total = sum(elements.values())
    for mean_bits in (4.0, 4.3, 5.1, 6.0, 8.0):
        room = (mean_bits - 4) / 4 * total
        subsets = itertools.chain.from_iterable(itertools.combinations(costs, n) for n in range(11))
        best = max(sum(costs[n] for n in s) for s in subsets if sum(elements[n] for n in s) <= room)
        raised = choose_raised(costs, elements, mean_bits)
        assert sum(elements[name] for name in raised) <= room + 1e-9
        assert sum(costs[name] for name in raised) == pytest.approx(best)


def test_sizes_without_a_common_divisor_are_rounded_to_steps() -> None:
    costs = {"a": 3.0, "b": 2.0, "c": 1.0}
    elements = {"a": 1_000_003, "b": 999_983, "c": 2_000_029}
    assert choose_raised(costs, elements, 8.0) == {"a", "b", "c"}
    assert choose_raised(costs, elements, 6.01) == {"a", "b"}
    assert choose_raised(costs, elements, 5.01) == {"a"}
    assert choose_raised(costs, elements, 4.0) == frozenset()


def test_the_most_costly_weights_are_raised_within_the_mean(rng: np.random.Generator) -> None:
    model = decoder(rng)
    texts = batch(rng)
    sizes = {UP: H * F, DOWN: F * H, HEAD: H * V, TABLE: V * H}
    budget = 4 + 4 * (sizes[HEAD] + sizes[UP]) / sum(sizes.values()) + 1e-3
    recipe = QuantizeRecipe(method="rtn", block_size=32, accuracy_level=0, mean_bits=budget)
    found = mix(model, recipe, lambda: texts)
    assert set(found.costs) == set(sizes)
    chosen = choose_raised(found.costs, sizes, budget)
    assert found.raised == chosen
    worst = max(found.costs, key=lambda name: found.costs[name] if sizes[name] <= sizes[HEAD] else 0.0)
    assert worst in found.raised
    quantize_every_weight(model, find_linears(model), recipe, bits=4, allocation=found)
    assert bits_of(model) == {name: 8 if name in found.raised else 4 for name in sizes}


@pytest.mark.parametrize("method", ["rtn", "hqq", "gptq"])
def test_the_graph_holds_what_was_measured(rng: np.random.Generator, method: str) -> None:
    """A weight that stays in 4 bits is the one whose cost was measured, with any method."""
    model = decoder(rng)
    texts = batch(rng)
    floats = arrays_of(model)
    recipe = QuantizeRecipe(method=method, block_size=32, accuracy_level=0, mean_bits=4.0)
    tensors = {linear.x.name or "": linear.width for linear in find_linears(model)}
    needed = StreamedHessians(lower_model(model.clone()), tensors, lambda: texts) if method == "gptq" else None
    found = mix(model, recipe, lambda: texts, needed)
    assert not found.raised
    assert find_linears(model)
    assert find_embeddings(model)
    quantize_every_weight(model, find_linears(model), recipe, bits=4, hessians=needed, allocation=found)
    rounded = {
        {UP: "up", DOWN: "down", HEAD: "head"}[name]: blocks.dequantize() for name, blocks in found.blocks.items()
    }
    form = BlockFormat(bits=4, block_size=32)
    rounded["table"] = quantize_blocks(floats["table"].T, form, "hqq" if method == "hqq" else "rtn").dequantize().T
    ids = rng.integers(0, V, (2, 7))
    want = by_hand(floats | rounded, ids)
    np.testing.assert_allclose(run(model, ids=ids)[0], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_a_tied_head_and_table_are_one_choice(rng: np.random.Generator) -> None:
    model = decoder(rng, tied=True)
    texts = batch(rng)
    found = mix(model, QuantizeRecipe(method="rtn", block_size=32, mean_bits=8.0), lambda: texts)
    assert TABLE not in found.costs
    assert {HEAD, TABLE} <= found.raised
    assert quantize_every_weight(model, find_linears(model), RECIPE, bits=4, allocation=found).tied


def test_bits_of_head_and_table_in_the_recipe_win(rng: np.random.Generator) -> None:
    model = decoder(rng)
    texts = batch(rng)
    recipe = QuantizeRecipe(method="rtn", block_size=32, head_bits=8, embedding_bits=4, mean_bits=6.0)
    found = mix(model, recipe, lambda: texts)
    assert set(found.costs) == {UP, DOWN}
    quantize_every_weight(model, find_linears(model), recipe, bits=4, allocation=found)
    bits = bits_of(model)
    assert (bits[HEAD], bits[TABLE]) == (8, 4)
    assert sorted((bits[UP], bits[DOWN])) == [4, 8]


def test_the_stage_stores_the_costs(rng: np.random.Generator, tmp_path: Path) -> None:
    model = decoder(rng)
    ir.save(model, tmp_path / "captured.onnx")
    texts = batch(rng)
    made = quantize(
        Graph(path=tmp_path / "captured.onnx", stage="captured"),
        "mixed-weights",
        Recipe(quantize=QuantizeRecipe(block_size=32, mean_bits=7.0)),
        tmp_path,
        calibration=Calibration(probes=lambda: texts, make_runnable=lower_model),
    )
    written = ir.load(made.path)
    assert set(json.loads(written.metadata_props[ALONE_KEY])) == {UP, DOWN, HEAD, TABLE}
    assert set(bits_of(written).values()) == {4, 8}
