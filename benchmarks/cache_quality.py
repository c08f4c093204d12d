"""An int8 KV cache and a float32 one, in otherwise equal graphs: ``decoder_quality --kv-cache``.

They run at the beginning of the context and at its end, with scales calibrated over the whole context, as in an export,
and, to show why, with scales from the beginning alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from edgecompress.graph.sessions import make_session, open_session
from edgecompress.kinds.checkpoints import load_student
from edgecompress.kinds.decoder.capture import capture
from edgecompress.kinds.decoder.check import Feed, Ids, text_feed
from edgecompress.kinds.decoder.metric import DecoderFidelity
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.lower.microsoft import lower, lower_model
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.quantize.stage import Calibration, quantize
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QuantizeRecipe, Recipe, StudentRecipe

CACHE_WEIGHTS = {"fp32": "rtn", "int8-weights": "rtn", "int4-weights": "gptq"}  # precision -> how it is rounded


def cache_rows(
    checkpoint: Path, calibration: list[Ids], held_out: list[Ids], threads: int
) -> Iterator[dict[str, object]]:
    """An int8 cache against the same graph with a float32 one; texts int64 [T]."""
    student = load_student(StudentRecipe(source=str(checkpoint)))
    context = student.max_length_tokens
    assert context is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        captured = capture(student, folder, opset=21)
        session = make_session(lower(captured, folder).path, threads)
        shapes = {v.name: (v.shape[1], v.shape[3]) for v in session.get_inputs() if v.name.startswith("past_")}
        feeds = [text_feed(ids, shapes) for ids in calibration]
        spread = list(spread_positions([len(ids) for ids in calibration], context))
        for precision, method in CACHE_WEIGHTS.items():
            recipe = Recipe(quantize=QuantizeRecipe(method=method))
            runs = Calibration(batches=lambda: feeds, make_runnable=lower_model)
            made = quantize(captured, precision, recipe, folder, calibration=runs)
            graph = lower(made, folder)
            for over, places in (("the context", spread), ("its beginning", [0] * len(calibration))):
                placed = [text_feed(ids, shapes, first_position=p) for ids, p in zip(calibration, places, strict=True)]
                scales = cache_scales(make_session(graph.path, threads), placed)
                small = lower_cache(graph, scales, folder)
                for first in (0, context - len(held_out[0])):
                    figures = _cache_cost(graph, small, shapes, held_out, first, threads)
                    yield {"weights": precision, "kv_cache": "int8", "calibrated_over": over, "first_position": first,
                           **figures}  # fmt: skip


def _cache_cost(
    graph: Graph, small: Graph, shapes: Mapping[str, tuple[int, int]], texts: list[Ids], first: int, threads: int
) -> dict[str, object]:
    sides = [open_session(side.path, threads) for side in (graph, small)]
    found = DecoderFidelity()
    for ids in texts:
        feeds: list[Feed] = [
            text_feed(ids, shapes, first_position=first, cache_dtype=np.dtype(dtype)) for dtype in ("float32", "int8")
        ]
        expected, logits = (run(feed)[0][0] for run, feed in zip(sides, feeds, strict=True))
        found.add(expected, logits, ids[1:])
    figures = found.fidelity()
    return {
        "perplexity_ratio": figures.perplexity_ratio,
        "mean_kl": figures.mean_kl,
        "top1_agreement": figures.top1_agreement,
        "float_cache_perplexity": round(found.reference_perplexity, 3),
    }
