"""The README's tables out of benchmarks/results: ``python -m benchmarks.readme_tables --write``.

In the README a table stands between ``<!-- table NAME -->`` and ``<!-- end -->``. Without ``--write`` it is only said
which are not what the results say; the exit code is then 1. A test holds them together.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.result_lines import RESULTS, Row, read
from benchmarks.summarize import markdown, name_of

README = Path(__file__).parents[1] / "README.md"
_PLACE = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_SHAPES = {"1x16": "1×16", "1x128": "1×128", "1x256": "1×256", "8x128": "8×128", "mixed 32": "32 of mixed lengths"}


def _timed(file: str) -> dict[tuple[str, str, int], Row]:
    """(side, shape, threads) -> row."""
    rows = read(RESULTS / f"{file}.jsonl").rows
    return {(row["name"], row["shape"], row["threads"]): row for row in rows if row["kind"] == "row"}


def _encoders(
    file: str, sides: Sequence[str], shapes: Sequence[str], threads: Sequence[int], *, cosine: bool = False
) -> str:
    """Ratios to plain ONNX Runtime; of several thread counts with a stroke between them."""
    found = _timed(file)
    body = []
    for side in sides:
        cells = [" / ".join(f"{found[side, shape, n]['ratio_median']:.2f}" for n in threads) for shape in shapes]
        row = found[side, shapes[0], threads[0]]
        body.append([name_of(row), *cells, *([f"{row['mean_cosine']:.4f}"] if cosine else [])])
    return markdown(["", *(_SHAPES[shape] for shape in shapes), *(["mean cosine"] if cosine else [])], body)


def _fidelity() -> str:
    found = {side: row for (side, _, _), row in _timed("encoder").items()}
    body = [
        [
            name_of(found[side]),
            f"{found[side]['mean_cosine']:.4f} / {found[side]['mean_cosine_passages']:.4f}",
            f"{found[side]['top10_agreement']:.3f}",
            f"{found[side]['model_bytes'] / 1e6:.1f}",
        ]
        for side in _SIDES
        if side not in ("openvino f32", "torch eager fp32")
    ]
    return markdown(["", "mean cosine, sentences / 128-256 tokens", "top-10 neighbours kept", "MB"], body)


_DECODERS = {
    "edgecompress ours-128": "edgecompress int4 block 128",
    "onnxruntime-genai int4 block 128": "",
    "onnxruntime-genai int4 block 32": "",
    "llama.cpp Q4_0": "",
    "llama.cpp Q4_K_M": "",
}
_STEPS = {
    ("prefill", 128): "prefill of 128",
    ("prefill", 1024): "prefill of 1,024",
    ("decode", 128): "decode behind 128",
    ("decode", 2048): "decode behind 2,048",
}


def _decoders() -> str:
    rows = [row for row in read(RESULTS / "decoder.jsonl").rows if "tokens_per_s" in row]
    found = {(row["name"], row["what"], row["tokens"], row["threads"]): row for row in rows}
    body = []
    for side, title in _DECODERS.items():
        cells = [" / ".join(f"{found[side, *step, n]['tokens_per_s']:.1f}" for n in (2, 1)) for step in _STEPS]
        first = found[side, "decode", 128, 2]
        body.append([name_of({**first, "name": title or side}), *cells, f"{first['model_bytes'] / 1e6:.0f}"])
    return markdown(["2 threads / 1 thread", *_STEPS.values(), "MB"], body)


def _engines() -> str:
    rows = [row for row in read(RESULTS / "engines.jsonl").rows if row.get("target") == "rtx-4090"]
    found = {(row["student"], row["precision"]): row for row in rows}
    body = []
    for precision in ("fp16", "int8", "int4", "fp8"):
        cells = []
        for student, quality in (("all-MiniLM-L6-v2", "mean_cosine"), ("small-decoder", "perplexity_ratio")):
            row = found[student, precision]
            over = row["weights_bytes_over_fp16"]
            cells += [f"{row[quality]:.4f}", f"{row['weights_bytes'] / 1e6:.1f}", "1" if over == 1 else f"{over:.3f}"]
        method = found["all-MiniLM-L6-v2", precision]["method"]
        body.append([precision if method == "rtn" else f"{precision}, `--method {method}`", *cells])
    sizes = ["weights, MB", "to fp16's"]
    return markdown(["`engines.jsonl`", "MiniLM: mean cosine", *sizes, "small decoder: perplexity ratio", *sizes], body)


_OURS = ("edgecompress int8-static", "edgecompress int8-dynamic", "edgecompress fp32")
_SIDES = (
    *_OURS, "openvino nncf int8", "openvino bf16", "optimum avx512_vnni", "onnxruntime quantize_dynamic",
    "openvino f32", "torch eager fp32",
)  # fmt: skip
_KERNELS = ("edgecompress int8-dynamic with kernels", "edgecompress int8-dynamic")
_NNCF = "openvino nncf int8"
_FEW = ("1x16", "1x128", "8x128", "mixed 32")

TABLES: Mapping[str, Callable[[], str]] = {
    "encoder-1": partial(_encoders, "encoder", _SIDES, tuple(_SHAPES), (1,)),
    "encoder-2": partial(_encoders, "encoder", _SIDES, tuple(_SHAPES), (2,)),
    "encoder-fidelity": _fidelity,
    "encoder-kernels": partial(_encoders, "encoder_kernels", (*_KERNELS, _NNCF), _FEW, (2,), cosine=True),
    "encoder-kernels-xeon-amx": partial(
        _encoders, "encoder_kernels-xeon-amx", (*_KERNELS, _NNCF), _FEW, (1, 2), cosine=True
    ),
    "encoder-zen3": partial(
        _encoders, "encoder-zen3", (*_KERNELS, "edgecompress int8-static", _NNCF), _FEW[:3], (2,), cosine=True
    ),
    "decoder": _decoders,
    "engines": _engines,
}


def updated_text(text: str) -> tuple[str, list[str]]:
    """The text with its tables as the results are, and the names of those that were otherwise."""
    stale = []

    def table(place: re.Match[str]) -> str:
        made = f"\n{TABLES[place[2]]()}\n\n"
        if made != place[3]:
            stale.append(place[2])
        return f"{place[1]}{made}{place[4]}"

    return _PLACE.sub(table, text), stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    text, stale = updated_text(README.read_text(encoding="utf-8"))
    if options.write:
        part = README.with_name(f".{README.name}.part")
        part.write_text(text, encoding="utf-8")
        part.replace(README)
    for name in stale:
        print(f"{name}: {'written anew' if options.write else 'not what the results say; write it with --write'}")
    return 1 if stale and not options.write else 0


if __name__ == "__main__":
    raise SystemExit(main())
