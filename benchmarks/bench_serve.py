"""What a server costs: the same text from the runtime called directly, over HTTP, and over OpenAI's client, in turn.

    python -m benchmarks.bench_serve BUNDLE [--rounds 60] [--new-tokens 32] [--threads 1]

The server is `edgecompress serve` in a process of its own, and idles while the runtime is called directly; both have
the same threads, and the texts, sampled with a seed, are compared before anything is timed. Another prompt runs before
each timed one, so that no KV cache holds its beginning. One JSON line for the host and one for each client over HTTP,
with the differences from the direct call, per pair, in benchmarks/results/serve.jsonl.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import openai

from benchmarks.bench_encoder import note
from benchmarks.result_lines import RESULTS, header, write
from edgecompress.kinds.decoder.runtime import Generator
from edgecompress.runtime import load

ROOT = Path(__file__).parent.parent
PROMPTS = [
    f"{topic} of the language, and what it is for: " for topic in ("Statements", "Expressions", "Classes", "Names")
]
FLUSH = "Whatever else was asked before"
SEED = 7
_WARM_UP = 5

Way = Callable[[str], tuple[str, float, float]]
"""A prompt -> its text, and the milliseconds to the first of it and to its end."""


@contextmanager
def serving(bundle: Path, threads: int) -> Iterator[dict[str, Any]]:
    command = [sys.executable, "-m", "edgecompress", "serve", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--threads", str(threads)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    text = ""
    while not text.endswith("}\n"):
        line = process.stdout.readline()
        if not line:
            raise RuntimeError("the server did not start")
        text += line
    try:
        yield json.loads(text)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def over_http(client: httpx2.Client, url: str, body: dict[str, Any]) -> Way:
    def ask(prompt: str) -> tuple[str, float, float]:
        began, first, parts = time.perf_counter(), 0.0, []
        with client.stream("POST", f"{url}/completions", json=body | {"prompt": prompt, "stream": True}) as answer:
            for line in answer.iter_lines():
                if not line.startswith("data: {"):
                    continue
                text = json.loads(line[6:])["choices"][0]["text"]
                if text and not first:
                    first = time.perf_counter()
                parts.append(text)
        return "".join(parts), (first - began) * 1e3, (time.perf_counter() - began) * 1e3

    return ask


def over_client(client: openai.OpenAI, body: dict[str, Any]) -> Way:
    def ask(prompt: str) -> tuple[str, float, float]:
        began, first, parts = time.perf_counter(), 0.0, []
        for chunk in client.completions.create(prompt=prompt, stream=True, **body):
            text = chunk.choices[0].text
            if text and not first:
                first = time.perf_counter()
            parts.append(text)
        return "".join(parts), (first - began) * 1e3, (time.perf_counter() - began) * 1e3

    return ask


def directly(generator: Generator, new_tokens: int) -> Way:
    """As the server calls it: in a session, which keeps its cache."""
    session = generator.session()

    def ask(prompt: str) -> tuple[str, float, float]:
        began, first, parts = time.perf_counter(), 0.0, []
        with session.stream(prompt, max_new_tokens=new_tokens, temperature=1.0, seed=SEED) as stream:
            for piece in stream:
                if piece.text and not first:
                    first = time.perf_counter()
                parts.append(piece.text)
        return "".join(parts), (first - began) * 1e3, (time.perf_counter() - began) * 1e3

    return ask


def spread(values: list[float]) -> dict[str, float]:
    p10, p50, p90 = np.percentile(values, [10, 50, 90])
    return {"p50": round(float(p50), 3), "p10": round(float(p10), 3), "p90": round(float(p90), 3)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS / "serve.jsonl")
    options = parser.parse_args()
    bundle, threads = options.bundle.resolve(), options.threads
    times: dict[str, list[tuple[float, float]]] = {}
    with (
        serving(bundle, threads) as said,
        load(bundle, threads=threads) as generator,
        httpx2.Client(timeout=60) as http,
    ):
        assert isinstance(generator, Generator)
        body = {"model": said["model"], "max_tokens": options.new_tokens, "temperature": 1.0, "seed": SEED}
        client = openai.OpenAI(base_url=said["url"], api_key="none", max_retries=0)
        ways = {
            "direct": directly(generator, options.new_tokens),
            "HTTP": over_http(http, said["url"], body),
            "OpenAI's client": over_client(client, body),
        }
        for prompt in PROMPTS:
            texts = set()
            for way in ways.values():
                way(FLUSH)
                texts.add(way(prompt)[0])
            if len(texts) != 1:
                raise SystemExit(f"the texts differ: {texts}")
        order = list(ways)
        for number in range(_WARM_UP + options.rounds):
            for name in order[number % 3 :] + order[: number % 3]:
                ways[name](FLUSH)
                text, first, whole = ways[name](PROMPTS[number % len(PROMPTS)])
                if not text:
                    raise SystemExit("the bundle gives no text: take one that was trained")
                if number >= _WARM_UP:
                    times.setdefault(name, []).append((first, whole))
        client.close()
    rows = []
    for name in list(times)[:]:
        if name == "direct":
            continue
        pairs = list(zip(times[name], times["direct"], strict=True))
        rows.append(
            {
                "kind": "serve",
                "way": name,
                "threads": threads,
                "new_tokens": options.new_tokens,
                "rounds": options.rounds,
                "direct_ttft_ms": spread([direct[0] for _, direct in pairs]),
                "ttft_ms": spread([over[0] for over, _ in pairs]),
                "ttft_more_ms": spread([over[0] - direct[0] for over, direct in pairs]),
                "whole_ratio": spread([over[1] / direct[1] for over, direct in pairs]),
                "per_token_more_ms": spread(
                    [(over[1] - over[0] - direct[1] + direct[0]) / (options.new_tokens - 1) for over, direct in pairs]
                ),
            }
        )
        note(json.dumps(rows[-1]))
    versions = {name: version(name) for name in ("openai", "fastapi", "uvicorn", "httpx2")}
    write(options.out, [header(versions=versions, bundle=bundle.name, cores=os.cpu_count()), *rows])


if __name__ == "__main__":
    main()
