"""What rounding a decoder's weights costs, method by method, on a trained decoder.

    python -m benchmarks.small_decoder small-decoder/ --minutes 8
    python -m benchmarks.decoder_quality small-decoder/ --threads 2

The weights of every linear layer, the head and the embedding table of the PyTorch model are rounded by our quantizers,
and the model is compared with the unrounded one on held-out text: the weights' error alone, with float32 inputs.
Calibration (GPTQ, and the choice of bits) reads training text. One JSON line per row, on stdout and in ``--out FILE``.

``--mixed`` measures the graphs of ``edgecompress export``: int4 and int8 weights in blocks of 128, and
``mixed-weights`` at several budgets, with the bytes of the quantized weights. Then, for each measure that ranks the
weights: its rank correlation, its time, and the share of the possible savings that a mix chosen by it reaches.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer

from benchmarks import cache_quality, mixed_bits
from benchmarks.result_lines import RESULTS, Row, header, write
from benchmarks.small_decoder import Settings, load_corpus, token_stream
from edgecompress.graph.blocks import BlockFormat, Blocks
from edgecompress.kinds.decoder.metric import DecoderFidelity
from edgecompress.quantize.blockwise import quantize_blocks
from edgecompress.quantize.gptq import gptq
from edgecompress.quantize.weights import block_that_divides

ROWS = [
    (bits, block, symmetric, method)
    for bits, block in ((8, 128), (4, 32), (4, 64), (4, 128), (4, 256))
    for symmetric in (True, False)
    for method in ("rtn", "hqq", "gptq")
    if bits == 4 or method in ("rtn", "gptq")
]
Array = np.ndarray[Any, np.dtype[np.float32]]


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
        blocks = gptq(weight, curvature[name], form) if method == "gptq" else quantize_blocks(weight, form, method)
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


def uniform_rows(
    model: Any, held_out: torch.Tensor, curvature: Mapping[str, Array], only: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """All weights in the same bits, for every block, symmetry and method."""
    reference = list(all_logits(model, held_out))
    for bits, block, symmetric, method in ROWS:
        if only and method not in only:
            continue
        found = DecoderFidelity()
        with quantized(model, bits, block, symmetric, method, curvature) as seconds:
            for ids, expected, logits in zip(held_out.numpy(), reference, all_logits(model, held_out), strict=True):
                found.add(expected, logits, ids[1:])
        figures = found.fidelity()
        yield {
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--calibration-windows", type=int, default=128)
    parser.add_argument("--held-out-windows", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--only", help="methods, separated by commas")
    parser.add_argument("--mixed", action="store_true", help="bits mixed by sensitivity, beside int4 and int8")
    parser.add_argument("--kv-cache", action="store_true", help="an int8 cache beside a float32 one")
    parser.add_argument(
        "--out", type=Path, help="decoder_quality.jsonl or mixed_bits.jsonl of benchmarks/results unless given"
    )
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.disable_progress_bar()
    tokenizer = Tokenizer.from_file(str(options.checkpoint / "tokenizer.json"))
    corpus = load_corpus(Settings())
    held_out = windows(tokenizer, corpus.held_out, options.held_out_windows, options.tokens)
    calibration = windows(tokenizer, corpus.train, options.calibration_windows, options.tokens)
    with ExitStack() as stack:
        if options.mixed:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            bench = mixed_bits.Bench(
                folder=folder,
                checkpoint=options.checkpoint,
                calibration=calibration.numpy(),
                held_out=held_out.numpy(),
                threads=options.threads,
            )
            rows = mixed_bits.rows(bench)
        elif options.kv_cache:
            rows = cache_quality.cache_rows(
                options.checkpoint, list(calibration.numpy()), list(held_out.numpy()), options.threads
            )
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(options.checkpoint, dtype=torch.float32).eval()
            only = options.only.split(",") if options.only else ()
            rows = uniform_rows(model, held_out, hessians(model, calibration), only)
        found: list[Row] = [header(checkpoint=options.checkpoint.name, positions=held_out.numel())]
        for row in rows:
            print(json.dumps(row), flush=True)
            found.append(row)
    write(options.out or RESULTS / f"{'mixed_bits' if options.mixed else 'decoder_quality'}.jsonl", found)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
