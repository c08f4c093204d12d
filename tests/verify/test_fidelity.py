"""Fidelity figures on outputs with known results."""

from __future__ import annotations

import numpy as np
import pytest

from edgecompress.errors import QualityBudgetError
from edgecompress.export.choice import Choice, require
from edgecompress.export.choice import choose as choose_by
from edgecompress.kinds import find_kind
from edgecompress.kinds.encoder.metric import measure, shortfall
from edgecompress.runtime.metrics import neighbour_agreement
from edgecompress.types.recipe import QualityRecipe
from edgecompress.types.report import Candidate, Fidelity

METRICS = {kind: find_kind(kind).metric for kind in ("encoder", "decoder")}


def choose(candidates: list[Candidate], quality: QualityRecipe) -> Choice:
    decodes = any(c.fidelity is not None and c.fidelity.perplexity_ratio is not None for c in candidates)
    return choose_by(candidates, quality, METRICS["decoder" if decodes else "encoder"])


def samples(x: np.ndarray) -> list[list[np.ndarray]]:
    return [[row[None]] for row in x]


def test_equal_vectors_are_perfect(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 16)).astype(np.float32)
    found = measure("sentence-similarity", samples(x), samples(x))
    assert found.mean_cosine == 1.0
    assert found.min_cosine == 1.0
    assert found.top10_agreement == 1.0
    assert found.max_abs_difference == 0.0


def test_one_rotated_vector_shows_in_the_minimum(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 16)).astype(np.float32)
    y = x.copy()
    y[4] = -y[4]
    found = measure("sentence-similarity", samples(x), samples(y))
    assert found.min_cosine == -1.0
    assert found.mean_cosine == pytest.approx(1 - 2 / 30, abs=1e-6)


def test_a_model_that_gives_nan_never_passes(rng: np.random.Generator) -> None:
    x = rng.normal(size=(30, 16)).astype(np.float32)
    found = measure("sentence-similarity", samples(x), samples(np.full_like(x, np.nan)))
    assert shortfall(found, QualityRecipe()) is not None


def test_neighbours_of_unrelated_vectors_agree_by_chance(rng: np.random.Generator) -> None:
    x, y = rng.normal(size=(200, 32)), rng.normal(size=(200, 32))
    assert neighbour_agreement(x, y) < 0.15
    assert neighbour_agreement(x, x * 3.0) == 1.0


def test_heads_are_compared_by_kl_and_first_choice() -> None:
    a = np.log(np.array([[0.7, 0.3], [0.4, 0.6]], dtype=np.float32))
    b = np.log(np.array([[0.6, 0.4], [0.6, 0.4]], dtype=np.float32))
    found = measure("text-classification", samples(a), samples(b))
    kl = [0.7 * np.log(0.7 / 0.6) + 0.3 * np.log(0.3 / 0.4), 0.4 * np.log(0.4 / 0.6) + 0.6 * np.log(0.6 / 0.4)]
    assert found.mean_kl == pytest.approx(np.mean(kl), abs=1e-5)
    assert found.top1_agreement == 0.5


def test_the_gate_names_the_costly_layers() -> None:
    fidelity, metric = Fidelity(samples=1, mean_cosine=0.95), METRICS["encoder"]
    with pytest.raises(QualityBudgetError, match=r"0\.9500 is below 0\.99.*layer\.3") as error:
        require(fidelity, QualityRecipe(), metric, precision="int8-static", costly=["layer.3"])
    assert error.value.exit_code == 4
    assert "--min-fidelity" in error.value.hint


def candidate(precision: str, cosine: float, speedup: float | None) -> Candidate:
    fidelity = Fidelity(samples=10, mean_cosine=cosine)
    return Candidate(
        precision=precision, fidelity=fidelity, speedup=speedup, latency_ms=None, model_bytes=1, verdict=""
    )


def test_the_fastest_within_the_budget_is_chosen() -> None:
    table = [candidate("fp32", 1.0, 1.0), candidate("int8-dynamic", 0.995, 2.5), candidate("int8-static", 0.97, 3.0)]
    choice = choose(table, QualityRecipe())
    assert choice.precision == "int8-dynamic"
    assert [c.verdict for c in choice.table] == ["slower", "chosen", "mean cosine 0.9700 is below 0.99"]


def test_nothing_slower_than_fp32_is_chosen() -> None:
    choice = choose([candidate("fp32", 1.0, 1.0), candidate("int8-dynamic", 0.999, 0.8)], QualityRecipe())
    assert choice.precision == "fp32"
    assert choice.table[1].verdict == "slower than fp32"


def test_within_the_noise_the_more_accurate_one_is_chosen() -> None:
    table = [candidate("fp32", 1.0, 1.0), candidate("int8-static", 0.992, 2.52), candidate("int8-dynamic", 0.998, 2.5)]
    assert choose(table, QualityRecipe()).precision == "int8-dynamic"


def level(accuracy_level: int, kl: float, speedup: float | None) -> Candidate:
    return Candidate(
        precision="int4-weights",
        fidelity=Fidelity(samples=8, perplexity_ratio=1.0, mean_kl=kl),
        speedup=speedup,
        latency_ms=None,
        model_bytes=1,
        verdict="",
        accuracy_level=accuracy_level,
    )


@pytest.mark.parametrize(
    ("rows", "taken", "verdicts"),
    [
        ([level(4, 0.01, 1.0), level(1, 0.009, 0.4)], 4, ["chosen", "slower"]),
        ([level(4, 0.2, 1.0), level(1, 0.009, 0.4)], 1, ["KL divergence 0.2000 is above 0.05", "chosen"]),
        ([level(4, 0.01, 1.0), level(1, 0.009, 0.99)], 1, ["as fast, less accurate", "chosen"]),
        ([level(4, 0.01, None), level(1, 0.009, None)], 4, ["chosen", "not measured, ranked lower"]),
    ],
)
def test_the_fastest_accuracy_level_within_the_budget_is_chosen(
    rows: list[Candidate], taken: int, verdicts: list[str]
) -> None:
    choice = choose(rows, QualityRecipe())
    assert choice.table[choice.index].accuracy_level == taken
    assert [row.verdict for row in choice.table] == verdicts


def test_slower_than_fp32_is_said_only_where_fp32_was_measured() -> None:
    rows = [candidate("fp32", 1.0, 1.0), level(4, 0.01, 2.0), level(1, 0.01, 0.8)]
    assert [row.verdict for row in choose(rows, QualityRecipe()).table] == ["slower", "chosen", "slower than fp32"]


def test_no_level_within_the_budget_names_both() -> None:
    with pytest.raises(QualityBudgetError, match=r"at accuracy level 4: KL.*; int4-weights at accuracy level 1: KL"):
        choose([level(4, 0.2, 1.0), level(1, 0.1, 0.4)], QualityRecipe())


def test_without_measurement_the_order_is_fixed() -> None:
    table = [
        candidate("fp32", 1.0, None),
        candidate("int8-static", 0.999, None),
        candidate("int8-dynamic", 0.995, None),
    ]
    assert choose(table, QualityRecipe()).precision == "int8-dynamic"


def test_no_candidate_within_the_budget_is_an_error() -> None:
    with pytest.raises(QualityBudgetError, match="int8-dynamic: mean cosine"):
        choose([candidate("int8-dynamic", 0.5, 3.0)], QualityRecipe())
