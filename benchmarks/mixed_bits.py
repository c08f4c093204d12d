"""Rows of decoder_quality for bits that differ from weight to weight: what they cost, and how weights are best ranked.

Everything runs through the graphs that ``edgecompress export`` makes, with float32 inputs (accuracy level 0), so that
only the weights' error shows.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from edgecompress.graph.blocks import BlockFormat
from edgecompress.graph.linears import find_embeddings, find_linears
from edgecompress.graph.sessions import open_model
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.capture import capture
from edgecompress.kinds.decoder.check import Feed, logits_of, text_feed
from edgecompress.kinds.decoder.metric import measure
from edgecompress.lower.microsoft import lower, lower_model
from edgecompress.quantize import sensitivity
from edgecompress.quantize.hessians import StreamedHessians
from edgecompress.quantize.mixed import mix
from edgecompress.quantize.sensitivity import choose_raised
from edgecompress.quantize.stage import Calibration, quantize
from edgecompress.quantize.weights import round_linear, round_table
from edgecompress.types.precision import MIXED_WEIGHTS
from edgecompress.types.recipe import QuantizeRecipe, Recipe, StudentRecipe
from edgecompress.types.report import Fidelity

METHODS = ("rtn", "gptq")
BUDGETS = (4.25, 4.5, 5.0, 5.5)  # mean bits
_ORACLE_TEXTS = 16  # whole held-out windows: what a ranking is held against

Row = dict[str, Any]
Ids = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(kw_only=True)
class Bench:
    """A captured decoder with calibration and held-out windows, int64 [windows, tokens] each."""

    folder: Path
    checkpoint: Path
    calibration: Ids
    held_out: Ids
    threads: int

    def __post_init__(self) -> None:
        student = load_student(StudentRecipe(source=str(self.checkpoint)))
        self.captured = capture(student, self.folder, opset=21)
        run = logits_of(open_model(lower(self.captured, self.folder).path, self.threads))
        self.reference = [run(ids) for ids in self.held_out]
        inputs = ir.load(self.captured.path).graph.inputs
        self.past = {
            value.name or "": (int(str(value.shape[1])), int(str(value.shape[3])))
            for value in inputs
            if value.shape is not None and (value.name or "").startswith("past_key_values.")
        }

    def feeds(self, rows: Ids) -> Callable[[], Iterator[Feed]]:
        return lambda: (text_feed(ids, self.past) for ids in rows)

    @property
    def probes(self) -> Ids:
        """The texts that an export would measure on."""
        step = len(self.calibration) // sensitivity.TEXTS
        return self.calibration[::step][: sensitivity.TEXTS, : sensitivity.TOKENS]

    def rounded(self, precision: str, recipe: QuantizeRecipe) -> tuple[Fidelity, int, float]:
        """Figures on the held-out windows, bytes of all weights in blocks, and seconds that quantizing took."""
        started = time.perf_counter()
        made = quantize(
            self.captured,
            precision,
            Recipe(quantize=recipe),
            self.folder,
            calibration=Calibration(
                batches=self.feeds(self.calibration), probes=self.feeds(self.probes), make_runnable=lower_model
            ),
        )
        seconds = time.perf_counter() - started
        run = logits_of(open_model(lower(made, self.folder).path, self.threads))
        found = measure((r, run(ids), ids) for r, ids in zip(self.reference, self.held_out, strict=True))
        return found, block_bytes(ir.load(made.path)), seconds


def block_bytes(model: ir.Model) -> int:
    """Codes and scales of all weights in blocks; a tensor that two nodes read counts once."""
    nodes = [node for node in model.graph if "bits" in node.attributes]
    values = {value for node in nodes for value in node.inputs if value is not None and value.const_value is not None}
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def rows(bench: Bench) -> Iterator[Row]:
    """int4, mixed at several budgets and int8 by each method; then how weights are ranked."""
    for method in METHODS:
        recipe = QuantizeRecipe(method=method, accuracy_level=0)
        plans = [("int4-weights", None), *((MIXED_WEIGHTS, bits) for bits in BUDGETS), ("int8-weights", None)]
        for precision, bits in plans:
            chosen = recipe if bits is None else replace(recipe, mean_bits=bits)
            found, size, seconds = bench.rounded(precision, chosen)
            yield {
                "precision": precision,
                "method": method,
                "mean_bits": bits,
                "bytes": size,
                "perplexity_ratio": found.perplexity_ratio,
                "mean_kl": found.mean_kl,
                "top1_agreement": found.top1_agreement,
                "quantize_s": round(seconds, 2),
            }
        yield from rankings(bench, recipe)


def rankings(bench: Bench, recipe: QuantizeRecipe) -> Iterator[Row]:
    """Each measure of a weight's sensitivity against the divergence that it alone costs on held-out text.

    ``saved_share`` is what the set that a measure picks saves of that divergence, as a share of the most that any set
    of that budget saves, by the held-out figures. ``seconds`` are those beyond what the export spends anyway: rounding,
    and for gptq the Hessians.
    """
    floats = lower_model(ir.load(bench.captured.path))
    linears = {linear.name: linear for linear in find_linears(floats)}
    tables = {table.name: table for table in find_embeddings(floats)}
    widths = {linear.x.name or "": linear.width for linear in linears.values()}
    with _timed() as hessians_s:
        hessians = StreamedHessians(floats, widths, bench.feeds(bench.calibration))
        curvature = {name: hessians[name] for name in widths}
    needed = hessians if recipe.method == "gptq" else None
    form = BlockFormat(bits=4, block_size=recipe.block_size)
    with _timed() as rounding_s:
        after = {name: round_linear(linear, form, recipe.method, needed) for name, linear in linears.items()}
        tables_after = {name: round_table(table, form, recipe.method) for name, table in tables.items()}
    error: dict[str, float] = {}
    relative: dict[str, float] = {}
    elements: dict[str, int] = {}
    with _timed() as trace_s:
        for name, linear in linears.items():
            weight, h = linear.weight_array(), curvature[linear.x.name or ""]
            error[name] = _trace(after[name].dequantize() - weight, h)
            relative[name] = error[name] / _trace(weight, h)
            elements[name] = weight.size
        often = np.bincount(bench.calibration.ravel()) / bench.calibration.size
        for name, blocks in tables_after.items():
            rows_ = tables[name].table.const_value
            assert rows_ is not None
            assert blocks is not None
            table = rows_.numpy()[: len(often)]
            error[name] = float(often @ ((blocks.dequantize().T[: len(often)] - table) ** 2).sum(1))
            relative[name] = error[name] / float(often @ (table**2).sum(1))
            elements[name] = rows_.size
    oracle = mix(floats, recipe, bench.feeds(bench.held_out[:_ORACLE_TEXTS]), needed).costs
    beyond = trace_s[0] + (0.0 if needed is not None else hessians_s[0])
    measures = {"trace of dW H dW": (error, beyond), "the same over W H W": (relative, beyond)}
    for texts, tokens in ((1, 64), (sensitivity.TEXTS, sensitivity.TOKENS), (2, 128), (8, 256)):
        step = len(bench.calibration) // texts
        with _timed() as seconds:
            costs = mix(floats, recipe, bench.feeds(bench.calibration[::step][:texts, :tokens]), needed).costs
        measures[f"KL alone, {texts} x {tokens} tokens"] = (dict(costs), seconds[0] - rounding_s[0])
    for name, (costs, spent) in measures.items():
        yield {
            "ranking": name,
            "method": recipe.method,
            "seconds": round(spent, 2),
            "rank_correlation": round(_spearman(costs, oracle), 3),
            "rank_correlation_per_weight": round(_spearman(_each(costs, elements), _each(oracle, elements)), 3),
            "saved_share": {str(bits): round(_share(costs, oracle, elements, bits), 3) for bits in BUDGETS},
        }


@contextmanager
def _timed() -> Iterator[list[float]]:
    """A list of one: the seconds that the block took, once it is over."""
    spent = [0.0]
    started = time.perf_counter()
    yield spent
    spent[0] = time.perf_counter() - started


def _trace(weight: np.ndarray[Any, Any], hessian: np.ndarray[Any, Any]) -> float:
    return float(np.einsum("kn,kn->", weight, hessian @ weight))


def _each(costs: Mapping[str, float], elements: Mapping[str, int]) -> dict[str, float]:
    return {name: cost / elements[name] for name, cost in costs.items()}


def _spearman(a: Mapping[str, float], b: Mapping[str, float]) -> float:
    def ranks(values: Sequence[float]) -> Any:
        return np.argsort(np.argsort(values))

    names = list(b)
    return float(np.corrcoef(ranks([a[n] for n in names]), ranks([b[n] for n in names]))[0, 1])


def _share(costs: Mapping[str, float], oracle: Mapping[str, float], elements: Mapping[str, int], bits: float) -> float:
    def saved(by: Mapping[str, float]) -> float:
        return sum(oracle[name] for name in choose_raised(by, elements, bits))

    return saved(costs) / saved(oracle)
