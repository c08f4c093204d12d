"""Tables of README.md and docs/benchmarks.md from benchmarks/results: ``python -m benchmarks.tables --write``.

A table is between ``<!-- table NAME -->`` and ``<!-- end -->``. Without ``--write`` the command lists the tables that
differ from the results, and exits with code 1 if there are any. A test compares them too.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.result_lines import RESULTS, Row, read
from benchmarks.summarize import band, markdown, name_of

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"
"""Has every table but the summary."""
FILES = (ROOT / "README.md", PAGE)
_PLACE = re.compile(r"(<!-- table ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
_SHAPES = {"1x16": "1×16", "1x128": "1×128", "1x256": "1×256", "8x128": "8×128", "mixed 32": "32 of mixed lengths"}


def _timed(file: str) -> dict[tuple[str, str, int], Row]:
    """(side, shape, threads) -> row."""
    rows = read(RESULTS / f"{file}.jsonl").rows
    return {(row["name"], row["shape"], row["threads"]): row for row in rows if row["kind"] == "row"}


def _encoders(
    file: str, sides: Sequence[str], shapes: Sequence[str], threads: Sequence[int], *, cosine: bool = False
) -> str:
    """Ratios to plain ONNX Runtime; several thread counts are separated by a slash."""
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
    ("decode", 128): "decode after 128",
    ("decode", 2048): "decode after 2,048",
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


_PAIRED = (("decode", 128), ("decode", 2048), ("prefill", 128), ("prefill", 1024))


def _decoder_ratios() -> str:
    """Ours against each peer, turn by turn."""
    rows = [row for row in read(RESULTS / "decoder.jsonl").rows if row.get("against")]
    found = {(row["what"], row["tokens"], row["threads"]): row["against"] for row in rows}
    body = []
    for side in list(_DECODERS)[1:]:
        body.append([side, *(" / ".join(band(found[*step, n][side]) for n in (2, 1)) for step in _PAIRED)])
    return markdown(["edgecompress over, 2 threads / 1 thread", *(_STEPS[step] for step in _PAIRED)], body)


def _cold_start() -> str:
    rows = [row for row in read(RESULTS / "cold_start.jsonl").rows if row["kind"] == "row"]
    body = [
        [name_of(row), f"{row['wall_s_median']:.2f}", f"{row['peak_rss_bytes'] / 1e6:.0f}"]
        for row in rows
        if row["what"] == "first vector"
    ]
    return markdown(["process start to first vector", "s", "peak memory, MB"], body)


_MODELOPT = {
    ("edgecompress", "int8"): "**edgecompress int8**",
    ("modelopt", "int8-max-products"): "ModelOpt int8, Q/DQ around products with weights only",
    ("modelopt", "int8-max"): "ModelOpt int8, Q/DQ where it places them",
    ("edgecompress", "fp8"): "**edgecompress fp8**",
    ("modelopt", "fp8-max-products"): "ModelOpt fp8, Q/DQ around products with weights only",
    ("modelopt", "fp8-max"): "ModelOpt fp8, Q/DQ where it places them",
}


def _modelopt() -> str:
    rows = [row for row in read(RESULTS / "modelopt.jsonl").rows if row["kind"] == "row"]
    found = {(row["side"], row["variant"]): row for row in rows}
    body = [
        [
            title,
            f"{found[side]['mean_cosine']:.4f}",
            f"{found[side]['top10_agreement']:.3f}",
            f"{found[side]['weights_bytes'] / 1e6:.1f}",
        ]
        for side, title in _MODELOPT.items()
    ]
    return markdown(["", "mean cosine", "top-10 neighbours kept", "weights in the engine, MB"], body)


_FITS = {
    "threads": "the other number of threads",
    "student": "a student that is not in the fit",
    "from one": "other students, from one",
}


def _estimate() -> str:
    rows = [row for row in read(RESULTS / "estimate.jsonl").rows if "summary" in row]
    found = {(row["summary"], row["students"]): row for row in rows}
    body = []
    for fit, title in _FITS.items():
        cells = []
        for students in ("encoders", "decoders"):
            row = found[fit, students]
            cells += [_percent(row[figure]) for figure in ("within_25%", "median_error", "within_span")]
        body.append([title, *cells])
    more = ("median error", "inside the span")
    return markdown(["predicted", "encoders: within 25 %", *more, "decoders: within 25 %", *more], body)


def _percent(share: float) -> str:
    return f"{int(100 * share + 0.5)} %"  # halves go up, as in the text


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
_OPTIMUM = "optimum avx512_vnni"


def _fastest(rows: Sequence[Row], peer: str) -> Row:
    return max((row for row in rows if row["name"].startswith(peer)), key=lambda row: float(row["tokens_per_s"]))


def _summary() -> str:
    """A few rows of the other tables, each with its file: what a reader of the README compares."""
    kernels, encoders = (_timed(file) for file in ("encoder_kernels", "encoder"))
    (ours, nncf), optimum = (kernels[side, "1x128", 2] for side in (_KERNELS[0], _NNCF)), encoders[_OPTIMUM, "1x128", 2]
    steps = [
        row
        for row in read(RESULTS / "decoder.jsonl").rows
        if (row.get("what"), row.get("tokens"), row.get("threads")) == ("decode", 128, 2)
    ]
    decoder = next(row for row in steps if row["ours"])
    genai, llama = (_fastest(steps, peer) for peer in ("onnxruntime-genai", "llama.cpp"))
    starts = {row["name"]: row for row in read(RESULTS / "cold_start.jsonl").rows if row["kind"] == "row"}
    runtime, torch = (starts[name] for name in ("edgecompress.runtime", "torch + transformers"))
    two = "`encoder_kernels.jsonl`, `encoder.jsonl`"

    def megabytes(key: str, *rows: Row) -> list[str]:
        return [f"{row[key] / 1e6:,.{int(row[key] < 1e8)}f}" for row in rows]

    sizes, models = megabytes("model_bytes", ours, nncf, optimum), megabytes("model_bytes", decoder, genai, llama)
    memory = megabytes("peak_rss_bytes", runtime, torch)
    body = [
        [
            "MiniLM int8, 1 × 128 tokens: times as fast as ONNX Runtime fp32",
            f"**{ours['ratio_median']:.2f}**",
            f"OpenVINO NNCF {nncf['ratio_median']:.2f}, optimum {optimum['ratio_median']:.2f}",
            two,
        ],
        [
            "MiniLM int8: mean cosine to PyTorch",
            f"**{ours['mean_cosine']:.4f}**",
            f"OpenVINO NNCF {nncf['mean_cosine']:.4f}, optimum {optimum['mean_cosine']:.4f}",
            two,
        ],
        [
            "MiniLM int8: model, MB",
            f"**{sizes[0]}**",
            f"OpenVINO NNCF {sizes[1]}, optimum {sizes[2]}",
            two,
        ],
        [
            "R1-Distill-Qwen-1.5B shape, int4: decode after 128 tokens, tokens/s",
            f"**{decoder['tokens_per_s']:.1f}**",
            f"llama.cpp {llama['tokens_per_s']:.1f}, onnxruntime-genai {genai['tokens_per_s']:.1f}",
            "`decoder.jsonl`",
        ],
        [
            "the same: model, MB",
            f"**{models[0]}**",
            f"llama.cpp {models[2]}, onnxruntime-genai {models[1]}",
            "`decoder.jsonl`",
        ],
        [
            "MiniLM: process start to first vector, s",
            f"**{runtime['wall_s_median']:.2f}**",
            f"PyTorch with transformers {torch['wall_s_median']:.2f}",
            "`cold_start.jsonl`",
        ],
        [
            "the same: peak memory, MB",
            f"**{memory[0]}**",
            f"PyTorch with transformers {memory[1]}",
            "`cold_start.jsonl`",
        ],
    ]
    return markdown(["2 cores of a Zen 4 server CPU", "edgecompress", "others", "`benchmarks/results/`"], body)


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
    "decoder-ratios": _decoder_ratios,
    "cold-start": _cold_start,
    "engines": _engines,
    "modelopt": _modelopt,
    "estimate": _estimate,
    "summary": _summary,
}


def updated_text(text: str) -> tuple[str, list[str]]:
    """The text with its tables as in the results, and the names of those that differed. KeyError: no such table."""
    stale = []

    def table(place: re.Match[str]) -> str:
        body = f"\n{TABLES[place[2]]()}\n\n"
        if body != place[3]:
            stale.append(place[2])
        return f"{place[1]}{body}{place[4]}"

    return _PLACE.sub(table, text), stale


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="update the files")
    options = parser.parse_args()
    found = False
    for path in FILES:
        text, stale = updated_text(path.read_text(encoding="utf-8"))
        if options.write and stale:
            part = path.with_name(f".{path.name}.part")
            part.write_text(text, encoding="utf-8")
            part.replace(path)
        for name in stale:
            state = "updated" if options.write else "differs from the results; --write updates it"
            print(f"{path.relative_to(ROOT)}: {name}: {state}")
        found = found or bool(stale)
    return 1 if found and not options.write else 0


if __name__ == "__main__":
    raise SystemExit(main())
