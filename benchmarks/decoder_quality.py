"""What rounding a decoder's weights and its KV cache costs, on a decoder that has really learned something.

    python -m benchmarks.small_decoder small-decoder/ --minutes 8
    python -m benchmarks.decoder_quality small-decoder/ --threads 2
    python -m benchmarks.decoder_quality small-decoder/ --threads 2 --only kv-cache

Every linear layer, the head and the embedding table of the PyTorch model are replaced by what our quantizers make of
them, and the model is compared with itself before, on held-out text: the weights' error alone, with float32 inputs.
Calibration (GPTQ, the cache's scales) reads training text. One JSON line a row.

The rows of the KV cache compare two graphs of ONNX Runtime that differ in nothing else: int8 cache against float32.
They are run at the beginning of the context and at its end, with scales that were calibrated over the whole context, as
an export does it, and, to show why, with scales from the beginning alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from benchmarks.hosts import describe_host
from benchmarks.small_decoder import Settings, load_corpus, token_stream
from edgecompress.capture.export import capture
from edgecompress.capture.student import load_student
from edgecompress.lower.kv_cache import lower_cache
from edgecompress.lower.onnxruntime import lower, lower_model
from edgecompress.quantize.blockwise import BlockFormat, Blocks, quantize_blocks
from edgecompress.quantize.gptq import gptq
from edgecompress.quantize.kv_cache import cache_scales, spread_positions
from edgecompress.quantize.stage import quantize
from edgecompress.quantize.weights import block_that_divides
from edgecompress.types.graph import Graph
from edgecompress.types.recipe import QuantizeRecipe, Recipe, StudentRecipe
from edgecompress.verify import latency
from edgecompress.verify.decoder import DecoderFidelity
from edgecompress.verify.decoder_check import Feed, Ids, text_feed

ROWS = [
    (bits, block, symmetric, method)
    for bits, block in ((8, 128), (4, 32), (4, 64), (4, 128), (4, 256))
    for symmetric in (True, False)
    for method in ("rtn", "hqq", "gptq", "gptq in order")
    if bits == 4 or method in ("rtn", "gptq")
]
Array = np.ndarray[Any, np.dtype[np.float32]]
KV_CACHE = "kv-cache"
CACHE_WEIGHTS = {"fp32": "rtn", "int8-weights": "rtn", "int4-weights": "gptq"}  # precision -> how it is rounded


def windows(tokenizer: Tokenizer, texts: tuple[str, ...], count: int, tokens: int) -> torch.Tensor:
    """int64 [count, tokens] from all over the texts."""
    stream = token_stream(tokenizer, texts)
    starts = [i * (len(stream) - tokens) // count for i in range(count)]
    return torch.stack([stream[start : start + tokens] for start in starts])


def linears(model: torch.nn.Module) -> dict[str, torch.nn.Linear]:
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def hessians(model: torch.nn.Module, rows: torch.Tensor) -> dict[str, Array]:
    """float32 [K, K] of each linear layer's input over the windows ``rows``."""
    sums: dict[str, torch.Tensor] = {}
    hooks = []
    for name, module in linears(model).items():

        def add(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...], name: str = name) -> None:
            flat = inputs[0].flatten(0, -2)
            sums[name] = sums.get(name, torch.zeros(())) + flat.T @ flat

        hooks.append(module.register_forward_pre_hook(add))
    with torch.no_grad():
        for batch in rows.split(8):
            model(input_ids=batch)
    for hook in hooks:
        hook.remove()
    return {name: total.numpy() / rows.numel() for name, total in sums.items()}


@contextmanager
def quantized(
    model: Any, bits: int, block: int, symmetric: bool, method: str, curvature: Mapping[str, Array]
) -> Iterator[float]:
    """The model with rounded weights, inside the block; gives the seconds that rounding took."""
    form = BlockFormat(bits=bits, block_size=block, symmetric=symmetric)
    kept: list[tuple[torch.nn.Parameter, torch.Tensor]] = []
    seconds = 0.0

    def put(parameter: torch.nn.Parameter, weight: Array) -> None:
        kept.append((parameter, parameter.data))
        parameter.data = torch.from_numpy(np.ascontiguousarray(weight))

    for name, module in linears(model).items():
        weight = module.weight.detach().numpy().T
        started = time.perf_counter()
        blocks: Blocks
        if method.startswith("gptq"):
            blocks = gptq(weight, curvature[name], form, act_order=method == "gptq")
        else:
            blocks = quantize_blocks(weight, form, method)
        seconds += time.perf_counter() - started
        put(module.weight, blocks.dequantize().T)
    table = model.get_input_embeddings().weight
    fitting = BlockFormat(bits=bits, block_size=block_that_divides(table.shape[1], block), symmetric=symmetric)
    put(table, quantize_blocks(table.detach().numpy().T, fitting, "hqq" if method == "hqq" else "rtn").dequantize().T)
    try:
        yield seconds
    finally:
        for parameter, data in kept:
            parameter.data = data


def all_logits(model: Any, rows: torch.Tensor) -> Iterator[Array]:
    """[tokens, V] of each window in turn."""
    with torch.no_grad():
        for batch in rows.split(8):
            yield from model(input_ids=batch).logits.numpy()


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
        session = latency.make_session(lower(captured, folder).path, threads)
        shapes = {v.name: (v.shape[1], v.shape[3]) for v in session.get_inputs() if v.name.startswith("past_")}
        feeds = [text_feed(ids, shapes) for ids in calibration]
        spread = list(spread_positions([len(ids) for ids in calibration], context))
        for precision, method in CACHE_WEIGHTS.items():
            recipe = Recipe(quantize=QuantizeRecipe(method=method))
            made = quantize(captured, precision, recipe, None, folder, batches=lambda: feeds, make_runnable=lower_model)
            graph = lower(made, folder)
            for over, places in (("the context", spread), ("its beginning", [0] * len(calibration))):
                placed = [text_feed(ids, shapes, first_position=p) for ids, p in zip(calibration, places, strict=True)]
                scales = cache_scales(latency.make_session(graph.path, threads), placed)
                small = lower_cache(graph, scales, folder)
                for first in (0, context - len(held_out[0])):
                    figures = _cache_cost(graph, small, shapes, held_out, first, threads)
                    yield {"weights": precision, "kv_cache": "int8", "calibrated_over": over, "first_position": first,
                           **figures}  # fmt: skip


def _cache_cost(
    graph: Graph, small: Graph, shapes: Mapping[str, tuple[int, int]], texts: list[Ids], first: int, threads: int
) -> dict[str, object]:
    sides = [latency.open_session(side.path, threads) for side in (graph, small)]
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--held-out-windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--only", help=f"methods, comma between; {KV_CACHE} for its rows")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    corpus = load_corpus(Settings())
    held_out = windows(tokenizer, corpus.held_out, options.held_out_windows, options.tokens)
    calibration = windows(tokenizer, corpus.train, options.calibration_windows, options.tokens)
    print(json.dumps({"host": describe_host(), "checkpoint": options.checkpoint.name, "positions": held_out.numel()}))
    only = options.only.split(",") if options.only else None
    if only is None or KV_CACHE in only:
        for found_row in cache_rows(
            options.checkpoint, list(calibration.numpy()), list(held_out.numpy()), options.threads
        ):
            print(json.dumps(found_row), flush=True)
    rows = [row for row in ROWS if only is None or row[-1] in only]
    if not rows:
        return 0
    curvature = hessians(model, calibration)
    reference = list(all_logits(model, held_out))
    for bits, block, symmetric, method in rows:
        found = DecoderFidelity()
        with quantized(model, bits, block, symmetric, method, curvature) as seconds:
            for ids, expected, logits in zip(held_out.numpy(), reference, all_logits(model, held_out), strict=True):
                found.add(expected, logits, ids[1:])
        figures = found.fidelity()
        row = {
            "bits": bits,
            "block": block,
            "symmetric": symmetric,
            "method": method,
            "perplexity_ratio": figures.perplexity_ratio,
            "mean_kl": figures.mean_kl,
            "top1_agreement": figures.top1_agreement,
            "reference_perplexity": round(found.reference_perplexity, 3),
            "rounding_s": round(seconds, 2),
        }
        print(json.dumps(row), flush=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
