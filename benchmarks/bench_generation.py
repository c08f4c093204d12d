"""What the runtime adds around the model: start, time outside the session, and drafts from the text itself.

``python -m benchmarks.bench_generation --bundle BUNDLE [--trained BUNDLE]``. Start and overhead are those of the first
bundle (R1-Distill-Qwen-1.5B's shape, as ``bench_decoder`` makes it). The second is of a trained decoder, so that greedy
text repeats itself where the prompt does: drafts are timed on it, with and without, in turn; the row says whether the
texts are identical. The first bundle has random weights, so an edit of code from the standard library is dictated to
it, to show what drafts save at its size.
"""

from __future__ import annotations

import argparse
import inspect
import sys
import textwrap
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bench_encoder import note, spread
from benchmarks.cold_start import run_alone, summary
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.kinds.decoder import runtime as generator_module
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load

FIRST_TOKEN = """
import sys
from edgecompress.runtime import load
with load(sys.argv[1], threads=int(sys.argv[2])) as generator:
    generator.generate(list(range(20, 36)), max_new_tokens=1, temperature=0)
"""
REPEATING = (
    "def add(first, second):\n    return first + second\n\ndef subtract(first, second):\n    return first - second\n\n"
)
_TOKENS = 64
_LONG_TOKENS = 192  # of the text that is drafted: a small decoder repeats itself only after some


def first_token(bundle: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Process start to the first new token after a prompt of 16, the page cache warm; every sha256 is checked."""
    command = [sys.executable, "-c", FIRST_TOKEN, str(bundle), str(threads)]
    runs = [run_alone(command) for _ in range(rounds + 1)][1:]
    if any(run.exit_code for run in runs):
        raise SystemExit(runs[0].stderr)
    return {"kind": "row", "what": "process start to first token", "threads": threads, **summary(runs)}


def overhead(bundle: Path, threads: int) -> list[dict[str, Any]]:
    rows = []
    with load(bundle, threads=threads) as generator:
        assert isinstance(generator, Generator)
        prompt = np.random.default_rng(0).integers(10, 4000, 128).tolist()
        for name, options in (
            ("greedy", {"temperature": 0.0}),
            ("temperature 0.6, top-p 0.95", {"temperature": 0.6, "top_p": 0.95, "seed": 0}),
        ):
            generator.generate(prompt, max_new_tokens=_TOKENS, **options)  # type: ignore[call-overload]
            told = generator.statistics
            rows.append(
                {
                    "kind": "row",
                    "what": "outside session.run",
                    "sampling": name,
                    "threads": threads,
                    "share_of_decoding": round(told.outside_run_share, 4),
                    "decode_tokens_per_s": round(told.decode_tokens_per_s, 2),
                    "bytes_of_cache_copied_per_token": told.bytes_copied_per_token,
                }
            )
    return rows


def drafts(bundle: Path, threads: int, rounds: int) -> dict[str, Any]:
    """Greedy with and without prompt lookup, in turn, on a text that repeats itself."""
    with load(bundle, threads=threads) as generator:
        assert isinstance(generator, Generator)
        prompt = generator.token_ids(REPEATING * 4)
        ratios, same = [], True
        for _ in range(rounds + 1):
            started = time.perf_counter()
            plain = generator.generate(prompt, max_new_tokens=_LONG_TOKENS, temperature=0)
            between = time.perf_counter()
            drafted = generator.generate(prompt, max_new_tokens=_LONG_TOKENS, temperature=0, lookup_tokens=8)
            ratios.append((between - started) / (time.perf_counter() - between))
            same = same and plain.token_ids == drafted.token_ids
        told = generator.statistics
    row = {"kind": "row", "what": "prompt lookup over plain greedy", "threads": threads, "same_text": same}
    row |= {"bundle": bundle.name, "drafted_tokens": told.drafted_tokens, "accepted_tokens": told.accepted_tokens}
    return row | {"decode_runs": told.decode_runs, "new_tokens": told.new_tokens, **spread(ratios[1:])}


class ScriptedChoice:
    """Replaces a sampler: the text is given, and the model's own choice is ignored."""

    def __init__(self, ids: list[int]) -> None:
        self._ids = iter(ids)

    def observe(self, _tokens: Iterable[int]) -> None:
        """There is no penalty."""

    def choose(self, _logits: Any) -> int:
        return next(self._ids)


def edit_of_code(bundle: Path, threads: int, rounds: int) -> dict[str, Any]:
    """With and without prompt lookup, in turn, an edit of code: one name changes, the rest is as in the prompt.

    The model's weights may be random, so its choices are dictated; the computation is the same. A draft is right
    where the edited text continues as the prompt did.
    """
    code = inspect.getsource(textwrap.TextWrapper._wrap_chunks)
    with load(bundle, threads=threads) as generator:
        assert isinstance(generator, Generator)
        prompt = generator.token_ids(code)
        text = generator.token_ids(code.replace("cur_line", "row"))[:_LONG_TOKENS]
        made, ratios = generator_module.Sampler, []
        try:
            generator_module.Sampler = lambda *_: ScriptedChoice(text)  # type: ignore[assignment,misc]
            for _ in range(rounds + 1):
                seconds = []
                for tokens in (0, 8):
                    generator.generate(prompt, max_new_tokens=len(text), temperature=0, lookup_tokens=tokens)
                    told = generator.statistics
                    seconds.append(told.new_tokens / told.decode_tokens_per_s)
                ratios.append(seconds[0] / seconds[1])
        finally:
            generator_module.Sampler = made  # type: ignore[misc]
    row = {"kind": "row", "what": "prompt lookup over plain, an edit of code that is dictated", "threads": threads}
    row |= {"bundle": bundle.name, "drafted_tokens": told.drafted_tokens, "accepted_tokens": told.accepted_tokens}
    return row | {"decode_runs": told.decode_runs, "new_tokens": told.new_tokens, **spread(ratios[1:])}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--trained", type=Path, nargs="*", default=[])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=RESULTS / "generation.jsonl")
    options = parser.parse_args()
    lines: list[dict[str, Any]] = [header()]
    for threads in options.threads:
        note(f"{threads} thread(s)")
        lines.append(first_token(options.bundle.resolve(), threads, options.rounds))
        lines += overhead(options.bundle, threads)
        lines.append(edit_of_code(options.bundle, threads, options.rounds))
        lines += [drafts(bundle, threads, options.rounds) for bundle in options.trained]
    write(options.out, lines)
    note(f"{len(lines) - 1} rows in {options.out}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
